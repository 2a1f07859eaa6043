import jax
import jax.numpy as jnp
import numpy as np

from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.life import (
    CodebookLife,
    CodeStats,
    count_codes,
    kmeans_init,
    spread_sample,
)


def test_counts_are_exact():
    pyramid = ScalePyramid.from_patch_nums((1, 2))
    tokens = jnp.array([[3, 0, 0, 1, 3], [3, 2, 2, 2, 2]])
    counts = count_codes(tokens, pyramid, 4)
    np.testing.assert_array_equal(counts, [[0, 0, 0, 2], [2, 1, 4, 1]])


def test_usage_average_is_plain_at_first_and_counts_levels_apart():
    life = CodebookLife(usage_decay=0.9)
    stats = life.init_stats(ScalePyramid.from_patch_nums((1, 4)), 4)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, (30, 2, 4)).astype(np.float32)
    for i in range(5):
        stats = life._count(stats, counts[i])
    np.testing.assert_allclose(stats.usage, counts[:5].mean(0), rtol=1e-5)
    for i in range(5, 30):
        before, stats = stats, life._count(stats, counts[i])
    np.testing.assert_allclose(stats.usage, 0.9 * before.usage + 0.1 * counts[29], rtol=1e-5)

    uneven = CodeStats(jnp.array([[8.0, 0, 0, 0], [1, 1, 1, 1]]), jnp.int32(50), jnp.array(True))
    metrics = life._usage_metrics(uneven, jnp.array(False))
    np.testing.assert_allclose(metrics["usage_level"], [0.25, 1])
    np.testing.assert_allclose(metrics["perplexity_level"], [1, 4], rtol=1e-5)
    assert metrics["usage"] == 1


def test_kmeans_finds_separated_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 3)) * 10
    vectors = jnp.asarray(np.repeat(centres, 40, 0) + 0.01 * rng.normal(size=(480, 3)), jnp.float32)
    codes = jax.jit(lambda key: kmeans_init(key, vectors, 12, iterations=20))(jax.random.key(0))
    distance = np.linalg.norm(np.asarray(codes)[:, None] - centres[None], axis=-1)
    assert distance.min(0).max() < 0.1


def test_spread_sample_takes_distinct_rows():
    rows = spread_sample(jax.random.key(0), jnp.arange(50.0)[:, None], 40)
    assert len(np.unique(rows)) == 40

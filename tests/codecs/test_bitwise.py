import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.codecs.bitwise import Bitwise
from var_jax.data.token_cache import TokenCache, TokenCacheSettings, TokenCacheWriter
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3, 4))
PATCHES = ScalePyramid(((1, 1), (1, 2), (2, 3)), grid=(4, 6))
BATCH = 3

CODECS = {
    "plain": Bitwise(PYRAMID, 5),
    "patches": Bitwise(PATCHES, 3, patch=2),
    "flips": Bitwise(PYRAMID, 5, flip_levels=3),
    "oblong": Bitwise(ScalePyramid(((1, 1), (3, 2), (2, 5))), 4, flip_levels=9),
}


def features_of(codec, scale=1.0):
    shape = (BATCH, *codec.pyramid.grid, codec.feature_dim)
    return scale * jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def run(codec, method, *args):
    """One program a call; arguments that are no arrays are static."""

    def apply(arrays):
        filled = iter(arrays)
        full = [next(filled) if isinstance(a, jax.Array) else a for a in args]
        return codec.apply({}, *full, method=method)

    return jax.jit(apply)([a for a in args if isinstance(a, jax.Array)])


def keys(count=BATCH):
    return jax.random.split(jax.random.key(1), count)


def fold(codec, bits):
    """Inputs and final state by `advance`, one level after the other."""
    carry, inputs = None, [jnp.zeros((BATCH, codec.pyramid.sizes[0], codec.code_dim))]
    for k, target in enumerate(codec.pyramid.split(bits)):
        carry, following = run(codec, "advance", carry, k, target)
        inputs.append(following)
    assert inputs.pop() is None
    return jnp.concatenate(inputs, 1), carry


@pytest.mark.parametrize("name", CODECS)
def test_a_lesson_is_a_fold_of_advance(name):
    codec = CODECS[name]
    source = run(codec, "read", features_of(codec))
    lesson = run(codec, "lesson", source)
    assert (
        lesson.inputs.shape == lesson.targets.shape == (BATCH, codec.pyramid.length, codec.code_dim)
    )
    inputs, carry = fold(codec, lesson.targets)
    np.testing.assert_allclose(lesson.inputs, inputs, atol=1e-6)
    np.testing.assert_allclose(run(codec, "finish", carry), run(codec, "decode", lesson.targets))
    codec.target.check(np.asarray(lesson.targets).reshape(-1, codec.code_dim))


@pytest.mark.parametrize("name", ["plain", "patches"])
def test_a_lesson_holds_the_bits_that_encode_gives(name):
    codec = CODECS[name]
    features = features_of(codec)
    lesson = run(codec, "lesson", run(codec, "read", features))
    np.testing.assert_array_equal(lesson.targets, run(codec, "encode", features))


@pytest.mark.parametrize("name", ["flips", "oblong"])
def test_after_flips_a_lesson_is_a_fold_over_the_flipped_bits_with_true_targets(name):
    codec = CODECS[name]
    source = run(codec, "read", features_of(codec))
    flips = run(codec, "draw_flips", keys())
    assert flips.any()
    lesson = run(codec, "lesson", source, None, keys())
    inputs, _ = fold(codec, lesson.targets ^ flips.astype(jnp.uint8))
    np.testing.assert_allclose(lesson.inputs, inputs, atol=1e-6)
    # A target is the sign of what the flipped state lacks.
    states = run(codec, "features_by_level", lesson.targets ^ flips.astype(jnp.uint8))
    last = codec.pyramid.level(codec.pyramid.num_levels - 1)
    missing = (source.astype(jnp.float32) - states[-2]).reshape(BATCH, -1, codec.feature_dim)
    clear = jnp.abs(missing) > 1e-5
    wrong = (lesson.targets[:, last] == 1) != (missing > 0)
    assert not (wrong & clear).any()


def test_without_keys_or_strength_a_lesson_is_plain_teaching():
    flipping = CODECS["flips"]
    plain, still = flipping.clone(flip_levels=0), flipping.clone(flip_strength=0.0)
    source = run(flipping, "read", features_of(flipping))
    features = source.astype(jnp.float32)
    expected = run(plain, "lesson", run(plain, "read", features))
    for codec, key in ((flipping, None), (still, keys())):
        lesson = run(codec, "lesson", source, None, key)
        np.testing.assert_allclose(lesson.inputs, expected.inputs, atol=1e-6)
        np.testing.assert_array_equal(lesson.targets, expected.targets)


def test_flips_are_an_examples_own_and_of_the_first_levels():
    codec = CODECS["flips"].clone(flip_strength=1.0)
    together = run(codec, "draw_flips", keys(64))
    np.testing.assert_array_equal(together[5:6], run(codec, "draw_flips", keys(64)[5:6]))
    first = codec.pyramid.offsets[codec.flip_levels]
    assert not together[:, first:].any()
    # Each level draws its strength from all of 0, 0.01, ..., 1.
    shares = together[:, codec.pyramid.level(2)].mean((1, 2))
    assert shares.min() < 0.15 and shares.max() > 0.85
    few = run(CODECS["flips"], "draw_flips", keys(64))[:, :first].mean()
    assert 0.05 < few < 0.25


def test_a_prefix_of_levels_is_the_beginning():
    for codec in (CODECS["plain"], CODECS["flips"]):
        source = run(codec, "read", features_of(codec))
        whole = run(codec, "lesson", source, None, keys())
        prefix = PYRAMID.prefix(2)
        part = run(codec, "lesson", source, prefix, keys())
        np.testing.assert_allclose(part.inputs, whole.inputs[:, : prefix.length], atol=1e-6)
        np.testing.assert_array_equal(part.targets, whole.targets[:, : prefix.length])
    with pytest.raises(ValueError, match="residuals of the levels"):
        CODECS["plain"].apply({}, source, ScalePyramid(((1, 1), (3, 3))), method="lesson")


def test_a_patch_holds_its_cells_channel_by_channel():
    codec = CODECS["patches"]
    cells = jnp.arange(4 * 6 * 3, dtype=jnp.float32).reshape(1, 4, 6, 3)
    tokens = codec.apply({}, cells, method="_in_tokens")
    np.testing.assert_array_equal(
        tokens[0, 4].reshape(3, 2, 2), cells[0, 2:4, 2:4].transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(codec.apply({}, tokens, (4, 6), method="_in_cells"), cells)


def test_each_level_comes_nearer():
    # Codes have length 1, so features of a few units need several levels.
    codec = Bitwise(ScalePyramid.from_patch_nums((2, 4, 4, 4, 4)), 8)
    features = features_of(codec, 0.7)
    errors = [
        float(jnp.square(f - features).mean())
        for f in run(codec, "features_by_level", run(codec, "encode", features))
    ]
    assert errors == sorted(errors, reverse=True)


def test_training_sees_what_decoding_gives_and_a_gradient():
    codec = CODECS["plain"]
    features = features_of(codec)
    quantized = run(codec, "quantize", features)
    np.testing.assert_array_equal(quantized.targets, run(codec, "encode", features))
    np.testing.assert_allclose(
        quantized.features, run(codec, "decode", quantized.targets), atol=1e-6
    )

    def total(f):
        return codec.apply({}, f, method="quantize").features.sum()

    gradient = jax.jit(jax.grad(total))(features)
    assert jnp.isfinite(gradient).all() and (gradient != 0).any()
    exact = run(codec, "quantize", features, True)
    np.testing.assert_array_equal(exact.features, features)
    assert exact.loss == 0 and quantized.loss > 0
    usage = quantized.metrics["bit_usage_level"]
    assert usage.shape == (4,) and (usage <= 1.001).all() and usage[-1] > 0.9
    dead = run(codec, "quantize", jnp.abs(features) + 10).metrics["bit_usage_level"]
    np.testing.assert_allclose(dead[0], 0, atol=1e-3)


@pytest.mark.parametrize("name", ["plain", "patches", "flips"])
def test_a_token_cache_gives_the_source_back(tmp_path, name):
    codec = CODECS[name]
    source = np.asarray(run(codec, "read", features_of(codec)))
    codec.source.check(source)
    assert source.dtype == codec.source.stored_dtype
    settings = TokenCacheSettings(
        "print", codec.pyramid.shapes, codec.source, BATCH, 1, ("a", "b"), "test", 8, 0
    )
    writer = TokenCacheWriter(tmp_path, settings)
    writer.write(source, np.array([0, 1, 0]), np.arange(BATCH))
    writer.close()
    records = TokenCache(tmp_path).__getitems__(range(BATCH))
    np.testing.assert_array_equal([r[codec.source.name] for r in records], source)


def test_eight_bits_take_a_byte():
    codec = Bitwise(ScalePyramid.for_image_size(256), 32)
    assert codec.source.shape == (680 * 4,) and codec.source.stored_dtype.itemsize == 1
    assert codec.codebook_size == 0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"patches of 2 has the cells \(8, 8\)"):
        Bitwise(PYRAMID, 5, patch=2)
    with pytest.raises(ValueError, match="flip_strength must be in"):
        Bitwise(PYRAMID, 5, flip_strength=30)
    with pytest.raises(ValueError, match="num_bits ask for features of"):
        CODECS["plain"].apply({}, jnp.zeros((1, 4, 4, 6)), method="encode")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import CLASSES, CODE_DIM, PYRAMID, VOCAB, generate

from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling
from var_jax.heads.index_mark import IndexMark, leaving, partners, red_to_green
from var_jax.heads.watermark import detection_score
from var_jax.quantizers.pairing import greedy_pairs, improved_pairs, similarities

RNG = np.random.default_rng(0)
CODEBOOK = RNG.normal(size=(VOCAB, CODE_DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.npz"
    np.savez(path, pairs=greedy_pairs(CODEBOOK), vocab_size=VOCAB)
    return str(path)


def draw(*processors):
    sampling = CategoricalSampling(0, 0.0, temperature=3.0, processors=processors)
    return generate(NextScale(LinearGuidance(0.0), sampling), np.arange(200) % CLASSES).targets


def test_partners_are_an_involution_without_fixed_points():
    for size in (VOCAB, VOCAB - 1):
        codebook = CODEBOOK[:size]
        greedy = greedy_pairs(codebook)
        for pairs in (greedy, improved_pairs(codebook, greedy)):
            partner = partners(pairs, size)
            np.testing.assert_array_equal(partner[partner], np.arange(size))
            assert (partner == np.arange(size)).sum() == size % 2


def test_swaps_only_help():
    codebook = RNG.normal(size=(200, 4))
    greedy = greedy_pairs(codebook)
    improved, cosine = improved_pairs(codebook, greedy), similarities(codebook)
    before, after = (cosine[x[:, 0], x[:, 1]].sum() for x in (greedy, improved))
    assert after > before
    np.testing.assert_array_equal(improved_pairs(codebook, improved), improved)


def test_half_of_the_codes_are_green_by_the_key(file):
    pairs = greedy_pairs(CODEBOOK)
    ordered = red_to_green(pairs, 3)
    np.testing.assert_array_equal(np.sort(ordered, 1), np.sort(pairs, 1))
    assert (ordered != red_to_green(pairs, 4)).any()
    green = IndexMark(file, 3).green(0, VOCAB)
    assert green.sum() == VOCAB // 2 and green[ordered[:, 1]].all()
    many = red_to_green(np.arange(4000).reshape(-1, 2), 0)
    assert 0.45 < (many[:, 0] > many[:, 1]).mean() < 0.55


def test_a_threshold_below_all_ratios_changes_nothing(file):
    np.testing.assert_array_equal(draw(IndexMark(file, 3, threshold=-10.0)), draw())


def test_probability_moves_within_pairs_where_it_may(file):
    """As replacing the draws would: the sum of a pair stays, and what is red has gone."""
    mark = IndexMark(file, 3, threshold=0.2)
    pairs = red_to_green(greedy_pairs(CODEBOOK), 3)
    logits = jnp.asarray(RNG.normal(size=(2, 4, VOCAB)), jnp.float32)
    logits = logits.at[..., :5].set(-jnp.inf)
    before = np.asarray(jax.nn.softmax(logits))
    after = np.asarray(jax.nn.softmax(jax.jit(lambda x: mark(x, 1, PYRAMID))(logits)))
    np.testing.assert_allclose(after[..., pairs].sum(-1), before[..., pairs].sum(-1), atol=1e-6)
    red, green = before[..., pairs[:, 0]], before[..., pairs[:, 1]]
    goes = np.log10(np.maximum(red / (green + 1e-9), 1e-9)) <= 0.2
    np.testing.assert_allclose(after[..., pairs[:, 0]], np.where(goes, 0, red), atol=1e-6)
    assert 0.2 < goes.mean() < 0.8
    leaves = np.asarray(leaving(logits, pairs, 0.2))
    np.testing.assert_array_equal(leaves[..., pairs[:, 0]], goes)


def test_the_first_levels_may_stay_as_they_are(file):
    mark = IndexMark(file, 3, threshold=9.0, first_level=1)
    logits = jnp.asarray(RNG.normal(size=(2, 1, VOCAB)), jnp.float32)
    np.testing.assert_array_equal(mark(logits, 0, PYRAMID), logits)


def test_the_mark_is_found_with_its_key_only(file):
    mark, plain = IndexMark(file, 3, threshold=9.0), draw()
    marked = draw(mark)
    assert mark.green(0, VOCAB)[marked].all()  # All red codes give way.

    def score(tokens, key=3):
        return detection_score(tokens, IndexMark(file, key), PYRAMID, VOCAB)

    np.testing.assert_allclose(score(marked), np.sqrt(PYRAMID.length), rtol=1e-6)
    assert score(plain).mean() < 1.5
    weaker = score(draw(IndexMark(file, 3, threshold=0.3)))
    assert score(plain).mean() < weaker.mean() < score(marked).mean()


def test_mistakes_are_named(file, tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match="has no pairs of codes"):
        IndexMark(str(tmp_path / "other.npz"), 0)
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        IndexMark(file, -1)
    with pytest.raises(ValueError, match=f"pairs {VOCAB} codes, but the model has 9"):
        IndexMark(file, 0).green(0, 9)

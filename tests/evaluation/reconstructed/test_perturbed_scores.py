"""pFID: rFID without strength, the same in any batches."""

import functools

import numpy as np
import pytest
from small_network import CODEC, VOCAB, filled
from stub_extractor import StubExtractor

from var_jax.evaluation.distances.frechet import frechet_distance, statistics
from var_jax.evaluation.generated.npz_images import as_rgb
from var_jax.evaluation.reconstructed.perturbed_scores import PerturbedFID
from var_jax.evaluation.reconstructed.tokenizer_scores import TokenizerRunner
from var_jax.tokenizer.vqvae import VQVAE

TOKENIZER = VQVAE(CODEC, 1, 8, (1,), 1, False, norm_groups=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)


@functools.cache
def params():
    return filled(TOKENIZER.init_params, 0)


def scores(parts=(20,), batch_size=8, rates=(0.0, 1.0), nearest=(1, VOCAB)):
    measure = PerturbedFID(TOKENIZER, params(), StubExtractor(4), rates, nearest, batch_size)
    for part in np.split(IMAGES, np.cumsum(parts)[:-1]):
        measure.add(part)
    return measure.scores()


def test_without_strength_it_is_the_distance_of_reconstructions():
    made = TokenizerRunner(TOKENIZER, params(), 8)(IMAGES)[0]
    pools = [statistics(StubExtractor(4)(as_rgb(x))["2048"]) for x in (made, IMAGES)]
    found = scores()
    assert found.strengths == ((0.0, 1), (0.0, VOCAB), (1.0, 1), (1.0, VOCAB))
    rfid = frechet_distance(*pools)
    np.testing.assert_allclose(found.distances[:3], rfid, rtol=1e-4)
    # Any code at all, in place of the nearest ones.
    assert abs(found.distances[3] - rfid) > 0.01 * rfid
    assert found.pfid == pytest.approx(np.mean(found.distances))


def test_batches_change_nothing():
    np.testing.assert_allclose(
        scores((7, 13), 4).distances, scores().distances, rtol=1e-4, atol=1e-4
    )


def test_more_codes_than_there_are_is_refused():
    with pytest.raises(
        ValueError, match=f"33 nearest codes, but the tokenizer's codebook has {VOCAB}"
    ):
        scores(nearest=(33,))

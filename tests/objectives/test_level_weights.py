import numpy as np
import pytest

from var_jax.objectives.level_weights import AreaWeights, LogNormalWeights, UniformWeights
from var_jax.pyramid import ScalePyramid


@pytest.mark.parametrize("rule", [UniformWeights(), LogNormalWeights(), AreaWeights()])
@pytest.mark.parametrize("patch_nums", [(1,), (1, 2, 3), (2, 2), (1, 2, 4, 4)])
def test_weights_sum_to_1_and_a_level_shares_its_own(rule, patch_nums):
    pyramid = ScalePyramid.from_patch_nums(patch_nums)
    weights = rule.weights(pyramid)
    assert weights.shape == (pyramid.length,) and (weights > 0).all()
    np.testing.assert_allclose(weights.sum(), 1)
    assert all(np.ptp(level) == 0 for level in pyramid.split(weights, axis=0))


def test_log_normal_weights_favour_the_middle():
    pyramid = ScalePyramid.for_image_size(256)
    levels = np.array([x.sum() for x in pyramid.split(LogNormalWeights().weights(pyramid), axis=0)])
    assert 2 < levels.argmax() < 6 and levels.argmin() == 0
    plain = np.array([x.sum() for x in pyramid.split(UniformWeights().weights(pyramid), axis=0)])
    assert levels[0] > 10 * plain[0] and levels[-1] < plain[-1] / 4


def test_levels_of_equal_size_count_alike():
    pyramid = ScalePyramid(((1, 4), (1, 4), (1, 4)))
    uniform = UniformWeights().weights(pyramid)
    np.testing.assert_allclose(LogNormalWeights().weights(pyramid), uniform)


def test_a_level_weighs_as_its_side():
    pyramid = ScalePyramid(((1, 1), (1, 4), (4, 4)))
    levels = [level.sum() for level in pyramid.split(AreaWeights().weights(pyramid), axis=0)]
    np.testing.assert_allclose(np.divide(levels, levels[0]), [1, 2, 4])

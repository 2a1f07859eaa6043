import numpy as np
import pytest

from var_jax.objectives.level_weights import AreaWeights, UniformWeights
from var_jax.pyramid import ScalePyramid


@pytest.mark.parametrize("rule", [AreaWeights(), UniformWeights()])
def test_weights_sum_to_1(rule):
    weights = rule.weights(ScalePyramid.for_image_size(256))
    assert weights.shape == (680,)
    np.testing.assert_allclose(weights.sum(), 1)


def test_a_level_weighs_as_its_side():
    pyramid = ScalePyramid(((1, 1), (1, 4), (4, 4)))
    levels = [level.sum() for level in pyramid.split(AreaWeights().weights(pyramid), axis=0)]
    np.testing.assert_allclose(np.divide(levels, levels[0]), [1, 2, 4])

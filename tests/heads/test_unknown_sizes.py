import jax.numpy as jnp
import numpy as np

from var_jax.heads.unknown_sizes import GreedyAtUnknownSizes
from var_jax.pyramid import ScalePyramid


def test_only_levels_of_unknown_size_lose_all_but_the_best_code():
    pyramid = ScalePyramid(((1, 1), (2, 2), (2, 3), (4, 4)))
    rule = GreedyAtUnknownSizes((1, 2))
    logits = jnp.array([[[1.0, 3.0, 3.0], [-1.0, -2.0, -np.inf]]])
    for level in (0, 1):
        np.testing.assert_array_equal(rule(logits, level, pyramid), logits)
    for level in (2, 3):
        best = [[[-np.inf, 3.0, -np.inf], [-1.0, -np.inf, -np.inf]]]
        np.testing.assert_array_equal(rule(logits, level, pyramid), best)

import numpy as np
import pytest

from var_jax.context import (
    BlockCausal,
    OwnScale,
    RecentLevels,
    dense_mask,
    first_level_kept,
    key_segments,
)
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))


def test_block_causal_sees_itself_and_the_past():
    mask = dense_mask(key_segments(PYRAMID, BlockCausal()), PYRAMID.length)
    levels = PYRAMID.level_ids
    np.testing.assert_array_equal(mask, levels[:, None] >= levels[None])


@pytest.mark.parametrize("context", [OwnScale(), RecentLevels(0)])
def test_own_scale_is_block_diagonal(context):
    mask = dense_mask(key_segments(PYRAMID, context), PYRAMID.length)
    levels = PYRAMID.level_ids
    np.testing.assert_array_equal(mask, levels[:, None] == levels[None])
    # Every level follows from its own inputs, so nothing is kept for later ones.
    assert [first_level_kept(PYRAMID, context, k) for k in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("num_previous, kept", [(0, [1, 2, 3]), (1, [0, 1, 3]), (9, [0, 0, 3])])
def test_a_cache_keeps_what_later_levels_see(num_previous, kept):
    context = RecentLevels(num_previous)
    assert [first_level_kept(PYRAMID, context, k) for k in range(3)] == kept


def test_windows_must_lie_inside_the_pyramid():
    class Future:
        def window(self, level):
            return 0, level + 1

    with pytest.raises(ValueError, match="level 2"):
        key_segments(PYRAMID, Future())
    with pytest.raises(ValueError, match="-1"):
        RecentLevels(-1)

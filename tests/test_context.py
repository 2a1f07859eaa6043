import numpy as np
import pytest

from var_jax.context import (
    BlockCausal,
    OwnNeighbourhood,
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


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (2, 5), (5, 2), (1, 7)])
def test_a_neighbourhood_is_a_square_shifted_to_stay_inside(shape):
    pyramid, side = ScalePyramid(((1, 1), (2, 3), shape)), 3
    mask = dense_mask(key_segments(pyramid, OwnNeighbourhood(2, side)), pyramid.length)
    whole = dense_mask(key_segments(pyramid, OwnScale()), pyramid.length)
    coarse = pyramid.offsets[2]
    np.testing.assert_array_equal(mask[:coarse], whole[:coarse])
    assert not mask[coarse:, :coarse].any()
    height, width = shape
    for query in range(height * width):
        seen = mask[coarse + query, coarse:].reshape(shape)
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        for place, size, found in ((query // width, height, rows), (query % width, width, columns)):
            # As many as the side, without a gap, as near to the middle as the edges allow.
            assert len(found) == min(side, size) == found[-1] - found[0] + 1
            centre = min(max(place, found.size // 2), size - 1 - found.size // 2)
            assert size < side or found[found.size // 2] == centre
        assert seen.sum() == len(rows) * len(columns)


def test_a_neighbourhood_no_smaller_than_the_level_is_the_level():
    assert key_segments(PYRAMID, OwnNeighbourhood(0, 3)) == key_segments(PYRAMID, OwnScale())
    assert key_segments(PYRAMID, OwnNeighbourhood(3, 1)) == key_segments(PYRAMID, OwnScale())


@pytest.mark.parametrize(
    "context, pairs",
    [(BlockCausal(), 286434), (OwnScale(), 110468), (OwnNeighbourhood(8), 37196)],
)
def test_pairs_of_the_published_pyramid(context, pairs):
    pyramid = ScalePyramid.for_image_size(256)
    segments = key_segments(pyramid, context)
    assert sum(s.pairs for s in segments) == dense_mask(segments, pyramid.length).sum() == pairs


def test_neighbourhoods_that_are_none():
    for side in (2, -1):
        with pytest.raises(ValueError, match=f"side must be odd and 1 or more, got {side}"):
            OwnNeighbourhood(1, side)

    class NearAndBefore(OwnNeighbourhood):
        def window(self, level):
            return 0, level

    with pytest.raises(ValueError, match=r"level 1 .* window \(0, 1\)"):
        key_segments(PYRAMID, NearAndBefore(1, 1))

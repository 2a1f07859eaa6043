"""The tiles of a row: complete, disjoint, and covering what each query sees."""

import numpy as np
import pytest

from var_jax.context import BlockCausal, RecentLevels, dense_mask, key_segments
from var_jax.kernels.block_attention import streaming, tiling
from var_jax.pyramid import PATCH_NUMS, ScalePyramid

CONTEXTS = [BlockCausal(), RecentLevels(0), RecentLevels(1)]
PATCHES = [(1, 2, 3), (1, 2, 3, 4, 5, 6), PATCH_NUMS[256], PATCH_NUMS[512]]


@pytest.mark.parametrize("max_rows", [128, 256])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("patch_nums", PATCHES)
def test_row_tiles_cover_the_mask(patch_nums, context, max_rows):
    pyramid = ScalePyramid.from_patch_nums(patch_nums)
    segments = key_segments(pyramid, context)
    mask = dense_mask(segments, pyramid.length)
    tiles = tiling.row_tiles(segments, pyramid.length, max_rows, 1 << 17)
    next_row = next_index = 0
    for tile in tiles:
        assert (tile.start, tile.index) == (next_row, next_index)
        assert tile.rows <= max_rows
        assert tile.lo % 128 == 0 and tile.start % 8 == 0
        for i in range(tile.count):
            rows = mask[tile.start + i * tile.rows :][: tile.rows]
            assert not rows[:, : tile.lo].any() and not rows[:, tile.hi :].any()
            assert rows[:, tile.full_lo : tile.full_hi].all()
            if tile.count > 1:
                assert (tile.start + i * tile.rows) % 16 == 0 and len(tile.segments) == 1
        next_row += tile.rows * tile.count
        next_index += tile.count
    assert next_row == pyramid.length
    assert next_index == tiling.num_tiles(tiles)


def test_little_more_than_the_visible_pairs_is_computed():
    pyramid = ScalePyramid.for_image_size(256)
    segments = key_segments(pyramid, BlockCausal())
    tiles = tiling.row_tiles(segments, pyramid.length, 256, 1 << 30)
    computed = sum(t.count * t.rows * (t.hi - t.lo) for t in tiles)
    visible = dense_mask(segments, pyramid.length).sum()
    assert visible < computed < 1.15 * visible
    assert computed < 0.7 * pyramid.length**2


@pytest.mark.parametrize("context", CONTEXTS)
def test_streaming_pairs_are_the_live_tiles(context):
    pyramid = ScalePyramid.for_image_size(512)
    segments = key_segments(pyramid, context)
    grid = streaming.Grid(segments, pyramid.length, 256, 512, 128)
    mask = dense_mask(segments, pyramid.length)
    live = {
        (i, j)
        for i in range(grid.tiles_q)
        for j in range(grid.tiles_k)
        if mask[i * 256 : (i + 1) * 256, j * 512 : (j + 1) * 512].any()
    }
    for keys_outer in (False, True):
        q, k, first, last = grid.pairs(keys_outer)
        assert set(zip(q.tolist(), k.tolist(), strict=True)) == live
        outer = k if keys_outer else q
        assert first.sum() == last.sum() == len(np.unique(outer))
        assert (np.diff(outer) >= 0).all()

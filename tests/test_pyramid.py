import numpy as np
import pytest

from var_jax.pyramid import PATCH_NUMS, ScalePyramid


@pytest.mark.parametrize("size, length", [(256, 680), (512, 2240), (1024, 9451)])
def test_published_pyramids(size, length):
    pyramid = ScalePyramid.for_image_size(size)
    assert pyramid.length == length
    assert pyramid.grid == (size // 16, size // 16)
    assert pyramid.patch_nums == PATCH_NUMS[size]
    assert pyramid.offsets[-1] == sum(pyramid.sizes) == length


def test_levels_partition_the_tokens():
    pyramid = ScalePyramid(((1, 1), (2, 3), (4, 5)))
    x = np.arange(2 * pyramid.length).reshape(2, -1)
    parts = pyramid.split(x)
    assert [p.shape[1] for p in parts] == [1, 6, 20]
    np.testing.assert_array_equal(np.concatenate(parts, 1), x)
    np.testing.assert_array_equal(np.bincount(pyramid.level_ids), [1, 6, 20])
    assert [pyramid.progress(k) for k in range(3)] == [0.0, 0.5, 1.0]


def test_blocks_that_are_no_squares_and_have_coordinates():
    line = ScalePyramid(((1, 1), (1, 2)), points=((0, 0.5), (0, 0.25), (0, 0.75)))
    np.testing.assert_allclose(line.coordinates[:, 1], [0.5, 0.25, 0.75])
    assert line.prefix(1).points == ((0.0, 0.5),)
    with pytest.raises(ValueError, match="square"):
        _ = line.patch_nums


def test_coordinates_are_cell_centres():
    pyramid = ScalePyramid.from_patch_nums((1, 2))
    expected = [[0.5, 0.5], [0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    np.testing.assert_allclose(pyramid.coordinates, expected)


def test_equal_pyramids_are_one_cache_entry():
    a, b = ScalePyramid.from_patch_nums([1, 2]), ScalePyramid(((1, 1), (2, 2)))
    assert a == b and hash(a) == hash(b)
    _ = a.coordinates  # A filled cache must not change equality.
    assert a == b and hash(a) == hash(b)


@pytest.mark.parametrize("shapes", [(), ((0, 1),), ((1.5, 1),), ((1, 2, 3),)])
def test_bad_shapes_are_refused(shapes):
    with pytest.raises(ValueError):
        ScalePyramid(shapes)


def test_other_mistakes_are_refused():
    with pytest.raises(ValueError, match="256, 512, 1024"):
        ScalePyramid.for_image_size(300)
    with pytest.raises(ValueError, match="5 tokens"):
        ScalePyramid(((1, 1), (2, 2)), points=((0.5, 0.5),))
    with pytest.raises(ValueError, match=r"1\.\.2"):
        ScalePyramid.from_patch_nums((1, 2)).prefix(3)


def test_levels_within_a_side():
    pyramid = ScalePyramid(((1, 1), (2, 3), (4, 4), (2, 2)))
    assert [pyramid.levels_within(side) for side in (0.5, 1, 2, 3, 3.9, 4)] == [0, 1, 1, 2, 2, 4]
    assert pyramid.max_side == 4

import numpy as np

from var_jax.evaluation.pictures import as_picture, make_grid


def test_a_picture_is_the_grid_with_larger_pixels():
    for channels in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, channels), np.uint8)
        shown = np.asarray(as_picture(images, columns=2, zoom=3)).reshape(42, 48, channels)
        np.testing.assert_array_equal(shown[1::3, 2::3], make_grid(images, columns=2))
        np.testing.assert_array_equal(shown[::3, ::3], shown[2::3, 2::3])

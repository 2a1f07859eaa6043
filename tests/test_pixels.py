import io

import jax
import numpy as np
import pytest
from PIL import Image

from var_jax.pixels import encode_png, to_float, to_uint8


@pytest.mark.parametrize("run", [lambda f: f, jax.jit])
def test_pixels_are_rounded_to_the_nearest_value_and_clipped(run):
    x = np.array([-2.0, -1.0, 0.0, 1.0, 3.0, 2 * 100.4 / 255 - 1, 2 * 100.6 / 255 - 1])
    np.testing.assert_array_equal(run(to_uint8)(x), [0, 0, 128, 255, 255, 100, 101])


@pytest.mark.parametrize("run", [lambda f: f, jax.jit])
def test_every_pixel_comes_back_and_floating_point_stays(run):
    pixels = np.arange(256, dtype=np.uint8)
    floats = run(to_float)(pixels)
    assert floats.dtype == np.float32
    # XLA may multiply by the rounded reciprocal where NumPy divides.
    np.testing.assert_allclose(floats, pixels / 127.5 - 1, atol=2e-7)
    np.testing.assert_array_equal(run(to_uint8)(floats), pixels)
    np.testing.assert_array_equal(run(to_float)(floats), floats)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_comes_back_from_its_png(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    there = np.asarray(Image.open(io.BytesIO(encode_png(image))))
    np.testing.assert_array_equal(there.reshape(image.shape), image)

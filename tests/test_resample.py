import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.resample import (
    area_matrix,
    bicubic_matrix,
    bilinear_matrix,
    cosine_matrix,
    resize,
)

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "interpolation.npz"


def test_matrices_agree_with_pytorch_for_all_published_pyramids():
    # Entry <mode>_<in>_<out>: what F.interpolate (float64) makes of an impulse at each input.
    with np.load(GOLDENS) as expected:
        assert len(expected.files) > 50
        for name in expected.files:
            mode, size_in, size_out = name.split("_")
            matrix = {"area": area_matrix, "bicubic": bicubic_matrix}[mode]
            ours = matrix(int(size_in), int(size_out))
            np.testing.assert_allclose(ours, expected[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("matrix", [area_matrix, bicubic_matrix, bilinear_matrix, cosine_matrix])
def test_a_constant_stays_a_constant(matrix):
    for size_in, size_out in [(1, 7), (3, 16), (16, 5), (10, 13)]:
        np.testing.assert_allclose(matrix(size_in, size_out).sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("size_in, size_out", [(1, 6), (4, 6), (6, 4), (16, 13), (5, 16)])
def test_bilinear_is_the_linear_kernel_without_antialiasing(size_in, size_out):
    eye = jnp.eye(size_in)
    expected = jax.image.resize(eye, (size_out, size_in), "linear", antialias=False)
    np.testing.assert_allclose(bilinear_matrix(size_in, size_out), expected, atol=1e-6)


def test_cosines_are_kept_up_to_the_smaller_size():
    down, up = cosine_matrix(8, 3), cosine_matrix(3, 8)
    np.testing.assert_allclose(down @ up, np.eye(3), atol=1e-12)
    for frequency in range(8):
        wave = np.cos(np.pi / 8 * frequency * (np.arange(8) + 0.5))
        np.testing.assert_allclose(up @ down @ wave, wave if frequency < 3 else 0, atol=1e-12)
    np.testing.assert_allclose(cosine_matrix(5, 5), np.eye(5), atol=1e-12)


def test_resize_treats_rows_and_columns_apart():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
    y = resize(x, (2, 3), "area")
    expected = x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert resize(x, (4, 6), "bicubic") is x
    with pytest.raises(ValueError, match="nearest"):
        resize(x, (2, 2), "nearest")

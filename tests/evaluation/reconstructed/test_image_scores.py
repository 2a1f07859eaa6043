import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from var_jax.evaluation.reconstructed.image_scores import (
    edge_error,
    high_frequency,
    image_scores,
    psnr,
    ssim,
)


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 24, 3)).astype(np.uint8)
    noise = rng.integers(-30, 30, images.shape)
    return images, np.clip(images + noise, 0, 255).astype(np.uint8)


def test_psnr_by_its_definition(pair):
    x, y = (a.astype(np.float64) for a in pair)
    expected = 10 * np.log10(255**2 / ((x - y) ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(psnr(*pair), expected, rtol=1e-5)
    # The same pictures as floating point in [-1, 1].
    np.testing.assert_allclose(psnr(x / 127.5 - 1, y / 127.5 - 1), expected, rtol=1e-4)


def test_ssim_by_its_definition(pair):
    """Window by window in float64, on the 0 to 255 scale of the paper."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def blur(a):
        return scipy.signal.correlate2d(a, window, mode="valid")

    expected = []
    for picture, other in zip(*pair, strict=True):
        channels = []
        for c in range(3):
            x, y = picture[..., c].astype(np.float64), other[..., c].astype(np.float64)
            mx, my = blur(x), blur(y)
            vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            value = (2 * mx * my + c1) * (2 * cov + c2)
            channels.append((value / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
        expected.append(np.mean(channels))
    np.testing.assert_allclose(ssim(*pair), expected, rtol=1e-4)


def test_equal_pictures_have_the_best_scores(pair):
    scores = image_scores(pair[0], pair[0])
    assert jnp.isinf(scores.psnr).all()
    np.testing.assert_allclose(scores.ssim, 1, rtol=1e-5)
    np.testing.assert_allclose(scores.edge_error, 0, atol=1e-6)
    np.testing.assert_allclose(scores.high_frequency_error, 0, atol=1e-6)
    np.testing.assert_allclose(scores.high_frequency_ratio, 1, rtol=1e-5)


def test_edges_and_fine_detail_tell_a_blurred_picture(pair):
    x = pair[0].astype(np.float32) / 127.5 - 1
    blurred = scipy.ndimage.gaussian_filter(x, (0, 2, 2, 0))
    error, ratio = high_frequency(x, blurred)
    assert (error > 0.9).all() and (ratio < 0.05).all()
    assert (edge_error(x, blurred) > 0.5).all()
    # A constant offset is neither an edge nor detail.
    error, ratio = high_frequency(x, x + 0.3)
    np.testing.assert_allclose(error, 0, atol=1e-4)
    np.testing.assert_allclose(edge_error(x, x + 0.3), 0, atol=1e-4)


def test_high_frequency_energy_agrees_with_the_full_spectrum(pair):
    x, y = (a.astype(np.float64) / 255 for a in pair)
    vertical = np.abs(np.fft.fftfreq(32))[:, None] * 2
    horizontal = np.abs(np.fft.fftfreq(24))[None] * 2
    high = ((vertical > 0.5) | (horizontal > 0.5))[..., None]

    def energy(a):
        return (high * np.abs(np.fft.fft2(a, axes=(1, 2))) ** 2).sum((1, 2, 3))

    error, ratio = high_frequency(*pair)
    np.testing.assert_allclose(error, np.sqrt(energy(x - y) / energy(x)), rtol=1e-4)
    np.testing.assert_allclose(ratio, energy(y) / energy(x), rtol=1e-4)


def test_shapes_are_checked(unchecked, pair):
    with pytest.raises(ValueError, match="same"):
        psnr(pair[0], pair[1][:, :-1])
    with pytest.raises(ValueError, match="at least 11"):
        ssim(pair[0][:, :8], pair[1][:, :8])

"""The residual codec in bands of frequencies, as NFIG has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.nearest import nearest_codes
from var_jax.resample import cosine_matrix, resize

DIM, SIDES = 5, (1, 2, 3, 5)


def codec_of(sides, size):
    pyramid = ScalePyramid.from_patch_nums(sides)
    return ResidualVQ(pyramid, size, DIM, phi_ratio=0.0, down="cosine", up="cosine")


def features(seed=0):
    return np.random.default_rng(seed).normal(size=(1, 5, 5, DIM)).astype(np.float32)


def band(x, side):
    """The lowest frequencies of a map."""
    low = cosine_matrix(side, 5) @ cosine_matrix(5, side)
    return np.einsum("Hh,bhwc,Ww->bHWc", low, x, low)


def run(codec, codebook, x, method):
    return jax.jit(lambda c, x: codec.apply({"params": {"codebook": c}}, x, method=method))(
        jnp.asarray(codebook), x
    )


def test_bands_of_exact_codes_add_up_to_the_features():
    x, before, codes = features(), 0.0, []
    for side in SIDES:
        rest = jnp.asarray(x - before, jnp.float32)
        codes.append(np.asarray(resize(rest, (side, side), "cosine")).reshape(-1, DIM))
        before = band(x, side)
    codebook = np.concatenate(codes)
    codec = codec_of(SIDES, len(codebook))
    tokens = run(codec, codebook, x, "encode")
    np.testing.assert_array_equal(tokens[0], np.arange(codec.pyramid.length))
    sums = run(codec, codebook, tokens, "features_by_level")
    for side, found in zip(SIDES, sums, strict=True):
        np.testing.assert_allclose(found, band(x, side), atol=1e-5)
    np.testing.assert_allclose(sums[-1], x, atol=1e-5)


def test_a_level_adds_its_frequencies_alone_and_the_next_one_reads_all_so_far():
    codebook = np.random.default_rng(1).normal(size=(7, DIM)).astype(np.float32)
    codec = codec_of(SIDES, 7)
    tokens = run(codec, codebook, features(), "encode")
    sums = run(codec, codebook, tokens, "features_by_level")
    inputs = codec.pyramid.split(run(codec, codebook, tokens, "lesson").inputs)
    for side, following, total, read in zip(SIDES, SIDES[1:], sums, inputs[1:], strict=False):
        np.testing.assert_allclose(band(np.asarray(total), side), total, atol=1e-5)
        level = read.reshape(1, following, following, DIM)
        np.testing.assert_allclose(resize(level, (5, 5), "cosine"), total, atol=1e-5)


def test_one_band_is_plain_vector_quantisation():
    codebook = np.random.default_rng(1).normal(size=(7, DIM)).astype(np.float32)
    codec, x = codec_of((5,), 7), features()
    tokens = run(codec, codebook, x, "encode")
    np.testing.assert_array_equal(tokens, nearest_codes(x, codebook).reshape(1, -1))
    np.testing.assert_array_equal(
        run(codec, codebook, tokens, "decode"), codebook[tokens].reshape(x.shape)
    )


def test_an_unknown_way_is_named():
    codec = ResidualVQ(ScalePyramid.from_patch_nums((1, 5)), 7, DIM, phi_ratio=0.0, up="fourier")
    with pytest.raises(ValueError, match="Unknown resize method 'fourier'; choose one of"):
        run(codec, np.zeros((7, DIM), np.float32), features(), "encode")

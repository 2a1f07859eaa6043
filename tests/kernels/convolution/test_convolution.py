"""Convolutions agree with the sum written out in float64, forward and backward."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from var_jax.kernels.convolution import (
    MIN_CHANNELS,
    MIN_PIXELS,
    best_implementation,
    conv_general_dilated,
    winograd,
)

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))
SIDE = math.isqrt(MIN_PIXELS)
# x [B, H, W, C] and the output channels: one tile, odd sizes, a wide map.
SHAPES = [((1, 4, 1, 3), 2), ((3, 8, 5, 7), 9), ((2, 12, 16, 64), 32)]


def written_out(x, kernel):
    """[B, H, W, C], [3, 3, C, D] -> [B, H, W, D] in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def arrays(shape, features, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(3, 3, shape[-1], features)) / np.sqrt(9 * shape[-1])
    cotangent = rng.normal(size=(*shape[:3], features)).astype(np.float32)
    return x, kernel.astype(np.float32), cotangent


def convolve(x, kernel, implementation="winograd", **options):
    options = {"window_strides": (1, 1), "padding": SAME} | options
    return conv_general_dilated(
        x, kernel, dimension_numbers=CHANNELS_LAST, implementation=implementation, **options
    )


@pytest.mark.parametrize("implementation", ["winograd", "xla"])
@pytest.mark.parametrize(("shape", "features"), SHAPES)
def test_value(implementation, shape, features):
    x, kernel, _ = arrays(shape, features)
    got = jax.jit(convolve, static_argnums=2)(x, kernel, implementation)
    np.testing.assert_allclose(got, written_out(x, kernel), rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", ["winograd", "xla"])
@pytest.mark.parametrize(("shape", "features"), SHAPES)
def test_gradients(implementation, shape, features):
    x, kernel, cotangent = arrays(shape, features)
    _, transpose = jax.vjp(lambda *args: convolve(*args, implementation), x, kernel)
    by_x, by_kernel = transpose(cotangent)
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    np.testing.assert_allclose(by_x, written_out(cotangent, mirrored), rtol=0, atol=2e-5)
    # The convolution is linear in its kernel: <gradient, k> = <cotangent, convolution of k>.
    other = arrays(shape, features, seed=1)[1]
    want = np.vdot(np.float64(cotangent), written_out(x, other))
    assert np.vdot(np.float64(by_kernel), other) == pytest.approx(want, abs=1e-4)


def test_error_is_that_of_single_precision():
    """As near to float64 as a sum of 9 C float32 products usually is."""
    x, kernel, _ = arrays((1, 16, 16, 160), 160)
    want = written_out(x, kernel)
    assert np.sqrt(np.mean((convolve(x, kernel) - want) ** 2)) < 1e-6


def test_second_derivative():
    x, kernel, _ = arrays((1, 8, 4, 3), 3)

    def penalty(implementation):
        def output(x):
            return jnp.sum(jnp.sin(convolve(x, kernel, implementation)))

        return jax.grad(lambda x: jnp.sum(jax.grad(output)(x) ** 2))(x)

    np.testing.assert_allclose(penalty("winograd"), penalty("xla"), rtol=1e-4, atol=1e-5)


def test_sharded_batch_gives_the_same():
    x, kernel, _ = arrays((8, 8, 8, 5), 6)
    mesh = jax.make_mesh((8,), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    sharded = jax.jit(convolve, in_shardings=(rows, whole), out_shardings=rows)(x, kernel)
    np.testing.assert_allclose(sharded, jax.jit(convolve)(x, kernel), rtol=0, atol=1e-6)


def test_what_none_stands_for():
    wide, kernel = (1, SIDE, SIDE, MIN_CHANNELS), (3, 3, MIN_CHANNELS, MIN_CHANNELS)
    assert SIDE**2 == MIN_PIXELS
    assert best_implementation("cpu", wide, kernel) == "winograd"
    assert best_implementation("cpu", (1, SIDE - 4, *wide[2:]), kernel) == "xla"
    assert best_implementation("cpu", wide, (3, 3, MIN_CHANNELS, 3)) == "xla"
    for platform in ("tpu", "gpu"):
        assert best_implementation(platform, wide, kernel) == "xla"


@pytest.mark.parametrize("side", [8, SIDE, 2 * SIDE])
def test_the_batch_does_not_choose(side):
    kernel = (3, 3, MIN_CHANNELS, MIN_CHANNELS)
    chosen = {
        best_implementation("cpu", (batch, side, side, MIN_CHANNELS), kernel)
        for batch in (1, 2, 3, 8, 256)
    }
    assert len(chosen) == 1


@pytest.mark.parametrize(
    ("height", "options"),
    [
        (64, {"window_strides": (2, 2)}),
        (64, {"padding": "VALID"}),
        (64, {"padding": ((0, 1), (0, 1))}),
        (64, {"rhs_dilation": (2, 2)}),
        (66, {}),
    ],
)
def test_others_are_the_direct_sum_and_a_named_one_never_falls_back(height, options):
    x, kernel, _ = arrays((2, height, 64, MIN_CHANNELS), MIN_CHANNELS)
    options = {"window_strides": (1, 1), "padding": SAME} | options
    want = jax.lax.conv_general_dilated(x, kernel, dimension_numbers=CHANNELS_LAST, **options)
    np.testing.assert_array_equal(convolve(x, kernel, None, **options), want)
    with pytest.raises(ValueError, match="'winograd' does not compute"):
        convolve(x, kernel, **options)


def test_none_takes_filtering_where_it_pays():
    x, kernel, _ = arrays((2, SIDE, SIDE, MIN_CHANNELS), MIN_CHANNELS)
    np.testing.assert_array_equal(convolve(x, kernel, None), winograd.convolution(x, kernel))
    tpu = jax.sharding.AbstractDevice("TPU v4", 2, "tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=tpu)
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(lambda *args: convolve(*args, None))(x, kernel)
    assert [e.primitive.name for e in jaxpr.eqns] == ["conv_general_dilated"]


def test_bfloat16_is_the_direct_sum():
    x, kernel, _ = (jnp.asarray(a, jnp.bfloat16) for a in arrays((2, 64, 64, 64), 64))
    want = convolve(x, kernel, "xla")
    np.testing.assert_array_equal(convolve(x, kernel, None), want)
    with pytest.raises(ValueError, match="bfloat16"):
        convolve(x, kernel)


def test_unknown_implementation():
    x, kernel, _ = arrays((1, 4, 4, 3), 3)
    with pytest.raises(ValueError, match="'fft'"):
        convolve(x, kernel, "fft")

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import Cache
from var_jax.transformer.rotary import Rotary2D, grid_positions
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))
BATCH, CODE_DIM, WIDTH = 2, 4, 32


def make(**settings):
    var = VAR(PYRAMID, 5, CODE_DIM, 2, WIDTH, 2, positions=Rotary2D(WIDTH, **settings))
    inputs = jax.random.normal(jax.random.key(0), (BATCH, PYRAMID.length, CODE_DIM))
    labels = jnp.array([3, 5])
    shapes = sharding.unbox(jax.eval_shape(var.init, jax.random.key(1), inputs, labels)["params"])
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)
    return var, params, inputs, labels


@functools.partial(jax.jit, static_argnames=("var", "levels", "pyramid"))
def apply(var, params, inputs, labels, levels=None, cache=None, pyramid=None):
    return var.apply(
        {"params": params}, inputs, labels, levels=levels, cache=cache, pyramid=pyramid
    )


@pytest.mark.parametrize("settings", [dict(), dict(num_levels=3, grid=(8, 8))])
def test_cached_levels_equal_the_teacher_forced_pass(settings):
    var, params, inputs, labels = make(**settings)
    full, _ = apply(var, params, inputs, labels)
    cache = Cache()
    for k in range(PYRAMID.num_levels):
        level_inputs = None if k == 0 else inputs[:, PYRAMID.level(k)]
        hidden, cache = apply(var, params, level_inputs, labels, range(k, k + 1), cache)
        np.testing.assert_allclose(hidden, full[:, PYRAMID.level(k)], rtol=2e-4, atol=2e-5)


def test_only_level_embeddings_are_parameters():
    assert "level" not in make()[1] and "position" not in make()[1]
    assert make(num_levels=3)[1]["level"].shape == (3, WIDTH)
    with pytest.raises(ValueError, match="embeddings of 2 levels, but the pyramid has 3"):
        make(num_levels=2)


def test_positions_matter_and_serve_any_pyramid():
    var, params, inputs, labels = make(grid=(8, 8))
    level = PYRAMID.level(2)
    mirrored = inputs.at[:, level].set(inputs[:, level][:, ::-1])
    full, swapped = (apply(var, params, x, labels)[0][:, level] for x in (inputs, mirrored))
    assert np.abs(full - swapped[:, ::-1]).max() > 1e-2
    other = ScalePyramid(((1, 1), (2, 3)))
    assert apply(var, params, inputs[:, : other.length], labels, pyramid=other)[0].shape[1] == 7


def test_a_turn_keeps_lengths_and_products_hang_on_differences_alone():
    rotary, grid = Rotary2D(WIDTH), ScalePyramid(((5, 7),))
    rng = np.random.default_rng(0)
    q, k = (
        jnp.tile(jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32), (1, 35, 1, 1))
        for _ in "qk"
    )
    q, k = (rotary.rotate(x, grid, range(1))[0, :, 0].reshape(5, 7, 16) for x in (q, k))
    np.testing.assert_allclose(jnp.linalg.norm(q, axis=-1), jnp.linalg.norm(q[0, 0]), rtol=1e-5)
    products = jnp.einsum("yxc,uvc->yxuv", q, k)
    for (y, x), (u, v) in [((0, 0), (1, 2)), ((2, 3), (0, 1))]:
        moved = products[y + 2, x + 3, u + 2, v + 3]
        np.testing.assert_allclose(products[y, x, u, v], moved, rtol=1e-4)
    # Rows and columns are told apart.
    assert abs(products[0, 0, 0, 2] - products[0, 0, 2, 0]) > 1e-3


def test_levels_share_the_finest_grid():
    np.testing.assert_array_equal(grid_positions(4, 16), [0, 4, 8, 12])
    # 1.5 and 4.5 go to the even neighbour.
    np.testing.assert_array_equal(grid_positions(4, 6), [0, 2, 3, 4])
    rotary = Rotary2D(WIDTH)
    angles = rotary.angles(PYRAMID, 16)
    # The first cell of every level is the first of the grid; a prefix stands where the whole does.
    np.testing.assert_array_equal(angles[[0, 1, 5]], 0)
    np.testing.assert_array_equal(rotary.angles(PYRAMID.prefix(2), 16), angles[:5])
    with pytest.raises(ValueError, match="multiple of 4 channels a head, got 10"):
        rotary.angles(PYRAMID, 10)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.resized_positions import ResizedPositions
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))
OTHER = ScalePyramid.from_patch_nums((1, 3))
WIDTH, CODE_DIM = 32, 4


@pytest.fixture(scope="module")
def setup():
    positions = ResizedPositions(WIDTH, side=6)
    var = VAR(PYRAMID, 5, CODE_DIM, 2, WIDTH, 2, positions=positions)
    inputs = jax.random.normal(jax.random.key(0), (2, PYRAMID.length, CODE_DIM))
    labels = jnp.array([3, 5])
    init = jax.jit(lambda key: sharding.unbox(var.init(key, inputs, labels)["params"]))
    # At initialisation the gates are nearly shut; open them, or nothing would be tested.
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), init(jax.random.key(1))
    )
    return var, params, inputs, labels


def added(params, pyramid, levels=None):
    return ResizedPositions(WIDTH, side=6).apply(
        {"params": {"position": params["position"]}},
        pyramid,
        levels or range(pyramid.num_levels),
        method="added",
    )


def test_a_level_has_the_same_positions_in_every_pyramid(setup):
    params = setup[1]
    own, other = added(params, PYRAMID), added(params, OTHER)
    np.testing.assert_array_equal(own[PYRAMID.level(2)], other[OTHER.level(1)])
    np.testing.assert_array_equal(own[PYRAMID.level(2)], added(params, PYRAMID, range(2, 3)))
    # A cell of the 3 by 3 level is the mean of four cells of the map.
    first = params["position"][:2, :2].mean((0, 1))
    np.testing.assert_allclose(own[PYRAMID.level(2)][0], first, rtol=1e-5, atol=1e-6)


def test_with_equal_position_tables_it_is_var(setup):
    var, params, inputs, labels = setup
    plain = VAR(PYRAMID, 5, CODE_DIM, 2, WIDTH, 2)
    tables = {"position": added(params, PYRAMID), "level": jnp.zeros((3, WIDTH))}

    @jax.jit
    def run(params, tables):
        mine, _ = var.apply({"params": params}, inputs, labels)
        theirs, _ = plain.apply({"params": {**params, **tables}}, inputs, labels)
        return mine, theirs

    mine, theirs = run(params, tables)
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_one_set_of_parameters_serves_another_pyramid(setup):
    var, params, inputs, labels = setup

    @jax.jit
    def run(params, inputs):
        return var.apply({"params": params}, inputs, labels, pyramid=OTHER)[0]

    hidden = run(params, inputs[:, : OTHER.length])
    assert hidden.shape == (2, OTHER.length, WIDTH)
    # Level 0 sees no other, so it does not know how the schedule goes on.
    own, _ = jax.jit(lambda p: var.apply({"params": p}, None, labels, levels=range(1)))(params)
    np.testing.assert_allclose(hidden[:, :1], own, rtol=1e-5, atol=1e-5)

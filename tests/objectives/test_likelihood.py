import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.context import OwnScale
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.objectives.curriculum import Stage, TrainedLevels, progressive_stages
from var_jax.objectives.likelihood import Likelihood
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))


@pytest.fixture(scope="module")
def setup():
    codec = ResidualVQ(PYRAMID, 16, 4)
    var = VAR(PYRAMID, 5, 4, depth=1, width=32, num_heads=2)
    network = Network(var, CategoricalHead(16, 32, init_factor=5.0))
    objective = Likelihood(network, VQVAE(codec, 1, 8, (1,), 1, False, norm_groups=4))

    def init():
        frozen = {
            name: part.init(jax.random.key(0)) for name, part in objective.frozen_parts().items()
        }
        return sharding.unbox((objective.init_params(jax.random.key(1)), frozen))

    params, frozen = jax.jit(init)()
    batch = {
        "tokens": jax.random.randint(jax.random.key(2), (4, PYRAMID.length), 0, 16),
        "label": jnp.array([0, 1, 2, 5]),
    }
    return objective, params, frozen, batch


def evaluate(objective, params, frozen, batch, step=0):
    return jax.jit(objective.loss)(params, frozen, (), batch, None, jnp.int32(step))


def test_the_levels_add_up_to_the_mean(setup):
    objective, *rest = setup
    value, aux = evaluate(objective, *rest)
    sizes = np.array(PYRAMID.sizes) / PYRAMID.length
    np.testing.assert_allclose((aux.metrics["loss_level"] * sizes).sum(), value, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["loss_mean"], value, rtol=1e-5)
    assert aux.metrics["loss_last"] == aux.metrics["loss_level"][-1]
    weighted = (aux.metrics["accuracy_level"] * sizes).sum()
    np.testing.assert_allclose(aux.metrics["accuracy_mean"], weighted, rtol=1e-5)


def test_a_progressive_stage_weighs_its_levels_as_the_whole_does(setup):
    objective, *rest = setup
    _, full = evaluate(objective, *rest)
    levels = TrainedLevels(PYRAMID.prefix(2), whole=PYRAMID)
    stage = dataclasses.replace(objective, trained=levels)
    value, aux = evaluate(stage, *rest)
    levels = np.asarray(full.metrics["loss_level"])
    np.testing.assert_allclose(aux.metrics["loss_level"], levels[:2], rtol=1e-4)
    np.testing.assert_allclose(value, (levels[0] + 4 * levels[1]) / 14, rtol=1e-4)
    ramp = TrainedLevels(PYRAMID.prefix(2), 10, 4, whole=PYRAMID)
    value, _ = evaluate(dataclasses.replace(objective, trained=ramp), *rest, step=11)
    np.testing.assert_allclose(value, (levels[0] + 0.5 * 4 * levels[1]) / 14, rtol=1e-4)
    alone = dataclasses.replace(objective, trained=TrainedLevels(PYRAMID.prefix(2)))
    value, _ = evaluate(alone, *rest)
    np.testing.assert_allclose(value, (levels[0] + 4 * levels[1]) / 5, rtol=1e-4)


def test_levels_that_train_alone_add_up_to_all(setup):
    objective, params, frozen, batch = setup
    network = objective.network
    alone = dataclasses.replace(network, transformer=network.transformer.clone(context=OwnScale()))
    objective = dataclasses.replace(objective, network=alone)

    def gradient(levels):
        trained = None if levels is None else TrainedLevels(PYRAMID, levels=levels)
        loss = dataclasses.replace(objective, trained=trained).loss

        @jax.jit
        def run(params):
            return jax.value_and_grad(loss, has_aux=True)(params, frozen, (), batch, None, 0)

        return run(params)

    ((value, aux), grads), *parts = map(gradient, (None, range(2), range(2, 3)))
    np.testing.assert_allclose(sum(part[0][0] for part in parts), value, rtol=1e-5)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-4, atol=1e-6),
        grads,
        parts[0][1],
        parts[1][1],
    )
    # What is reported goes by the number of the level.
    coarse, fine = (part[0][1].metrics for part in parts)
    levels = aux.metrics["loss_level"]
    np.testing.assert_allclose(coarse["loss_level"], levels[:2], rtol=1e-5)
    np.testing.assert_allclose(fine["loss_level/2"], levels[2], rtol=1e-5)
    assert "loss_level" not in fine and fine["loss_last"] == fine["loss_mean"]


def test_stages_of_the_official_schedule():
    assert progressive_stages(10, 100, 5, 0.0, 4) == (Stage(0, 10),)
    stages = progressive_stages(10, 1000, 20, 0.8, 4)
    assert stages[0] == Stage(0, 5) and stages[-1].num_levels == 10
    assert [s.num_levels for s in stages] == [5, 6, 7, 8, 9, 10]
    assert stages[-1].start <= 800
    with pytest.raises(ValueError, match="until"):
        progressive_stages(10, 100, 5, 1.5, 4)
    with pytest.raises(ValueError, match="first"):
        progressive_stages(10, 100, 5, 0.5, 10)

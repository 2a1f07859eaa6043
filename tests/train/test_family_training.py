"""What a pod asks of every method: meshes change no loss, resuming no bit, batches no image."""

import jax
import methods
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import var_jax
from var_jax import build
from var_jax.build import experiment
from var_jax.checkpoint import Checkpointer
from var_jax.parallel import sharding
from var_jax.plan import programs
from var_jax.train.metrics import read_metrics

STEPS = methods.SETTINGS["train.num_steps"]


@pytest.fixture(scope="module", autouse=True)
def programs_kept(tmp_path_factory):
    """A program is compiled once."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def mesh_of(data=1, fsdp=1, tensor=1):
    devices = jax.devices()[: data * fsdp * tensor]
    return sharding.make_mesh(data, fsdp, tensor, devices=devices)


def updates(method, mesh):
    """Parameters after three training steps from random ones, and the loss of each."""
    config = methods.smallest(method)
    program = programs.train_step(config, mesh)
    rng = np.random.default_rng(0)

    def fill(x, deviation=0.2):
        return rng.normal(0, deviation, x.shape).astype(x.dtype)

    state, frozen, batch = program.args
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    deviation = methods.DEVIATIONS.get(method, 0.2)
    args = (
        zeros.replace(params=jax.tree.map(lambda x: fill(x, deviation), state.params)),
        jax.tree.map(fill, frozen),
        methods.batch(config),
    )
    state, frozen, batch = jax.tree.map(
        lambda x, to: jax.device_put(x, to.sharding), args, program.args
    )
    losses = []
    with sharding.activate(mesh, program.preset):
        for _ in range(3):
            state, metrics = program.function(state, frozen, batch)
            losses.append(float(metrics["loss"]))
    return jax.device_get(state.params), losses


@pytest.mark.parametrize("method", methods.each(methods.TRAINED[1:]))  # VAR: in test_meshes.py.
def test_a_mesh_of_all_axes_trains_as_one_device_does(method):
    one, expected = updates(method, mesh_of())
    other, losses = updates(method, mesh_of(2, 2, 2))
    assert np.ptp(losses) > 1e-3
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), other, one)


def saved(workdir):
    """Parameters, and what the optimizer keeps of them, in the last checkpoint."""
    with Checkpointer(workdir, read_only=True) as reader:
        found = [reader.restore_params(p, as_numpy=True) for p in ("params", "opt_state")]
    assert {step for _, _, step in found} == {STEPS}
    return [part for part, _, _ in found]


@pytest.mark.parametrize("method", methods.each(methods.TRAINED))
def test_resumed_is_uninterrupted_to_the_bit(tmp_path, monkeypatch, method):
    monkeypatch.setattr(experiment, "make_mesh", lambda config: mesh_of())
    given = methods.prepare(tmp_path, method)

    def train(name, should_stop=lambda step: False):
        config = methods.smallest(method, given)
        return build.run(config, str(tmp_path / name), "transformer", should_stop)

    assert train("straight") and not train("stopped", lambda step: step == 2) and train("stopped")
    workdirs = [tmp_path / name for name in ("straight", "stopped")]
    jax.tree.map(np.testing.assert_array_equal, *map(saved, workdirs))
    straight, stopped = ([m["loss"] for m in read_metrics(w) if "loss" in m] for w in workdirs)
    assert straight == stopped and len(straight) == STEPS


@pytest.mark.parametrize("method", methods.each(methods.METHODS))
def test_an_image_is_the_same_in_any_batch(tmp_path, method):
    methods.prepare(tmp_path, method)
    model = var_jax.load(tmp_path / "model", mesh=mesh_of())
    asked = methods.ASKED.get(method, [3, 1, 4, 1])
    images = model.sample(asked)
    assert images.dtype == np.uint8 and images.shape == (4, *model.image_shape)
    assert len({image.tobytes() for image in images}) == 4
    others = model.sample([*asked[1:], asked[0]])[[3, 0, 1, 2]]
    assert np.abs(images.astype(int) - others).max() <= 1

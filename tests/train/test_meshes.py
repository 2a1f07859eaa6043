"""Training the transformer of a config: meshes and microbatches change no number and no byte."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load

from var_jax import build
from var_jax.checkpoint import Checkpointer
from var_jax.parallel import sharding
from var_jax.plan import programs
from var_jax.train import loop, optim
from var_jax.train.experiment import Experiment
from var_jax.train.metrics import read_metrics
from var_jax.train.step import example_keys

BATCH, STEPS = 16, 20

#: name -> number of devices, mesh, sharding preset, microbatches.
LAYOUTS = {
    "one": (1, dict(data=1), "replicated", 1),
    "8x1x1": (8, dict(data=8), "replicated", 1),
    "2x4x1": (8, dict(data=2, fsdp=4), "fsdp", 1),
    "2x2x2": (8, dict(data=2, fsdp=2, tensor=2), "fsdp_tensor", 1),
    "one, 4 parts": (1, dict(data=1), "replicated", 4),
}


def small_config():
    """configs/mnist5k.py with three levels, four heads and every kind of dropout."""
    config = load("mnist5k", "smallest")
    config.patch_nums = (1, 2, 3)
    config.data.image_size = 24
    config.model.update(depth=2, width=64, num_heads=4, scan_unroll=1, adaln_gamma_init=0.1)
    config.model.update(drop_path_rate=0.3, class_drop_rate=0.2, label_smoothing=0.1)
    config.train.update(num_steps=STEPS, batch_size=BATCH, ema_decay=0.9, log_every=1)
    config.train.optimizer.update(schedule="lin0", warmup_steps=5)
    return config


def mesh_of(num_devices, **axes):
    return sharding.make_mesh(**axes, devices=jax.devices()[:num_devices])


@pytest.fixture(scope="module")
def tokenizer():
    """With its codec's parameters only; tokens of samples, each its class's picture and noise."""
    config = small_config()
    module = build.tokenizer(config)
    codec = module.codec
    shape = (*codec.pyramid.grid, codec.code_dim)
    classes = jax.random.normal(jax.random.key(1), (10, *shape))
    noise = jax.random.normal(jax.random.key(2), (BATCH * STEPS, *shape))
    features = classes[np.arange(BATCH * STEPS) % 10] + 0.3 * noise
    init = jax.jit(lambda key: codec.init(key, features[:1], method="encode"))
    params = sharding.unbox(init(jax.random.key(0))["params"])
    tokens = jax.jit(lambda f: codec.apply({"params": params}, f, method="encode"))(features)
    assert len(np.unique(tokens)) > 16
    params = jax.device_get({"codec": params})
    return build.LoadedTokenizer(module, params, "", config), np.asarray(tokens)


def train(workdir, tokenizer, layout):
    """The whole training; the final state and the loss of each step."""
    num_devices, axes, preset, microbatches = LAYOUTS[layout]
    config = small_config()
    config.train.microbatches = microbatches
    loaded, tokens = tokenizer
    objective = build.objective(config, loaded, from_images=False)
    settings = build.train_settings(config, "train")
    optimizer = build.optimizer_config(config.train.optimizer, "train.optimizer", BATCH)

    def batches(start):
        for step in range(start, STEPS):
            index = np.arange(step * BATCH, (step + 1) * BATCH)
            yield {"tokens": tokens[index], "label": (index % 10).astype(np.int32), "index": index}

    experiment = Experiment(
        name="transformer",
        objective_at=objective.at,
        optimizer=optim.make_optimizer(optimizer, STEPS),
        frozen={"tokenizer": loaded.params},
        batches=batches,
        settings=settings,
        mesh=mesh_of(num_devices, **axes),
        preset=preset,
        metadata={"kind": "test"},
    )
    state = loop.train(experiment, workdir)
    return state, [line["loss"] for line in read_metrics(workdir)]


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory):
    """Workdir, final state and losses of a layout, each trained once."""
    done = {}

    def run(layout):
        if layout not in done:
            workdir = tmp_path_factory.mktemp("run")
            done[layout] = (workdir, *train(workdir, tokenizer, layout))
        return done[layout]

    return run


@pytest.mark.parametrize(
    "layout",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("8x1x1", "2x4x1")),
        *("2x2x2", "one, 4 parts"),
    ],
)
def test_twenty_steps_are_the_same_on_every_mesh_and_for_microbatches(runs, layout):
    _, one, one_losses = runs("one")
    _, other, losses = runs(layout)
    assert int(other.step) == len(losses) == STEPS and one_losses[-1] < one_losses[0] - 0.05
    np.testing.assert_allclose(losses, one_losses, rtol=0, atol=1e-5)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
            getattr(other, name),
            getattr(one, name),
        )
    kernel = other.params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    _, axes, preset, _ = LAYOUTS[layout]
    parts = 1 if preset == "replicated" else axes.get("fsdp", 1) * axes.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size == kernel.size // parts


def test_dropout_is_on_and_follows_the_seed(runs, tokenizer):
    """Or the meshes would agree on it without a proof."""
    loaded, tokens = tokenizer
    objective = build.objective(small_config(), loaded, from_images=False)
    _, state, _ = runs("one")
    batch = {"tokens": tokens[:BATCH], "label": np.arange(BATCH) % 10}
    frozen = {"tokenizer": loaded.params}

    @jax.jit
    def loss(index):
        keys = None if index is None else example_keys(0, index)
        return objective.per_token(state.params, frozen, batch, keys)[1]["loss"]

    plain, first, second = (np.asarray(loss(i)) for i in (None, np.arange(16), np.arange(16, 32)))
    assert np.abs(first - plain).max() > 1e-3 and np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(
    "num_devices, axes, preset",
    [
        (1, dict(data=1), "replicated"),
        (2, dict(data=1, tensor=2), "fsdp_tensor"),
        (4, dict(data=2, fsdp=2), "fsdp"),
    ],
)
def test_saved_on_eight_devices_restored_on_fewer_with_other_axes(runs, num_devices, axes, preset):
    workdir, saved, _ = runs("2x2x2")
    config = small_config()
    config.sharding = preset
    target = programs.train_step(config, mesh_of(num_devices, **axes)).args[0]
    with Checkpointer(workdir, read_only=True) as reader:
        state, _, step = reader.restore(target)
    assert step == STEPS
    jax.tree.map(np.testing.assert_array_equal, state, saved)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, target)


def activations(active):
    """Shapes on one device in the compiled forward pass of a batch that all devices have whole."""
    var = build.network(small_config()).transformer
    mesh = mesh_of(8, data=2, fsdp=2, tensor=2)
    inputs = jax.ShapeDtypeStruct((BATCH, var.pyramid.length, var.code_dim), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    with sharding.activate(mesh, "fsdp_tensor"):
        boxed = jax.eval_shape(var.init, jax.random.key(0), inputs, labels)
    variables = sharding.abstract_state(boxed, mesh, "fsdp_tensor")
    context = sharding.activate(mesh, "fsdp_tensor") if active else contextlib.nullcontext()
    with context:
        text = jax.jit(var.apply).lower(variables, inputs, labels).compile().as_text()
    return {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}


def test_constraints_on_activations_are_in_force_in_the_compiled_transformer():
    length, heads, hidden = 14, 4, 256
    whole = {(BATCH, heads // 2, length, length), (BATCH, length, hidden // 2)}
    parts = {(BATCH // 4, *shape[1:]) for shape in whole}
    constrained, free = activations(active=True), activations(active=False)
    assert parts <= constrained and not whole & constrained
    # Left to itself the compiler takes the layout of the inputs: attention over the whole batch.
    assert whole <= free and not parts & free

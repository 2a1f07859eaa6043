"""The programs of a config with the shapes of their arguments: to compile, to plan, to time."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from var_jax import build
from var_jax.decoding.generate import generate
from var_jax.decoding.images import sampling_params
from var_jax.parallel import sharding
from var_jax.plan.flops import forward_flops
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train import optim
from var_jax.train.state import create
from var_jax.train.step import jit_train_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function that is ready to be lowered.

    Attributes:
      function: `jax.jit(...)` of it.
      args: its arguments, ShapeDtypeStructs with shardings on the mesh.
      mesh: the devices.
      preset: sharding rules to be in force while it is traced.
      images: images of one run.
      model_flops: useful operations of one run by the model's formula, over all devices; 0
        where there is none.
      donates: the first argument is used up, and the first result takes its place.
    """

    function: Any
    args: tuple[Any, ...]
    mesh: Mesh
    preset: Any
    images: int
    model_flops: float = 0.0
    donates: bool = False


def train_step(
    config: ConfigDict, mesh: Mesh, batch_size: int = 0, from_images: bool = False
) -> Program:
    """One update of the transformer: (state, frozen, batch) -> (state, metrics).

    Args:
      config: complete; model.num_classes 0 stands for 1000 here.
      mesh: of devices, or of a topology's.
      batch_size: instead of the config's; 0 keeps it.
      from_images: encode images in the step instead of reading tokens.

    Raises:
      ValueError: a dimension does not divide by its mesh axes.
    """
    settings = build.train_settings(config, "train")
    batch_size = batch_size or settings.batch_size
    sharding.check_batch(batch_size, mesh, settings.microbatches)
    loaded, objective = _model(config, mesh, cached=not from_images)
    optimizer_config = build.optimizer_config(config.train.optimizer, "train.optimizer", batch_size)
    optimizer = optim.make_optimizer(optimizer_config, settings.num_steps)

    batch = {"label": _rows(mesh, batch_size), "index": _rows(mesh, batch_size)}
    if from_images:
        shape = loaded.module.image_shape
        batch["image"] = _rows(mesh, batch_size, *shape, dtype=jnp.uint8)
    else:
        batch["tokens"] = _rows(mesh, batch_size, objective.var.pyramid.length)
    frozen = loaded.params if from_images else {"codec": loaded.params["codec"]}
    program = _update(config, mesh, settings, objective, optimizer, frozen, batch)
    flops = 3 * batch_size * forward_flops(objective.var, objective.head.vocab_size)
    return dataclasses.replace(program, model_flops=flops)


def train_tokenizer_step(config: ConfigDict, mesh: Mesh, batch_size: int = 0) -> Program:
    """One update of tokenizer and discriminator: (state, frozen, batch) -> (state, metrics).

    Args and errors as for `train_step`.
    """
    settings = build.train_settings(config, "tokenizer_train")
    batch_size = batch_size or settings.batch_size
    sharding.check_batch(batch_size, mesh, settings.microbatches)
    objective, frozen, optimizers = build.vqgan(config)
    optimizer = optim.make_group_optimizer(optimizers, settings.num_steps)
    shape = objective.tokenizer.image_shape
    batch = {
        "image": _rows(mesh, batch_size, *shape, dtype=jnp.uint8),
        "index": _rows(mesh, batch_size),
    }
    frozen = sharding.abstract_state(frozen, mesh, "replicated")
    return _update(config, mesh, settings, objective, optimizer, frozen, batch)


def sample(config: ConfigDict, mesh: Mesh, batch_size: int) -> Program:
    """Generating and decoding: (`sampling_params`, frozen, labels, seeds) -> images.

    Args and errors as for `train_step`; the sampler is the config's.
    """
    sharding.check_batch(batch_size, mesh)
    loaded, objective = _model(config, mesh, cached=True)
    module, sampler = loaded.module, build.sampler(config)
    with sharding.activate(mesh, config.sharding):
        boxed = jax.eval_shape(
            lambda key: sampling_params(objective.var, objective.init_params(key)),
            jax.random.key(0),
        )
    params = sharding.abstract_state(boxed, mesh, config.sharding)

    def run(params, frozen, labels, seeds):
        keys = jax.vmap(jax.random.key)(seeds)
        model = (objective.var, objective.head, module.codec, params, frozen["codec"])
        result = generate(*model, labels, keys, sampler)
        return module.apply({"params": frozen}, result.features, method="decode")

    function = jax.jit(
        run,
        out_shardings=sharding.batch_sharding(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )
    numbers = _rows(mesh, batch_size)
    args = (params, loaded.params, numbers, numbers)
    return Program(function, args, mesh, config.sharding, batch_size)


def encode(config: ConfigDict, mesh: Mesh, batch_size: int) -> Program:
    """Images to tokens: (params, images in [-1, 1]) -> int32 [B, L]."""
    module, params = _tokenizer(config, mesh)
    images = _rows(mesh, batch_size, *module.image_shape, dtype=jnp.float32)
    return _tokenizer_program(config, mesh, module, "encode", (params, images))


def decode(config: ConfigDict, mesh: Mesh, batch_size: int) -> Program:
    """Tokens to images: (params, int32 [B, L]) -> images in [-1, 1]."""
    module, params = _tokenizer(config, mesh)
    tokens = _rows(mesh, batch_size, module.codec.pyramid.length)
    return _tokenizer_program(config, mesh, module, "decode_tokens", (params, tokens))


def made_arguments(program: Program) -> tuple[Any, ...]:
    """Arrays for a program, made where they belong: floats spread over [0, 0.02), integers 0, 1."""
    leaves, structure = jax.tree.flatten(program.args)

    def make():
        made = []
        for leaf in leaves:
            # Multiples of the golden ratio, modulo 1: cheap to compile, and no two rows alike.
            spread = jnp.mod(jnp.arange(leaf.size, dtype=jnp.float32) * 0.618034, 1.0)
            spread = spread.reshape(leaf.shape)
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                made.append((0.02 * spread).astype(leaf.dtype))
            else:
                made.append((2 * spread).astype(leaf.dtype))
        return made

    made = jax.jit(make, out_shardings=[x.sharding for x in leaves])()
    return jax.tree.unflatten(structure, made)


def _update(config, mesh, settings, objective, optimizer, frozen, batch) -> Program:
    """The training step of an objective, its state laid over the mesh by the config's preset."""

    def init(key):
        return create(objective, optimizer, key, settings.ema_decay > 0)

    with sharding.activate(mesh, config.sharding):
        boxed = jax.eval_shape(init, jax.random.key(0))
    state = sharding.abstract_state(boxed, mesh, config.sharding)
    step = make_train_step(
        objective, optimizer, config.seed, settings.microbatches, settings.ema_decay
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    function = jit_train_step(step, shardings, mesh)
    images = batch["index"].shape[0]
    args = (state, frozen, batch)
    return Program(function, args, mesh, config.sharding, images, donates=True)


def _tokenizer_program(config, mesh, module, method: str, args) -> Program:
    batch_size = args[1].shape[0]
    sharding.check_batch(batch_size, mesh)
    function = jax.jit(
        lambda params, x: module.apply({"params": params}, x, method=method),
        out_shardings=sharding.batch_sharding(mesh),
    )
    return Program(function, args, mesh, "replicated", batch_size)


def _model(config: ConfigDict, mesh: Mesh, cached: bool):
    config.model.num_classes = config.model.num_classes or 1000
    module, params = _tokenizer(config, mesh)
    loaded = build.LoadedTokenizer(module, params, "", config)
    _, objective = build.likelihood(config, loaded, cached=cached)
    return loaded, objective


def _tokenizer(config: ConfigDict, mesh: Mesh) -> tuple[VQVAE, Any]:
    """The tokenizer and its abstract parameters, a whole copy on each device."""
    module = build.tokenizer(config)
    image = jnp.zeros((1, *module.image_shape))
    with sharding.activate(mesh, "replicated"):
        boxed = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    return module, sharding.abstract_state(boxed, mesh, "replicated")


def _rows(mesh: Mesh, batch_size: int, *shape: int, dtype: Any = jnp.int32) -> Any:
    rows = sharding.batch_sharding(mesh)
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=rows)

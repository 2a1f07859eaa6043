"""The programs of a config with the shapes of their arguments: to compile, to plan, to time."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from var_jax import build
from var_jax.adapters.base import Adapted
from var_jax.build.sections import tuples
from var_jax.decoding.images import jit_sampling
from var_jax.evaluation.during_training import jit_reconstruction
from var_jax.evaluation.inception.extractor import jit_features
from var_jax.evaluation.inception.weights import abstract_params as inception_params
from var_jax.evaluation.token_likelihood import jit_token_sums
from var_jax.fields import Field
from var_jax.network import sampling_params
from var_jax.objectives.base import NetworkObjective
from var_jax.parallel import sharding
from var_jax.plan.flops import training_flops
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train import optim
from var_jax.train.state import TrainState, create
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
      beside: what lies on the devices while it runs, be it an argument or not; ShapeDtypeStructs,
        those of arguments the same objects.
    """

    function: Any
    args: tuple[Any, ...]
    mesh: Mesh
    preset: Any
    images: int
    model_flops: float = 0.0
    donates: bool = False
    beside: Any = ()


def train_step(
    config: ConfigDict,
    mesh: Mesh,
    batch_size: int = 0,
    from_images: bool = False,
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
    model = _model(config, mesh, cached=not from_images)
    batch = _batch(mesh, batch_size, model.objective)
    objective = model.objective
    optimizer = _optimizer(config, settings, batch_size)
    frozen = build.abstract_frozen(objective, config, mesh)
    trained = build.trained_patterns(config, objective)
    program = _update(config, mesh, settings, objective, optimizer, frozen, batch, trained)
    flops = batch_size * training_flops(objective)
    beside = beside_training(config, mesh, model)
    return dataclasses.replace(program, model_flops=flops, beside=beside)


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
        "index": _rows(mesh, batch_size, dtype=jnp.uint32),
    }
    frozen = sharding.abstract_state(frozen, mesh, "replicated")
    return _update(config, mesh, settings, objective, optimizer, frozen, batch)


def sample(config: ConfigDict, mesh: Mesh, batch_size: int) -> Program:
    """Generating and decoding for scores: `jit_sampling` with `sampling_params`.

    Args and errors as for `train_step`; the sampler is the config's.
    """
    sharding.check_batch(batch_size, mesh)
    model = _model(config, mesh)
    objective = model.objective
    with sharding.activate(mesh, config.sharding):
        boxed = jax.eval_shape(
            lambda key: sampling_params(objective.network, objective.network.init_params(key)),
            jax.random.key(0),
        )
    params = sharding.abstract_state(boxed, mesh, config.sharding)
    return _sampling(config, mesh, model, params, batch_size)


def evaluation(config: ConfigDict, mesh: Mesh, from_images: bool = False) -> dict[str, Program]:
    """What the evaluators of a transformer's training compile, by what it is for.

    See `build.evaluation_settings`. The small FID is among them once config.evaluation.fid is in
    the config, whether or not its files are named yet. Two that differ in nothing are one.

    Args:
      config: complete; model.num_classes 0 stands for 1000 here.
      mesh: of devices, or of a topology's.
      from_images: the training reads images, not tokens.

    Raises:
      ValueError: a dimension does not divide by its mesh axes.
    """
    settings = build.train_settings(config, "train")
    chosen = build.evaluation_settings(config, "train")
    model = _model(config, mesh, cached=not from_images)
    optimizer = _optimizer(config, settings, settings.batch_size)
    trained = build.trained_patterns(config, model.objective)
    state = _state(config, mesh, settings, model.objective, optimizer, trained)
    objective, params = model.objective, state.evaluation_params()
    if isinstance(objective, Adapted):
        # Evaluators see the network that the adapter makes.
        objective = objective.objective
        boxed = jax.eval_shape(objective.network.init_params, jax.random.key(0))
        params = sharding.abstract_state(boxed, mesh, config.sharding)
    fid = _small_fid(config)
    frozen = build.abstract_frozen(model.objective, config, mesh)
    compared = [part for name, part in frozen.items() if name != "tokenizer"]
    # Inception, which its own program takes as an argument, comes last.
    beside = (state, *compared, *beside_training(config, mesh, model))

    found: dict[str, Program] = {}
    if chosen.likelihood:
        size = settings.batch_size
        batch = _batch(mesh, size, model.objective)
        batch["mask"] = _rows(mesh, size, dtype=jnp.bool_)
        function = jit_token_sums(objective, mesh)
        args = (params, frozen, batch)
        found["likelihood"] = Program(function, args, mesh, config.sharding, size)
    sizes: dict[int, list[str]] = {}
    _, columns = build.shown_samples(chosen, model.objective.network.transformer)
    if columns:
        size = sharding.padded_batch(columns * chosen.samples_per_class, mesh)
        sizes.setdefault(size, []).append("samples")
    if fid:
        size = sharding.padded_batch(min(fid.batch_size, fid.num_samples), mesh)
        sizes.setdefault(size, []).append("samples of the FID")
    for size, names in sizes.items():
        found[" and ".join(names)] = _sampling(config, mesh, model, params, size)
    shape = model.tokenizer.module.image_shape
    if chosen.reconstructions:
        size = settings.batch_size
        function = jit_reconstruction(model.tokenizer.module, mesh)
        args = (model.tokenizer.params, _rows(mesh, size, *shape, dtype=jnp.uint8))
        found["reconstruction"] = Program(function, args, mesh, config.sharding, size)
    found = {name: dataclasses.replace(p, beside=beside) for name, p in found.items()}
    if fid:
        # Inception is an argument of it.
        size = sharding.padded_batch(min(fid.batch_size, fid.num_samples), mesh)
        images = _rows(mesh, size, *shape, dtype=jnp.uint8)
        args = (_laid(inception_params(), sharding.replicated_sharding(mesh)), images)
        function = jit_features(("2048",), sharding.batch_sharding(mesh))
        found["features of the FID"] = Program(
            function, args, mesh, "replicated", size, beside=beside[:-1]
        )
    return found


def beside_training(config: ConfigDict, mesh: Mesh, model: _Model | None = None) -> tuple[Any, ...]:
    """What lies on the devices for the evaluators while a transformer trains: the tokenizer and,
    for the FID, Inception."""
    tokenizer = (model or _model(config, mesh)).tokenizer.params
    if not _small_fid(config):
        return (tokenizer,)
    return tokenizer, _laid(inception_params(), sharding.replicated_sharding(mesh))


def _small_fid(config: ConfigDict) -> build.FIDSettings | None:
    """config.evaluation.fid, also where its files are not named yet."""
    fid = tuples(config.get("evaluation", {})).get("fid")
    return build.FIDSettings(**{"inception": "", "reference": ""} | fid) if fid else None


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


def _sampling(config, mesh, model: _Model, params, batch_size: int) -> Program:
    sampling = build.load_decoder(config)
    function = jit_sampling(
        model.objective.network,
        model.tokenizer.module,
        sampling.decoder,
        mesh,
    )
    everywhere = sharding.replicated_sharding(mesh)
    asked = model.objective.network.transformer.conditioning()
    args = (
        params,
        {"tokenizer": model.tokenizer.params, "decoder": _laid(sampling.params, everywhere)},
        asked.read({f.name: _field(mesh, batch_size, f) for f in asked.fields}),
        jax.ShapeDtypeStruct((), jnp.uint32, sharding=everywhere),
        _rows(mesh, batch_size, dtype=jnp.uint32),
    )
    return Program(function, args, mesh, config.sharding, batch_size)


def _optimizer(config, settings, batch_size: int):
    chosen = build.optimizer_config(config.train.optimizer, "train.optimizer", batch_size)
    return optim.make_optimizer(chosen, settings.num_steps)


def _state(config, mesh, settings, objective, optimizer, trained=()) -> TrainState:
    """The abstract state of a training, laid over the mesh by the config's preset."""

    def init(key):
        return create(objective, optimizer, key, settings.ema_decay > 0, trained)

    with sharding.activate(mesh, config.sharding):
        boxed = jax.eval_shape(init, jax.random.key(0))
    return sharding.abstract_state(boxed, mesh, config.sharding)


def _update(config, mesh, settings, objective, optimizer, frozen, batch, trained=()) -> Program:
    """The training step of an objective."""
    state = _state(config, mesh, settings, objective, optimizer, trained)
    step = make_train_step(
        objective, optimizer, config.seed, settings.microbatches, settings.ema_decay, trained
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


@dataclasses.dataclass(frozen=True)
class _Model:
    """What trains a transformer, and its tokenizer, whose abstract parameters lie as those of a run
    do."""

    tokenizer: build.LoadedTokenizer
    objective: NetworkObjective


def _model(config: ConfigDict, mesh: Mesh, cached: bool = True) -> _Model:
    config.model.num_classes = config.model.num_classes or 1000
    module, params = _tokenizer(config, mesh, config.get("frozen_sharding", "replicated"))
    loaded = build.LoadedTokenizer(module, params, "", config)
    objective = build.objective(config, loaded, from_images=not cached)
    return _Model(loaded, objective.at(build.train_settings(config, "train").num_steps))


def _tokenizer(
    config: ConfigDict, mesh: Mesh, preset: str | sharding.Rules = "replicated"
) -> tuple[VQVAE, Any]:
    """The tokenizer and its abstract parameters."""
    module = build.tokenizer(config)
    boxed = jax.eval_shape(module.init_params, jax.random.key(0))
    return module, sharding.abstract_state(boxed, mesh, preset)


def _batch(mesh: Mesh, size: int, objective: NetworkObjective) -> dict[str, Any]:
    """What a batch of the objective holds."""
    fields = {field.name: _field(mesh, size, field) for field in objective.fields}
    return {**fields, "index": _rows(mesh, size, dtype=jnp.uint32)}


def _field(mesh: Mesh, size: int, field: Field) -> Any:
    return _rows(mesh, size, *field.shape, dtype=jnp.dtype(field.dtype))


def _laid(tree: Any, layout: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree)


def _rows(mesh: Mesh, batch_size: int, *shape: int, dtype: Any = jnp.int32) -> Any:
    rows = sharding.batch_sharding(mesh)
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=rows)

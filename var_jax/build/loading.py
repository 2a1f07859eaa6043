"""Checkpoints, by the config that they were saved with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from var_jax import checkpoint
from var_jax.build.adapters import abstract_adapter, adapter_of, restore_base
from var_jax.build.data import resolve_paths
from var_jax.build.modules import decoder, network, tokenizer, tokenizer_section
from var_jax.build.sections import ConfigError, read, tuples
from var_jax.decoding.base import Decoder
from var_jax.network import Network, sampling_params
from var_jax.parallel import arrays, sharding
from var_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer from a checkpoint.

    Attributes:
      module: what `params` belongs to.
      params: its parameters, float32; the moving average where the run kept one. On the host
        (NumPy) until they are placed.
      fingerprint: of params.
      config: of the run that trained it.
    """

    module: VQVAE
    params: Any
    fingerprint: str
    config: ConfigDict

    def on(self, mesh: Mesh, preset: str | sharding.Rules = "replicated") -> LoadedTokenizer:
        """The same with its parameters on a mesh, to be passed to all that use them there.

        Raises:
          ValueError: the preset does not fit the mesh; see `sharding.abstract_shardings`.
        """
        boxed = jax.eval_shape(self.module.init_params, jax.random.key(0))
        shardings = sharding.abstract_shardings(boxed, mesh, preset)
        return dataclasses.replace(self, params=arrays.place(self.params, shardings))


def load_tokenizer(path: epath.PathLike) -> LoadedTokenizer:
    """Reads a tokenizer checkpoint: a run's workdir, or a converted one.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is not a tokenizer, or its parameters are not those it was saved with.
    """
    params, metadata = load_params(path, "tokenizer", "tokenizer")
    fingerprint = checkpoint.fingerprint(params)
    config = ConfigDict(metadata["config"])
    return LoadedTokenizer(tokenizer(config), params, fingerprint, config)


@dataclasses.dataclass(frozen=True)
class LoadedTransformer:
    """A transformer from a checkpoint, with the tokenizer that it speaks to.

    Attributes:
      network: modules.
      params: {'transformer': ..., 'head': ...}, on the mesh.
      tokenizer: its tokenizer, its parameters on the mesh.
      config: of the run that trained it.
      step: of the checkpoint.
      metadata: what else the checkpoint says.
      mesh, preset: where and how the parameters lie.
    """

    network: Network
    params: Any
    tokenizer: LoadedTokenizer
    config: ConfigDict
    step: int
    metadata: dict[str, Any]
    mesh: Mesh
    preset: str | sharding.Rules


def load_transformer(
    path: epath.PathLike,
    tokenizer_path: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    preset: str | sharding.Rules = "replicated",
    for_sampling: bool = False,
) -> LoadedTransformer:
    """Reads a transformer checkpoint, straight to where it is used, and the tokenizer beside it.

    Args:
      path: a run's workdir, or a converted one.
      tokenizer_path: another place of the same tokenizer; by default `path`/tokenizer.
      mesh: None is one device of this process.
      preset: how the parameters are cut.
      for_sampling: see `sampling_params`; else all parameters are float32.

    Raises:
      FileNotFoundError: one of them is missing.
      ValueError: not a transformer, or another tokenizer than the one it was trained with.
    """
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    with checkpoint.Checkpointer(path, read_only=True) as reader:
        metadata, root = _metadata(reader, path, "transformer")
        loaded = load_tokenizer(tokenizer_path or epath.Path(path) / "tokenizer")
        expected = metadata["tokenizer_fingerprint"]
        if loaded.fingerprint != expected:
            raise ValueError(
                f"The tokenizer in {tokenizer_path or epath.Path(path) / 'tokenizer'} "
                f"({loaded.fingerprint[:12]}) is not the one that the transformer in {path} was "
                f"trained with ({expected[:12]}); its images would be noise. Give --tokenizer."
            )
        config = ConfigDict(metadata["config"])
        made = network(config)
        boxed = jax.eval_shape(made.init_params, jax.random.key(0))
        target = full = sharding.abstract_state(boxed, mesh, preset)
        if for_sampling:
            types = jax.eval_shape(lambda p: sampling_params(made, p), target)
            target = jax.tree.map(lambda x, t: x.update(dtype=t.dtype), target, types)
        adapter = adapter_of(metadata)
        if adapter is None:
            params, metadata, _ = reader.restore_params(root, target)
        else:
            own = abstract_adapter(adapter, made, mesh, preset)
            own, metadata, _ = reader.restore_params(root, own)

            def merge(own, base):
                params = adapter.apply(own, base)
                return sampling_params(made, params) if for_sampling else params

            layout = jax.tree.map(lambda x: x.sharding, target)
            params = jax.jit(merge, out_shardings=layout)(own, restore_base(path, metadata, full))
    return LoadedTransformer(
        made,
        params,
        loaded.on(mesh),
        config,
        int(metadata.get("step", 0)),
        metadata,
        mesh,
        preset,
    )


@dataclasses.dataclass(frozen=True)
class LoadedDecoder:
    """A decoder with the parameters of the networks that it holds beside the model.

    Attributes:
      decoder: modules and settings.
      params: of those networks by the name of the field, on the host (NumPy), see
        `sampling_params`; None where there are none.
      fingerprints: of the same parameters as they were saved.
    """

    decoder: Decoder
    params: dict[str, Any] | None = None
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load_decoder(
    config: ConfigDict,
    tokenizer_fingerprint: str = "",
    settings: Mapping[str, Any] | None = None,
) -> LoadedDecoder:
    """The decoder of config.sampling; where it holds networks, the config names their workdirs.

    Args:
      config: of the model; stays as it is.
      tokenizer_fingerprint: of the model's tokenizer; '' is not compared.
      settings: keys of config.sampling that are to be otherwise.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: one is no transformer, or speaks to another tokenizer; a schedule is asked for
        where every level has its own weight.
    """
    params, fingerprints = {}, {}
    if settings:
        config = config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            config.sampling.update(settings)
            resolve_paths(config)
        weights = config.sampling.get("cfg")
        if "cfg_schedule" in settings and isinstance(weights, list | tuple):
            raise ValueError(
                f"cfg_schedule is {settings['cfg_schedule']!r}, but cfg is {tuple(weights)}, one "
                "weight for each level; give one strength, or no schedule."
            )

    def network_of(name: str, path: str) -> Network:
        found, metadata = load_params(path, "transformer", None)
        theirs = metadata.get("tokenizer_fingerprint", "")
        if tokenizer_fingerprint and theirs != tokenizer_fingerprint:
            raise ValueError(
                f"config.sampling.decoder.{name} is {path}, which was trained with the tokenizer "
                f"{theirs[:12]}, but the model speaks to {tokenizer_fingerprint[:12]}; give a "
                "transformer of the same tokenizer."
            )
        made = network(ConfigDict(metadata["config"]))
        fingerprints[name] = checkpoint.fingerprint(found)
        params[name] = sampling_params(made, found)
        return made

    made = decoder(config, network_of)
    return LoadedDecoder(made, params or None, fingerprints)


def load_params(path: epath.PathLike, kind: str, part: str | None) -> tuple[Any, dict[str, Any]]:
    """The parameters to evaluate (moving average first) of a checkpoint of the given kind.

    Of an adapter's checkpoint, those of the model that it makes.

    Args:
      path: workdir.
      kind: 'tokenizer' or 'transformer'.
      part: name below the parameters, or None for all of them.

    Returns:
      (tree of float32 NumPy arrays, whole on every process; metadata).
    """
    with checkpoint.Checkpointer(path, read_only=True) as reader:
        _, root = _metadata(reader, path, kind)
        name = root if part is None else f"{root}/{part}"
        params, metadata, _ = reader.restore_params(name, as_numpy=True)
    adapter = adapter_of(metadata)
    if adapter is not None:
        # On the host: the model need not fit one device.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            params = adapter.apply(params, restore_base(path, metadata))
        params = jax.tree.map(np.asarray, params)
    return params, metadata


def _metadata(
    reader: checkpoint.Checkpointer, path: epath.PathLike, kind: str
) -> tuple[dict[str, Any], str]:
    """The metadata of a checkpoint of this kind, and where its parameters lie in the state."""
    metadata = reader.read_metadata()
    if metadata.get("kind") != kind:
        raise ValueError(
            f"{path} holds a {metadata.get('kind', 'checkpoint of unknown kind')}, not a "
            f"{kind}; give the workdir of a {kind}."
        )
    return metadata, "ema" if metadata.get("ema") else "params"


def use_tokenizer(config: ConfigDict, loaded: LoadedTokenizer) -> None:
    """Makes the config describe the tokenizer that was loaded.

    Raises:
      ValueError: the config asks for other levels, or says something else of the tokenizer.
    """
    asked, there = tuples(config.patch_nums), tuples(loaded.config.patch_nums)
    if asked != there:
        raise ValueError(
            f"config.patch_nums is {asked}, but the tokenizer was trained with {there}; use the "
            "same levels."
        )
    section = tokenizer_section(loaded.config.tokenizer)
    given = config.get("tokenizer", {})
    said = read(given, "config.tokenizer", tokenizer_section(given))
    true = read(loaded.config.tokenizer, "config.tokenizer", section)
    for name, value in said.items():
        key = section.keys.get(name)
        has = true.get(name, key and key.default)
        if value != has and not (key and key.changeable):
            raise ConfigError(
                f"config.tokenizer.{name} is {value!r}, but the tokenizer in "
                f"config.tokenizer_checkpoint was trained with {has!r}; leave it out, or name "
                "another tokenizer."
            )
    config.tokenizer = loaded.config.tokenizer
    config.data.image_size = loaded.config.data.image_size
    config.data.channels = loaded.config.data.channels

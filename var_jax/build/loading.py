"""Checkpoints, by the config that they were saved with."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from var_jax import checkpoint
from var_jax.build.modules import head, tokenizer, var
from var_jax.build.sections import tuples
from var_jax.decoding.images import sampling_params
from var_jax.heads.categorical import CategoricalHead
from var_jax.parallel import sharding
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR


@dataclasses.dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer from a checkpoint.

    Attributes:
      module: what `params` belongs to.
      params: its parameters, float32; the moving average where the run kept one.
      fingerprint: of params.
      config: of the run that trained it.
    """

    module: VQVAE
    params: Any
    fingerprint: str
    config: ConfigDict


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
      var, head: modules.
      params: {'transformer': ..., 'head': ...}.
      tokenizer: its tokenizer.
      config: of the run that trained it.
      step: of the checkpoint.
    """

    var: VAR
    head: CategoricalHead
    params: Any
    tokenizer: LoadedTokenizer
    config: ConfigDict
    step: int

    def for_sampling(self, mesh: Mesh) -> LoadedTransformer:
        """The same with `sampling_params` on all devices of the mesh; drop the float32 one."""
        params = sampling_params(self.var, self.params)
        params = jax.device_put(params, sharding.replicated_sharding(mesh))
        return dataclasses.replace(self, params=params)


def load_transformer(
    path: epath.PathLike, tokenizer_path: epath.PathLike | None = None
) -> LoadedTransformer:
    """Reads a transformer checkpoint and the tokenizer beside it.

    Args:
      path: a run's workdir, or a converted one.
      tokenizer_path: another place of the same tokenizer; by default `path`/tokenizer.

    Raises:
      FileNotFoundError: one of them is missing.
      ValueError: not a transformer, or another tokenizer than the one it was trained with.
    """
    params, metadata = load_params(path, "transformer", None)
    loaded = load_tokenizer(tokenizer_path or epath.Path(path) / "tokenizer")
    expected = metadata["tokenizer_fingerprint"]
    if loaded.fingerprint != expected:
        raise ValueError(
            f"The tokenizer in {tokenizer_path or epath.Path(path) / 'tokenizer'} "
            f"({loaded.fingerprint[:12]}) is not the one that the transformer in {path} was "
            f"trained with ({expected[:12]}); its images would be noise. Give --tokenizer."
        )
    config = ConfigDict(metadata["config"])
    return LoadedTransformer(
        var(config), head(config), params, loaded, config, int(metadata.get("step", 0))
    )


def load_params(path: epath.PathLike, kind: str, part: str | None) -> tuple[Any, dict[str, Any]]:
    """The parameters to evaluate (moving average first) of a checkpoint of the given kind.

    Args:
      path: workdir.
      kind: 'tokenizer' or 'transformer'.
      part: name below the parameters, or None for all of them.

    Returns:
      (tree of float32 arrays on the default device, metadata).
    """
    with checkpoint.Checkpointer(path, read_only=True) as reader:
        metadata = reader.read_metadata()
        if metadata.get("kind") != kind:
            raise ValueError(
                f"{path} holds a {metadata.get('kind', 'checkpoint of unknown kind')}, not a "
                f"{kind}; give the workdir of a {kind}."
            )
        root = "ema" if metadata.get("ema") else "params"
        name = root if part is None else f"{root}/{part}"
        params, metadata, _ = reader.restore_params(name)
    return params, metadata


def use_tokenizer(config: ConfigDict, loaded: LoadedTokenizer) -> None:
    """Makes the config describe the tokenizer that was loaded.

    Raises:
      ValueError: the config asks for other levels or codes than the tokenizer has.
    """
    asked, there = tuples(config.patch_nums), tuples(loaded.config.patch_nums)
    if asked != there:
        raise ValueError(
            f"config.patch_nums is {asked}, but the tokenizer was trained with {there}; use the "
            "same levels."
        )
    config.tokenizer = loaded.config.tokenizer
    config.data.image_size = loaded.config.data.image_size
    config.data.channels = loaded.config.data.channels

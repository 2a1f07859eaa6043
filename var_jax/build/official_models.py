"""Models straight from official PyTorch files, without a checkpoint between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from var_jax import checkpoint
from var_jax.build.loading import LoadedTokenizer, LoadedTransformer, load_tokenizer
from var_jax.convert import config as convert_config
from var_jax.convert import official
from var_jax.network import sampling_params
from var_jax.parallel import arrays, sharding

#: Endings of official files; anything else is a checkpoint's folder.
OFFICIAL_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def load_official(
    path: str,
    tokenizer: str | None,
    patch_nums: Sequence[int] | None,
    group: str | None,
    mesh: Mesh,
) -> tuple[LoadedTokenizer, LoadedTransformer | None]:
    """A tokenizer and maybe a transformer, on the mesh.

    Args:
      path: official file of a tokenizer, or of a transformer with its tokenizer elsewhere.
      tokenizer: of a transformer, an official file or a workdir; None where `path` is a tokenizer.
      patch_nums: side lengths of the levels of a file that has no published pyramid.
      group: which dict of the file at `path`; see `official.select`.
      mesh: whole parameters lie on each of its devices.

    Raises:
      ValueError: a file cannot be read, or the tokenizer does not belong to the transformer.
    """
    everywhere = sharding.replicated_sharding(mesh)
    if tokenizer is None:
        module, params = official.read_tokenizer(path, patch_nums, group)
        return _tokenizer(module, params).on(mesh), None
    shape = official.describe_transformer(path, patch_nums, group=group)
    if tokenizer.endswith(OFFICIAL_FILES):
        loaded = _tokenizer(*official.read_tokenizer(tokenizer, shape.patch_nums, group, True))
    else:
        loaded = load_tokenizer(tokenizer)
    official.check_match(loaded.module, shape, tokenizer, path)
    network, params = official.read_network(path, shape.patch_nums, shape.num_heads, group)
    params = arrays.place(sampling_params(network, params), everywhere)
    config = convert_config.transformer_config(loaded.module, network)
    loaded = loaded.on(mesh)
    transformer = LoadedTransformer(
        network=network,
        params=params,
        tokenizer=loaded,
        config=ConfigDict(config),
        step=0,
        metadata={},
        mesh=mesh,
        preset="replicated",
    )
    return loaded, transformer


def _tokenizer(module: Any, params: Any) -> LoadedTokenizer:
    config = ConfigDict(convert_config.tokenizer_config(module))
    return LoadedTokenizer(module, params, checkpoint.fingerprint(params), config)

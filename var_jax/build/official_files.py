"""Checkpoints from and to the official PyTorch files of VAR."""

from __future__ import annotations

import collections
import gc
import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from var_jax import paths
from var_jax.build.loading import load_tokenizer, load_transformer
from var_jax.checkpoint import files
from var_jax.convert import official, safetensors_file
from var_jax.convert.config import tokenizer_config, transformer_config
from var_jax.convert.infinity_text import TextTransformerShape

_CHUNK_BYTES = 8 * 2**20
_FILE_BYTES = 32 * 2**20


def save(folder: epath.Path, params: Any, metadata: dict[str, Any]) -> None:
    """Writes step 0 of a new run in the layout of `var_jax.checkpoint`.

    By itself Orbax would hold the encoded arrays until all are written, as much memory again as
    the parameters. Here they leave in small chunks, and the parameters are not copied.
    """
    state = {"params": jax.tree.map(lambda x: jax.device_put(x, may_alias=True), params)}
    directory, _ = files.locate(folder)
    files.probe_writable(directory)
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), state)
    metadata = {
        "step": 0,
        "wall_time": time.time(),
        "packages": files.package_versions(),
        **metadata,
    }
    written = ocp.args.Composite(
        state=ocp.args.PyTreeSave(state, save_args=chunks, ocdbt_target_data_file_size=_FILE_BYTES),
        metadata=ocp.args.JsonSave(metadata),
    )
    try:
        with ocp.CheckpointManager(directory, item_names=("state", "metadata")) as manager:
            manager.save(0, args=written)
            manager.wait_until_finished()
        files.record_sizes(directory, 0)
    except Exception as error:  # the writer's own types, for a full disk too
        raise files.CheckpointError(
            f"Could not write the checkpoint to {folder}: {files.one_line(error)}."
        ) from error
    count = sum(x.size for x in jax.tree.leaves(params))
    print(f"Wrote {metadata['kind']} with {count:,} parameters to {folder}.", flush=True)


def import_files(
    output: epath.PathLike,
    *,
    vae: str | None = None,
    transformer: str | None = None,
    tokenizer: str | None = None,
    group: str | None = None,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    text_encoder: str | None = None,
) -> None:
    """Makes a checkpoint of official files.

    Args:
      output: new folder; the tokenizer goes to `output`/tokenizer if there is a transformer.
      vae, transformer: the files; see open_state.
      tokenizer: a tokenizer checkpoint of ours in place of `vae`.
      group: which of a file's dicts; see official.select.
      patch_nums: side lengths of the levels where no published pyramid fits.
      num_heads: where neither attention scales nor heads of 64 tell.
      text_encoder: folder of the T5 encoder that the transformer asks, see `T5Encoder`.

    Raises:
      FileNotFoundError, ValueError, CheckpointError: one sentence; then nothing is left of it.
    """
    if not vae and not transformer:
        raise ValueError("Nothing to import; give --vae, --transformer or both.")
    if transformer and bool(vae) == bool(tokenizer):
        raise ValueError(
            "A transformer belongs to a tokenizer; give either --vae, its official file, or "
            "--tokenizer, a checkpoint of it."
        )
    output = epath.Path(output)
    for folder in (output, output / "tokenizer"):
        if files.complete_steps(files.locate(folder)[0]):
            raise ValueError(f"There is a checkpoint in {folder} already; choose a new --output.")

    # The transformer's names are looked at first: they know the levels, the tokenizer does not.
    levels = patch_nums
    if transformer:
        shape = official.describe_transformer(transformer, levels, num_heads, group)
        levels = shape.patch_nums
    if vae:
        # With a transformer, --group may be of its file alone.
        module, params = official.read_tokenizer(vae, levels, group, bool(transformer))
        identity = files.fingerprint(params)
    else:
        loaded = load_tokenizer(tokenizer)
        module, params, identity = loaded.module, loaded.params, loaded.fingerprint
        params = jax.device_get(params)
    if transformer:
        official.check_match(module, shape, vae or tokenizer, transformer)
    if text_encoder and not (transformer and isinstance(shape, TextTransformerShape)):
        raise ValueError(
            f"A text encoder is given ({text_encoder}), but no transformer that reads one; leave "
            "it out."
        )
    new = [f for f in (output, output / "checkpoints", output / "tokenizer") if not f.exists()]
    try:
        save(
            output / "tokenizer" if transformer else output,
            {"tokenizer": params},
            {
                "kind": "tokenizer",
                "config": tokenizer_config(module),
                "ema": False,
                "tokenizer_fingerprint": identity,
                "source": str(vae or tokenizer),
            },
        )
        if not transformer:
            return
        # Orbax's manager is part of a reference cycle that keeps the arrays alive.
        del params
        gc.collect()
        network, params = official.read_network(transformer, levels, num_heads, group)
        config = transformer_config(module, network)
        if text_encoder:
            config["model"]["conditioner"]["encoder"] = text_encoder
        save(
            output,
            params,
            {
                "kind": "transformer",
                "config": config,
                "ema": False,
                "tokenizer_fingerprint": identity,
                "source": str(transformer),
            },
        )
    except BaseException:
        for folder in new:
            if folder.exists():
                folder.rmtree()
        raise


def export_files(checkpoint: epath.PathLike, output: epath.PathLike) -> None:
    """Writes a checkpoint's vae_*.safetensors and var_*.safetensors; also as .pth with PyTorch.

    Args:
      checkpoint: folder of a run or of an import.
      output: folder.
    """
    if files.inspect(checkpoint).metadata.get("kind") == "transformer":
        loaded = load_transformer(checkpoint)
        tokenizer = loaded.tokenizer
    else:
        loaded, tokenizer = None, load_tokenizer(checkpoint)
    module, exported = tokenizer.module, {}
    tensors = official.tokenizer_tensors(module, jax.device_get(tokenizer.params))
    name = f"vae_ch{module.channels}v{module.codec.vocab_size}z{module.codec.code_dim}"
    exported[name] = tensors
    if loaded:
        exported[f"var_d{loaded.network.transformer.depth}"] = official.network_tensors(
            loaded.network, jax.device_get(loaded.params)
        )
    output = epath.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    for name, tensors in exported.items():
        write(output / name, tensors)


def write(path: epath.Path, tensors: Mapping[str, Any]) -> None:
    """Writes PATH.safetensors, and PATH.pth if PyTorch is installed."""
    target = path.parent / f"{path.name}.safetensors"
    safetensors_file.write(target, tensors, {"format": "pt"})
    print(f"Wrote {len(tensors)} tensors to {target}.", flush=True)
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    # PyTorch wants arrays of its own; those that need no rearranging are views of ours.
    arrays = ((name, np.require(t.read(), requirements="W")) for name, t in tensors.items())
    state = collections.OrderedDict((name, torch.from_numpy(x)) for name, x in arrays)
    target = path.parent / f"{path.name}.pth"
    with paths.replacing(target) as file:
        torch.save(state, file)
    print(f"Wrote the same to {target}.", flush=True)

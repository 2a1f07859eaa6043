"""Imports the official PyTorch files of VAR, and exports to them.

python -m launch.convert_torch import --vae vae_ch160v4096z32.pth --transformer var_d30.pth \
    --output checkpoints/var_d30
python -m launch.convert_torch export --checkpoint checkpoints/var_d30 --output exported

import needs no PyTorch. It writes the transformer to OUTPUT and its tokenizer to
OUTPUT/tokenizer, or a tokenizer alone to OUTPUT; launch.sample, launch.evaluate,
launch.reconstruct and fine-tuning (config.train.initial_checkpoint) take OUTPUT. Files may be
.pth or safetensors, bare state dicts or the official trainer's; local or gs://. Memory stays
near the size of the larger file.

export writes vae_*.safetensors and var_*.safetensors with the official names, buffers
included, and the same as .pth where PyTorch is installed.
"""

from __future__ import annotations

import argparse
import collections
import gc
import importlib.util
import io
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from launch import offline

_CHUNK_BYTES = 8 * 2**20
_FILE_BYTES = 32 * 2**20


def patch_nums(text: str) -> tuple[int, ...]:
    """'1,2,3' -> (1, 2, 3)."""
    values = tuple(int(n) for n in text.replace("_", ",").split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"side lengths are positive, got {text}")
    return values


def make_parser() -> argparse.ArgumentParser:
    parser = offline.parser("launch.convert_torch", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("import", help="official files -> checkpoint")
    reading.add_argument("--vae", type=offline.path, help="the tokenizer's file")
    reading.add_argument("--transformer", type=offline.path, help="the transformer's file")
    reading.add_argument(
        "--tokenizer",
        type=offline.path,
        help="a tokenizer checkpoint of ours, where there is no --vae",
    )
    reading.add_argument("--output", required=True, type=offline.path, help="new folder")
    reading.add_argument(
        "--patch_nums",
        type=patch_nums,
        help="side lengths of the levels, such as 1,2,3,5,8, where no published pyramid fits",
    )
    reading.add_argument(
        "--num_heads", type=int, help="where neither attention scales nor heads of 64 tell"
    )
    writing = commands.add_parser("export", help="checkpoint -> official files")
    writing.add_argument(
        "--checkpoint", required=True, type=offline.path, help="folder of a run or of an import"
    )
    writing.add_argument("--output", required=True, type=offline.path, help="folder")
    return parser


def save(folder: epath.Path, params: Any, metadata: dict[str, Any]) -> None:
    """Writes step 0 of a new run in the layout of `var_jax.checkpoint`.

    By itself Orbax would hold the encoded arrays until all are written, as much memory again as
    the parameters. Here they leave in small chunks, and the parameters are not copied.
    """
    import jax
    import orbax.checkpoint as ocp

    from var_jax.checkpoint import files

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
    with ocp.CheckpointManager(directory, item_names=("state", "metadata")) as manager:
        manager.save(
            0,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(
                    state, save_args=chunks, ocdbt_target_data_file_size=_FILE_BYTES
                ),
                metadata=ocp.args.JsonSave(metadata),
            ),
        )
        manager.wait_until_finished()
    files.record_sizes(directory, 0)
    count = sum(x.size for x in jax.tree.leaves(params))
    print(f"Wrote {metadata['kind']} with {count:,} parameters to {folder}.", flush=True)


def import_files(args: argparse.Namespace) -> None:
    """The command `import`."""
    import jax

    from var_jax import build
    from var_jax.checkpoint.files import complete_steps, fingerprint, locate
    from var_jax.convert import official
    from var_jax.convert.config import tokenizer_config, transformer_config

    if not args.vae and not args.transformer:
        raise ValueError("Nothing to import; give --vae, --transformer or both.")
    if args.transformer and bool(args.vae) == bool(args.tokenizer):
        raise ValueError(
            "A transformer belongs to a tokenizer; give either --vae, its official file, or "
            "--tokenizer, a checkpoint of it."
        )
    output = epath.Path(args.output)
    for folder in (output, output / "tokenizer"):
        if complete_steps(locate(folder)[0]):
            raise ValueError(f"There is a checkpoint in {folder} already; choose a new --output.")

    # The transformer's names are looked at first: they know the levels, the tokenizer does not.
    levels = args.patch_nums
    if args.transformer:
        shape = official.describe_transformer(args.transformer, levels, args.num_heads)
        levels = shape.patch_nums
    if args.vae:
        tokenizer, params = official.read_tokenizer(args.vae, levels)
        identity = fingerprint(params)
    else:
        loaded = build.load_tokenizer(args.tokenizer)
        tokenizer, params, identity = loaded.module, loaded.params, loaded.fingerprint
        params = jax.device_get(params)
    if args.transformer:
        official.check_match(tokenizer, shape, args.vae or args.tokenizer, args.transformer)
    save(
        output / "tokenizer" if args.transformer else output,
        {"tokenizer": params},
        {
            "kind": "tokenizer",
            "config": tokenizer_config(tokenizer),
            "ema": False,
            "tokenizer_fingerprint": identity,
            "source": args.vae or args.tokenizer,
        },
    )
    if not args.transformer:
        return
    # Orbax's manager is part of a reference cycle that keeps the arrays alive.
    del params
    gc.collect()
    transformer, _, params = official.read_transformer(args.transformer, levels, args.num_heads)
    save(
        output,
        params,
        {
            "kind": "transformer",
            "config": transformer_config(tokenizer, transformer),
            "ema": False,
            "tokenizer_fingerprint": identity,
            "source": args.transformer,
        },
    )


def export_files(args: argparse.Namespace) -> None:
    """The command `export`."""
    import jax

    from var_jax import build
    from var_jax.checkpoint.files import inspect
    from var_jax.convert import official

    if inspect(args.checkpoint).metadata.get("kind") == "transformer":
        loaded = build.load_transformer(args.checkpoint)
        tokenizer = loaded.tokenizer
    else:
        loaded, tokenizer = None, build.load_tokenizer(args.checkpoint)
    module, files = tokenizer.module, {}
    name = f"vae_ch{module.channels}v{module.codec.vocab_size}z{module.codec.code_dim}"
    files[name] = official.tokenizer_tensors(module, jax.device_get(tokenizer.params))
    if loaded:
        files[f"var_d{loaded.var.depth}"] = official.transformer_tensors(
            loaded.var, loaded.head, jax.device_get(loaded.params)
        )
    output = epath.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        write(output / name, tensors)


def write(path: epath.Path, tensors: Mapping[str, Any]) -> None:
    """Writes PATH.safetensors, and PATH.pth if PyTorch is installed."""
    from var_jax.convert import safetensors_file

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
    buffer = io.BytesIO() if "://" in str(target) else os.fspath(target)
    torch.save(state, buffer)
    if isinstance(buffer, io.BytesIO):
        target.write_bytes(buffer.getvalue())
    print(f"Wrote the same to {target}.", flush=True)


def main(args: argparse.Namespace) -> None:
    import_files(args) if args.command == "import" else export_files(args)


if __name__ == "__main__":
    offline.run(make_parser(), main)

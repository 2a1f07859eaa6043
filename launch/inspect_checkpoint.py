"""Says what a checkpoint or an official file is, without reading its arrays.

python -m launch.inspect_checkpoint runs/mnist/transformer
python -m launch.inspect_checkpoint var_d16.pth [--arrays]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from launch import offline


def describe_folder(path: epath.Path, arrays: bool) -> Iterable[str]:
    """Lines about a checkpoint of ours."""
    from var_jax.checkpoint.files import inspect, named_leaves

    found = inspect(path)
    metadata = dict(found.metadata)
    leaves = {k: v for k, v in named_leaves(found.arrays).items() if hasattr(v, "shape")}
    yield f"{found.directory}: {metadata.pop('kind', 'checkpoint of unknown kind')}"
    yield f"step            {found.step} of {', '.join(map(str, found.steps))}"
    yield f"state           {found.num_bytes / 2**30:.3f} GiB in {len(leaves)} arrays"
    for part in sorted({name.split("/")[0] for name in leaves}):
        sizes = [math.prod(v.shape) for k, v in leaves.items() if k.split("/")[0] == part]
        yield f"{'parameters' if part == 'params' else part:15s} {sum(sizes):,}"
    for key, title in (
        ("tokenizer_fingerprint", "tokenizer"),
        ("source", "source"),
    ):
        if key in metadata:
            yield f"{title:15s} {metadata.pop(key)}"
    yield f"files           {found.problem or 'complete'}"
    config = metadata.pop("config", {})
    yield f"metadata        {json.dumps(metadata)}"
    for key, value in config.items():
        yield f"config.{key:15s} {json.dumps(value)}"
    if arrays:
        yield from _arrays(leaves)


def describe_file(path: epath.Path, arrays: bool) -> Iterable[str]:
    """Lines about a PyTorch or safetensors file."""
    from var_jax.convert import official
    from var_jax.convert.torch_file import open_state

    with open_state(os.fspath(path)) as state:
        tensors = sum(len(group) for group in state.groups().values())
        yield f"{path}: {tensors} tensors, {path.stat().length / 2**30:.3f} GiB"
        for name, group in state.groups().items():
            dtypes = sorted({str(t.dtype) for t in group.values()})
            yield f"{name or 'top level'}: {len(group)} tensors of {', '.join(dtypes)}"
            for line in official.describe(group, os.fspath(path)):
                yield "    " + line
            if arrays:
                yield from ("    " + line for line in _arrays(group))


def _arrays(leaves: Mapping[str, Any]) -> Iterable[str]:
    def order(name: str) -> list[tuple[int, str]]:
        """Numbers inside names sort as numbers."""
        parts = re.split(r"(\d+)", name)
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    for name in sorted(leaves, key=order):
        yield f"{name}  {list(leaves[name].shape)}  {leaves[name].dtype}"


def main(args: argparse.Namespace) -> None:
    path = epath.Path(args.path)
    describe = describe_folder if path.is_dir() else describe_file
    for line in describe(path, args.arrays):
        print(line)


def make_parser() -> argparse.ArgumentParser:
    parser = offline.parser("launch.inspect_checkpoint", __doc__)
    parser.add_argument(
        "path", type=offline.path, help="folder of a run or of an import, a step in it, or a file"
    )
    parser.add_argument("--arrays", action="store_true", help="list every array")
    return parser


if __name__ == "__main__":
    offline.run(make_parser(), main)

"""Says what a checkpoint or an official file is, without reading its arrays.

python -m launch.inspect_checkpoint runs/mnist/transformer
python -m launch.inspect_checkpoint var_d16.pth [--arrays]

PATH is the folder of a run or of an import, a step in it, a PyTorch or safetensors file, or a
checkpoint in parts (its folder, index or one part).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags
from etils import epath

from launch import cli

_ARRAYS = flags.DEFINE_bool("arrays", False, "List every array.")


def describe_folder(path: epath.Path, arrays: bool) -> Iterable[str]:
    """Lines about a checkpoint of ours."""
    from var_jax.checkpoint.files import inspect, named_leaves

    found = inspect(path)
    metadata = dict(found.metadata)
    leaves = {k: v for k, v in named_leaves(found.arrays).items() if hasattr(v, "shape")}
    yield f"{found.directory}: {metadata.pop('kind', 'checkpoint of unknown kind')}"
    for step, problem in found.passed_over.items():
        yield f"damaged         step {step}: {problem}"
    yield f"step            {found.step} of {', '.join(map(str, found.steps))}"
    yield f"state           {found.num_bytes / 2**30:.3f} GiB in {len(leaves)} arrays"
    for part in sorted({name.split("/")[0] for name in leaves}):
        sizes = [math.prod(v.shape) for k, v in leaves.items() if k.split("/")[0] == part]
        yield f"{'parameters' if part == 'params' else part:15s} {sum(sizes):,}"
    for key, title in (
        ("tokenizer_fingerprint", "tokenizer"),
        ("reference_fingerprint", "reference"),
        ("source", "source"),
    ):
        if key in metadata:
            yield f"{title:15s} {metadata.pop(key)}"
    yield "files           complete"
    config = metadata.pop("config", {})
    yield f"metadata        {json.dumps(metadata)}"
    for key, value in config.items():
        yield f"config.{key:15s} {json.dumps(value)}"
    if arrays:
        yield from _arrays(leaves)


def describe_file(path: epath.Path, arrays: bool) -> Iterable[str]:
    """Lines about a PyTorch or safetensors file, or a checkpoint in parts."""
    from var_jax.convert import official
    from var_jax.convert.torch_file import open_state

    with open_state(os.fspath(path)) as state:
        groups = state.groups()
        tensors = [tensor for group in groups.values() for tensor in group.values()]
        size = sum(tensor.nbytes for tensor in tensors)
        yield f"{state.path}: {len(tensors)} tensors, {size / 2**30:.3f} GiB"
        for name, group in groups.items():
            dtypes = sorted({str(t.dtype) for t in group.values()})
            yield f"{name or 'top level'}: {len(group)} tensors of {', '.join(dtypes)}"
            for line in official.describe(group, os.fspath(path)):
                yield "    " + line
            if arrays:
                yield from ("    " + line for line in _arrays(group))


def _arrays(leaves: Mapping[str, Any]) -> Iterable[str]:
    def order(name: str) -> list[tuple[int, str]]:
        """Numbers inside names sort as numbers."""
        parts = re.split(r"([0-9]+)", name)
        return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]

    for name in sorted(leaves, key=order):
        yield f"{name}  {list(leaves[name].shape)}  {leaves[name].dtype}"


def lines(path: str, arrays: bool = False) -> Iterable[str]:
    """What the command prints."""
    from var_jax.checkpoint.files import complete_steps, locate

    place = epath.Path(path)
    weights = not place.is_dir() or (
        not complete_steps(locate(place)[0])
        and any(f.name.endswith((".safetensors", ".index.json")) for f in place.iterdir())
    )
    return (describe_file if weights else describe_folder)(place, arrays)


def main(path: str) -> None:
    from var_jax.paths import resolve

    for line in lines(str(resolve(path)), _ARRAYS.value):
        print(line)


if __name__ == "__main__":
    cli.run(main, words=["the path to look at"], on_cpu=True)

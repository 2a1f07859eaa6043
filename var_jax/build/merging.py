"""A model out of an adapter and its base."""

from __future__ import annotations

import json

from etils import epath

from var_jax.build.adapters import adapter_of
from var_jax.build.loading import load_params
from var_jax.build.official_files import save
from var_jax.checkpoint import files


def merge_adapter(path: epath.PathLike, output: epath.PathLike) -> None:
    """Writes the model that an adapter makes, with its tokenizer, as a checkpoint of its own.

    Args:
      path: workdir of the adapter's run.
      output: new folder; it becomes step 0 of a run.

    Raises:
      FileNotFoundError: there is no checkpoint, or its base is missing.
      ValueError: it is no adapter's, or there is a checkpoint in `output`.
    """
    output = epath.Path(output)
    if files.complete_steps(files.locate(output)[0]):
        raise ValueError(f"There is a checkpoint in {output} already; choose a new --output.")
    about = files.inspect(path).metadata
    if adapter_of(about) is None:
        raise ValueError(f"{path} holds no adapter; there is nothing to merge.")
    params, metadata = load_params(path, "transformer", None)
    tokenizer, of_tokenizer = load_params(epath.Path(path) / "tokenizer", "tokenizer", None)
    names = ("kind", "config", "tokenizer_fingerprint", "data")
    kept = {name: metadata[name] for name in names if name in metadata}
    kept["config"] = json.loads(json.dumps(kept["config"]))
    kept["config"]["train"]["adapter"] = None
    save(output / "tokenizer", tokenizer, of_tokenizer)
    save(output, params, {**kept, "ema": False, "source": str(path)})

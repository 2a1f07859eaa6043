"""What a run that goes on was started with, and what it is asked to be now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from var_jax.build.config import Change, changes
from var_jax.build.sections import ConfigError
from var_jax.checkpoint import Checkpointer, files

_SHOWN = 12
#: What `data_facts` are called in an error.
_FACTS = {
    "images": "number of images",
    "crops": "number of crops",
    "crops_seed": "seed of the crops",
    "samples": "number of samples",
    "samples_seed": "seed of the samples",
}


def saved_metadata(workdir: epath.PathLike) -> dict[str, Any] | None:
    """Of the newest checkpoint in a workdir that has any; None if there is no checkpoint."""
    if not files.complete_steps(files.locate(workdir)[0]):
        return None
    with Checkpointer(workdir, read_only=True) as reader:
        return reader.read_metadata()


def changes_since(
    workdir: epath.PathLike, config: Mapping[str, Any] | ConfigDict, kind: str, allow: bool
) -> list[Change]:
    """Where a config differs from that of the newest checkpoint in a workdir.

    A key that the saved config does not have, since it is newer, equals its default.

    Args:
      workdir: of a run, which may be new.
      config: as given.
      kind: 'tokenizer' or 'transformer'.
      allow: also what gives the run its meaning may differ.

    Raises:
      ConfigError: it differs in what gives the run its meaning; all of that is listed.
    """
    saved = saved_metadata(workdir)
    if saved is None:
        return []
    if saved.get("kind", kind) != kind:
        raise ConfigError(
            f"{workdir} holds the run of a {saved['kind']}, not of a {kind}; give another workdir."
        )
    found = changes(saved.get("config", {}), config, kind)
    refused = [str(change) for change in found if not change.changeable]
    if refused and not allow:
        more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise ConfigError(
            f"The run in {workdir} was trained with another config ({', '.join(refused[:_SHOWN])}"
            f"{more}); give the values that it had or another --workdir, or go on with these by "
            "--allow_config_change."
        )
    return found


def identity(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What a checkpoint's metadata says about tokenizer and data, in short texts to compare.

    Values by what to call them in an error; what the metadata does not say is left out.
    """
    data = dict(metadata.get("data", {}))
    found = {}
    if "tokenizer_fingerprint" in metadata:
        found["fingerprint of the tokenizer"] = metadata["tokenizer_fingerprint"][:12]
    if "reference_fingerprint" in metadata:
        found["fingerprint of the reference"] = metadata["reference_fingerprint"][:12]
    if "class_names" in data:
        names = data.pop("class_names")
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        found["list of classes"] = f"{len(names)} names (hash {digest[:8]})"
    return found | {_FACTS.get(name, name): str(value) for name, value in data.items()}


def data_changes(workdir: epath.PathLike, metadata: Mapping[str, Any], allow: bool) -> list[str]:
    """Where the data differ from those of the newest checkpoint in a workdir.

    The tokenizer is not among it: a transformer does not go on with another one at all.

    Args:
      workdir: of a run, which may be new.
      metadata: of the checkpoints to come.
      allow: they may differ.

    Raises:
      ConfigError: they differ.
    """
    saved = saved_metadata(workdir)
    if saved is None:
        return []
    before = identity({"data": saved.get("data", {})})
    now = identity({"data": metadata.get("data", {})})
    found = [f"{k}: {before[k]} -> {now[k]}" for k in before if k in now and before[k] != now[k]]
    if found and not allow:
        raise ConfigError(
            f"The run in {workdir} was trained on other data ({', '.join(found)}), so its batches "
            "would not be those that it was started with; give the same data or another workdir, "
            "or go on by --allow_config_change."
        )
    return found

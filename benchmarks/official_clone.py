"""The official PyTorch code, from a clone of FoundationVision/VAR."""

from __future__ import annotations

import os
import sys
import types


def use_official(path: str) -> None:
    """Makes the clone importable; what it imports but does not need here is replaced."""
    if not os.path.exists(os.path.join(path, "models", "var.py")):
        raise ValueError(f"--official {path} is no clone of FoundationVision/VAR.")
    hub, misc = types.ModuleType("huggingface_hub"), types.ModuleType("utils.misc")
    vars(hub).update(PyTorchModelHubMixin=type("PyTorchModelHubMixin", (), {}))
    vars(misc).update(MetricLogger=object, TensorboardLogger=object)
    sys.modules.setdefault("huggingface_hub", hub)
    sys.modules["utils.misc"] = misc
    sys.path.insert(0, path)

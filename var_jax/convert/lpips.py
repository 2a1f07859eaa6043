"""LPIPS parameters from the published PyTorch files."""

from __future__ import annotations

from typing import Any

import numpy as np

from var_jax.convert.lazy_state import LazyState
from var_jax.convert.torch_file import open_state
from var_jax.tokenizer.lpips import STAGES


def load_lpips(vgg_path: str, linear_path: str) -> dict[str, Any]:
    """Parameters of `LPIPS` from the published files.

    Args:
      vgg_path: torchvision's vgg16 (`features.0.weight`, ...), `.pth` or safetensors.
      linear_path: the LPIPS release's `vgg.pth` (`lin0.model.1.weight`, ...), or safetensors; may
        be the same file as `vgg_path`.

    Returns:
      the tree for `LPIPS().apply({'params': tree}, x, y)`, float32.

    Raises:
      FileNotFoundError, ValueError: one sentence.
    """
    params: dict[str, Any] = {}
    with open_state(vgg_path, legacy=True) as state:
        index, channels = 0, 3
        for stage, widths in enumerate(STAGES):
            for i, width in enumerate(widths):
                kernel = _read(state, f"features.{index}.weight", (width, channels, 3, 3))
                params[f"conv{stage + 1}_{i + 1}"] = {
                    "kernel": np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)),
                    "bias": _read(state, f"features.{index}.bias", (width,)),
                }
                index, channels = index + 2, width  # a ReLU follows each convolution
            index += 1  # the pooling
    with open_state(linear_path, legacy=True) as state:
        for stage, widths in enumerate(STAGES):
            weight = _read(state, f"lin{stage}.model.1.weight", (1, widths[-1], 1, 1))
            params[f"lin{stage}"] = weight.reshape(-1)
    return params


def _read(state: LazyState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in state:
        raise ValueError(
            f"{state.path} lacks {name!r}; it holds {len(state)} tensors, among them "
            f"{', '.join(list(state)[:3])}."
        )
    if state[name].shape != shape:
        raise ValueError(
            f"{state.path} holds {name!r} of shape {state[name].shape} where {shape} is due."
        )
    return state[name].read().astype(np.float32)

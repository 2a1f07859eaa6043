"""Visual autoregressive modeling (VAR, next-scale prediction) in JAX and Flax; see README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from var_jax.api import Model, load

__version__ = "0.1.0"

__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Late: a worker process that reads pictures needs none of what a model needs.
    if name in ("Model", "load"):
        from var_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

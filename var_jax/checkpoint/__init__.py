"""Checkpoints of a run, and what lies in their folders."""

from var_jax.checkpoint.checkpointer import Checkpointer
from var_jax.checkpoint.files import CheckpointError, fingerprint, inspect

__all__ = ["CheckpointError", "Checkpointer", "fingerprint", "inspect"]

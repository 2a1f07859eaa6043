"""Kernels: one folder per operation, each with a reference and one file per backend."""

import jax


def platform() -> str:
    """Where what is traced now will run, as in `jax.default_backend`: the device that the abstract
    mesh in force names, if it does."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.device_kind.startswith("TPU"):
        return "tpu"
    return jax.default_backend()

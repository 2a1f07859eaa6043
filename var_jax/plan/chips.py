"""Accelerator chips: what the makers publish, for utilisation and for plans."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip's published numbers.

    Attributes:
      name: as in a topology's name.
      flops: bfloat16 matrix operations a second.
      hbm_bytes: memory; a program gets a little less.
      hbm_bandwidth: bytes a second.
      link_bandwidth: bytes a second that the chip sends over all its inter-chip links.
      network_bandwidth: bytes a second that it sends to other slices: its part of its host's
        network card.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float


_GIB, _GIGA, _TERA = 2.0**30, 1e9, 1e12

#: cloud.google.com/tpu/docs (system architecture of each version).
CHIPS = {
    "v4": Chip("v4", 275 * _TERA, 32 * _GIB, 1228 * _GIGA, 300 * _GIGA, 6.25 * _GIGA),
    "v5e": Chip("v5e", 197 * _TERA, 16 * _GIB, 819 * _GIGA, 200 * _GIGA, 6.25 * _GIGA),
    "v5p": Chip("v5p", 459 * _TERA, 95 * _GIB, 2765 * _GIGA, 600 * _GIGA, 6.25 * _GIGA),
    "v6e": Chip("v6e", 918 * _TERA, 32 * _GIB, 1640 * _GIGA, 448 * _GIGA, 12.5 * _GIGA),
}

_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def of_kind(device_kind: str) -> Chip | None:
    """The chip of `device.device_kind`; None if it is not in the table."""
    return CHIPS.get(_KINDS.get(device_kind, ""))

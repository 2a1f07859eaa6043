"""Accelerator chips: what the makers publish, for utilisation and for plans."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device of a kind has, by the numbers published of its chip.

    A device is what JAX shows as one: a whole chip, or one of the two halves of a TPU7x. A half
    has its half of everything; that the halves of one chip reach each other faster than the links
    between chips does not count here.

    Attributes:
      name: as in a topology's name.
      flops: bfloat16 matrix operations per second.
      hbm_bytes: memory; a program gets a little less.
      hbm_bandwidth: bytes per second.
      link_bandwidth: bytes per second that it sends over all its inter-chip links; half of the
        bandwidth that is published for both directions together.
      network_bandwidth: bytes per second that it sends to other slices: its part of its host's
        network card.
      per_chip: devices that are one chip.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    per_chip: int = 1


_GIB, _GIGA, _TERA = 2.0**30, 1e9, 1e12

#: docs.cloud.google.com/tpu/docs: v4, v5e, v5p, v6e, and tpu7x (Ironwood), whose chip of two
#: devices has 2307 TFLOP/s, 192 GiB at 7380 GB/s, links of 1200 GB/s both ways and 100 Gbit/s.
CHIPS = {
    "v4": Chip("v4", 275 * _TERA, 32 * _GIB, 1228 * _GIGA, 300 * _GIGA, 6.25 * _GIGA),
    "v5e": Chip("v5e", 197 * _TERA, 16 * _GIB, 819 * _GIGA, 200 * _GIGA, 6.25 * _GIGA),
    "v5p": Chip("v5p", 459 * _TERA, 95 * _GIB, 2765 * _GIGA, 600 * _GIGA, 6.25 * _GIGA),
    "v6e": Chip("v6e", 918 * _TERA, 32 * _GIB, 1638 * _GIGA, 400 * _GIGA, 12.5 * _GIGA),
    "tpu7x": Chip("tpu7x", 1153.5 * _TERA, 96 * _GIB, 3690 * _GIGA, 300 * _GIGA, 6.25 * _GIGA, 2),
}

_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}


def of_kind(device_kind: str) -> Chip | None:
    """What a device of `device.device_kind` has; None if it is not in the table."""
    return CHIPS.get(_KINDS.get(device_kind, ""))

"""A family of sizes, from config.scaling."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from var_jax.build.modules import model_section
from var_jax.build.sections import ConfigError, Section, call, read_section

HELD_OUT, TRAIN = "held_out", "train"


@dataclasses.dataclass(frozen=True)
class ScalingSettings:
    """config.scaling, without the section sizes.

    Attributes:
      on: the loss that the laws are fitted to, 'held_out' or 'train'.
      resamples: of the bootstrap.
      frontier_start: fraction of a run before which its losses are on no frontier.
    """

    on: str = HELD_OUT
    resamples: int = 1000
    frontier_start: float = 0.2


#: What a size may change of config.model.
SIZE = dataclasses.replace(
    model_section(None),
    only=("depth", "width", "num_heads", "mlp_ratio", "scan_unroll"),
    sections={},
    named=True,
)
SCALING = Section((ScalingSettings,), sections={"sizes": SIZE}, changeable=True)


def scaling_settings(config: ConfigDict) -> tuple[ScalingSettings, dict[str, dict[str, Any]]]:
    """Reads config.scaling: the settings, and what each size changes of config.model.

    Raises:
      ConfigError: something in it is unknown, or there are too few sizes.
    """
    if not config.get("scaling", {}).get("sizes"):
        raise ConfigError(
            "The config has no scaling.sizes; configs/scaling_mnist5k.py is a complete example."
        )
    values = read_section(config, "scaling", SCALING)
    settings, sizes = call(ScalingSettings, "config.scaling", values), values["sizes"]
    if settings.on not in (HELD_OUT, TRAIN):
        raise ConfigError(f"config.scaling.on must be held_out or train, got {settings.on!r}.")
    if len(sizes) < 3:
        raise ConfigError(
            f"A power law needs at least 3 sizes, but config.scaling.sizes has {len(sizes)}."
        )
    return settings, sizes

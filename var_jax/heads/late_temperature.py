"""A temperature after top-k and top-p, which then keep what they keep at temperature 1."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Float

from var_jax.heads.base import at_level
from var_jax.pyramid import ScalePyramid


@dataclasses.dataclass(frozen=True)
class LateTemperature:
    """A logit processor; the `temperature` of the head's settings comes before the filters.

    Attributes:
      temperature: divides the logits; a tuple gives one for each level.
    """

    temperature: float | tuple[float, ...]

    def __call__(
        self, logits: Float[jax.Array, "B n V"], level: int, pyramid: ScalePyramid
    ) -> Float[jax.Array, "B n V"]:
        """See `LogitProcessor`."""
        return logits / at_level(self.temperature, "temperature", level, pyramid)

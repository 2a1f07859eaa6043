"""What a search prefers: scores of candidates, after some of their levels or all."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import flax
import jax
from jaxtyping import Float


@flax.struct.dataclass
class Candidates:
    """Candidates after the levels drawn so far, on axis 0.

    Attributes:
      given: what was asked for, see `Conditioner`; such as labels int32 [B].
      features: float32 [B, h, w, C], what the levels add up to.
      images: float32 [B, H, W, c] in [-1, 1], what they show; None where nothing decodes.
      log_likelihood: float32 [B] in nats, of the tokens of these levels given what was asked for;
        None where the head has none.
    """

    given: Any
    features: jax.Array
    images: jax.Array | None
    log_likelihood: jax.Array | None


class Reward(Protocol):
    """A score of each candidate by itself, as a traced function of static shapes."""

    def __call__(self, candidates: Candidates) -> Float[jax.Array, " B"]:
        """The scores; a larger one is better."""


@dataclasses.dataclass(frozen=True)
class LikelihoodReward:
    """The likelihood of what was drawn, under the model without guidance.

    It prefers the plain to the rare, which is not the same as the good.

    Attributes:
      scale: factor on the nats.
    """

    scale: float = 1.0

    def __call__(self, candidates: Candidates) -> Float[jax.Array, " B"]:
        """See `Reward`.

        Raises:
          ValueError: the head has no likelihood.
        """
        if candidates.log_likelihood is None:
            raise ValueError(
                "This model's head draws, but has no likelihood to search by; choose another "
                "config.sampling.reward than 'likelihood'."
            )
        return self.scale * candidates.log_likelihood


@dataclasses.dataclass(frozen=True)
class FunctionReward:
    """Any function of `Candidates`, by name.

    Attributes:
      function: 'module:function'.
    """

    function: str

    def __post_init__(self) -> None:
        self._imported  # noqa: B018  A wrong name is told when it is built.

    @functools.cached_property
    def _imported(self) -> Callable[[Candidates], jax.Array]:
        module, _, name = self.function.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"The reward is the function {self.function!r}, which cannot be imported: {error}; "
                "give 'module:function'."
            ) from None

    def __call__(self, candidates: Candidates) -> Float[jax.Array, " B"]:
        """See `Reward`."""
        return self._imported(candidates)

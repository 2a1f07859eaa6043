"""What a head is: how the tokens of one or more levels are predicted from hidden states."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import jax
from jaxtyping import Float

from var_jax.pyramid import ScalePyramid

T = TypeVar("T")


class Head(Protocol):
    """A flax module over hidden states; targets are whatever the codec encodes to.

    Attributes:
      sampling: the class of its settings of generation, a frozen dataclass with the method
        `at(level, pyramid)`; see `CategoricalSampling`.
      has_likelihood: the 'loss' it reports is a negative log likelihood in nats.
    """

    sampling: type
    has_likelihood: bool

    def loss(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: jax.Array,
        keys: jax.Array | None,
        pyramid: ScalePyramid,
    ) -> tuple[Float[jax.Array, "B n"], dict[str, Float[jax.Array, "B n"]]]:
        """The training loss of each token, and what is reported of it.

        Args:
          hidden: of all tokens of a pyramid.
          target: [B, n, ...].
          keys: one PRNG key for each example [B] where the loss draws; None in evaluation, where it
            must not hang on chance.
          pyramid: of the tokens; a head may look at all tokens of one level together.

        Returns:
          The loss that is minimised; and by name what is reported as means over levels. 'loss' is
          always among them: negative log likelihood in nats where it exists.
        """

    def sample(
        self,
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        keys: jax.Array,
        settings: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws one level.

        Args:
          hiddens: of the tokens of the level, one for each condition.
          weights: of each of them, summing to 1; guidance is (1 + t, -t) for conditional and
            unconditional. Mixed in the head's own output space.
          keys: one PRNG key for each example [B].
          settings: `sampling.at(level, pyramid)`.

        Returns:
          The target, and what the codec is to accumulate for it.
        """

    def flops(self, tokens: int) -> float:
        """Matrix-product operations of the head's forward pass over so many tokens."""


def mixed(outputs: tuple[jax.Array, ...], weights: tuple[float, ...]) -> jax.Array:
    """The weighted sum of a head's outputs for several conditions."""
    if len(outputs) == 1:
        return outputs[0]
    total = weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        total = total + weight * output
    return total


def at_level(value: T | tuple[T, ...], name: str, level: int, pyramid: ScalePyramid) -> T:
    """A setting's value at a level: a tuple holds one for each.

    Raises:
      ValueError: a tuple of another length than the pyramid.
    """
    if not isinstance(value, tuple):
        return value
    if len(value) != pyramid.num_levels:
        raise ValueError(
            f"{name} has {len(value)} values, but the pyramid has {pyramid.num_levels} "
            "levels; give one for each level or a single value."
        )
    return value[level]

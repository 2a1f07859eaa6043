"""Independent bits, a choice between two for each (Infinity, arXiv 2412.04431, section 3.2)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from var_jax.fields import Field
from var_jax.heads.base import at_level, mixed
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import Linear, init_std


@dataclasses.dataclass(frozen=True)
class BitwiseSampling:
    """How the bits of tokens are drawn. A tuple gives one value for each level.

    The defaults are those of the official script.

    Attributes:
      temperature: divides the log odds before the filters.
      top_p: the less likely value of a bit is dropped if its probability is at most 1 - top_p; 0
        or 1 keeps both.
      top_k: 1 takes the more likely value; anything else keeps both.
    """

    temperature: float | tuple[float, ...] = 0.5
    top_p: float | tuple[float, ...] = 0.97
    top_k: int | tuple[int, ...] = 0

    def at(self, level: int, pyramid: ScalePyramid) -> BitwiseSampling:
        """The settings of one level; raises ValueError for a tuple of another length than K."""
        values = dataclasses.asdict(self).items()
        return BitwiseSampling(**{k: at_level(v, k, level, pyramid) for k, v in values})


def choose_bits(
    log_odds: Float[jax.Array, "*n"], noise: Float[jax.Array, "*n"], settings: BitwiseSampling
) -> UInt8[jax.Array, "*n"]:
    """Bits from the log odds of 1 against 0.

    Args:
      log_odds: before temperature and filters.
      noise: logistic, such as the difference of the Gumbel noises of 1 and 0.
      settings: of one level.
    """
    log_odds = log_odds / settings.temperature
    if settings.top_k == 1:
        noise = 0.0
    elif 0.0 < settings.top_p < 1.0:
        unlikely = jax.nn.sigmoid(-jnp.abs(log_odds)) <= 1 - settings.top_p
        noise = jnp.where(unlikely & (log_odds != 0), 0.0, noise)
    return (log_odds + noise > 0).astype(jnp.uint8)


class BitwiseHead(nn.Module):
    """Linear map to two logits for each bit.

    A vocabulary of 2 ** d codes takes 2 d rows, not 2 ** d.

    Attributes:
      target: of the codec: the bits of a token.
      width: C.
      init_factor: on the kernel at initialisation.
      dtype: type of the operands of the matrix product; its sums and the logits are float32.
    """

    sampling: ClassVar[type] = BitwiseSampling
    has_likelihood: ClassVar[bool] = True

    target: Field
    width: int
    init_factor: float = 0.02
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target.num_values != 2 or len(self.target.shape) != 1:
            raise ValueError(
                "A bitwise head predicts the bits of a token, [d] of 0 or 1, but the codec's "
                f"target is {self.target.name} {list(self.target.shape)} of "
                f"{self.target.num_values} values; choose the codec 'bitwise', or another head."
            )

    def setup(self) -> None:
        self.projection = Linear(
            (self.width,),
            (2, *self.target.shape),
            ("embed", None, "vocab"),
            std=self.init_factor * init_std(self.width),
            dtype=self.dtype,
            sum_dtype=jnp.float32,
        )

    def __call__(self, hidden: Float[jax.Array, "B n C"]) -> Float[jax.Array, "B n d"]:
        """Log odds of 1 against 0, float32: the difference of a bit's two logits."""
        logits = self.projection(hidden)
        log_odds = logits[..., 1, :] - logits[..., 0, :]
        return nn.with_logical_constraint(log_odds, ("batch", "length", "act_vocab"))

    def loss(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: UInt8[jax.Array, "B n d"],
        keys: jax.Array | None = None,
        pyramid: ScalePyramid | None = None,
    ) -> tuple[Float[jax.Array, "B n"], dict[str, Float[jax.Array, "B n"]]]:
        """Cross entropy in nats: the mean over a token's bits is minimised.

        Returns:
          The mean; and 'loss', the sum, which is the token's negative log likelihood, and
          'accuracy', the share of bits whose more likely value is the target.
        """
        log_odds = self(hidden)
        one = target != 0
        nll = jax.nn.softplus(jnp.where(one, -log_odds, log_odds))
        correct = ((log_odds > 0) == one).astype(jnp.float32)
        return nll.mean(-1), {"loss": nll.sum(-1), "accuracy": correct.mean(-1)}

    def sample(
        self,
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        keys: jax.Array,
        settings: BitwiseSampling,
    ) -> tuple[UInt8[jax.Array, "B n d"], UInt8[jax.Array, "B n d"]]:
        """Draws the bits of one level; guidance mixes logits: (1 + t) cond - t uncond.

        Returns:
          The bits, twice.
        """
        log_odds = mixed(tuple(self(hidden) for hidden in hiddens), weights)
        shape = log_odds.shape[1:]
        noise = jax.vmap(lambda key: jax.random.logistic(key, shape))(keys)
        bits = choose_bits(log_odds, noise, settings)
        return bits, bits

    @nn.nowrap
    def flops(self, tokens: int) -> float:
        """See `Head`."""
        return 4.0 * tokens * self.width * self.target.shape[0]

"""Codes near to the nearest one, in its place (RobusTok's latent perturbation)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int

from var_jax.quantizers.nearest import ranked_codes


@struct.dataclass
class Replacements:
    """Which tokens of a batch take another code.

    Attributes:
      replaced: which they are, bool [B, n].
      rank: int32 [B, n], the place of the code that each takes among the nearest ones; 0 is the
        nearest of all.
    """

    replaced: jax.Array
    rank: jax.Array


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """Errors such as a generator makes: tokens take codes near to the right ones.

    Attributes:
      example_rate: probability that an example is perturbed (beta; there the share of a batch).
      token_rate: of a token of such an example (alpha).
      num_nearest: a token takes one of so many nearest codes, all alike and the nearest among them
        (delta).

    Raises:
      ValueError: a rate is no probability, or there is no code to take.
    """

    example_rate: float
    token_rate: float
    num_nearest: int

    def __post_init__(self) -> None:
        if not (0 <= self.example_rate <= 1 and 0 <= self.token_rate <= 1):
            raise ValueError(
                "example_rate and token_rate of a perturbation must be in [0, 1], got "
                f"{self.example_rate} and {self.token_rate}."
            )
        if self.num_nearest < 1:
            raise ValueError(f"num_nearest must be 1 or more, got {self.num_nearest}.")

    def draw(self, keys: jax.Array, length: int) -> Replacements:
        """For `length` tokens of each example, one PRNG key for each [B]."""

        def of_example(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            example_key, token_key, rank_key = jax.random.split(key, 3)
            example = jax.random.uniform(example_key) < self.example_rate
            tokens = jax.random.uniform(token_key, (length,)) < self.token_rate
            rank = jax.random.randint(rank_key, (length,), 0, self.num_nearest)
            return example & tokens, rank

        return Replacements(*jax.vmap(of_example)(keys))

    def codes(
        self,
        vectors: Float[jax.Array, "B n C"],
        codebook: Float[jax.Array, "V C"],
        drawn: Replacements,
        normalize: bool = False,
    ) -> Int[jax.Array, "B n"]:
        """Codes of vectors, the nearest ones but where others are drawn.

        Args:
          vectors, codebook, normalize: see `nearest_codes`; V is num_nearest or more.
          drawn: of these tokens.
        """
        ranked = ranked_codes(vectors, codebook, self.num_nearest, normalize)
        rank = jnp.where(drawn.replaced, drawn.rank, 0)
        return jnp.take_along_axis(ranked, rank[..., None], axis=-1)[..., 0]

"""What heads of continuous latents have in common."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.fields import Field


def check_latents(target: Field, what: str) -> None:
    """Raises ValueError where a target is no vector of floats.

    Args:
      target: of a token.
      what: the head, such as 'A flow head'.
    """
    if len(target.shape) != 1 or target.num_values:
        raise ValueError(
            f"{what} predicts a vector of floats for each token, not {target.name} of shape "
            f"{target.shape}; choose a codec with continuous targets: 'kl_latent' or 'latent'."
        )


def logit_normal(shares: jax.typing.ArrayLike, mean: float, std: float) -> Float[jax.Array, " *n"]:
    """The times below which these shares, in [0, 1], of a logit-normal distribution lie (arXiv
    2403.03206): the sigmoid of normal numbers with that mean and deviation."""
    return jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(jnp.asarray(shares, jnp.float32)))


def constant_noise(number: int, shape: tuple[int, int]) -> Float[jax.Array, "n c"]:
    """Normal noise for the tokens at positions 0 .. n - 1, the same in a longer pyramid."""
    key = jax.random.fold_in(jax.random.key(0), number)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0]))
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)

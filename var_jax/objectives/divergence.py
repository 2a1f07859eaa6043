"""How far a model's probabilities are from another's."""

import jax
import jax.numpy as jnp
from jaxtyping import Float


def divergence(
    reference: Float[jax.Array, "*N V"], logits: Float[jax.Array, "*N V"], temperature: float = 1.0
) -> Float[jax.Array, "*N"]:
    """T^2 KL(softmax(reference / T) || softmax(logits / T)), in nats (arXiv 1503.02531, section 2).

    No gradient reaches the reference.
    """
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(reference) / temperature)
    log_q = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1)

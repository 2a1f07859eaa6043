"""Direct discriminative optimization (DDO, arXiv 2503.01103): a model against its own samples.

The logarithm of p / p_reference is a discriminator of data from samples of the reference; training
it as one, as a GAN's is, trains p, without a second network. In the next round the result is the
reference, and new samples are drawn of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from var_jax.decoding.twins import pairs
from var_jax.fields import Field
from var_jax.network import Network
from var_jax.objectives.base import Aux
from var_jax.objectives.likelihood import summarise
from var_jax.objectives.log_ratio import LogRatio
from var_jax.tokenizer.vqvae import VQVAE

#: Of a batch: tokens of the reference's samples under the conditions of the examples.
SAMPLES = "samples"


@dataclasses.dataclass(frozen=True)
class Discriminative(LogRatio):
    """Each example against a sample of the reference under the same condition.

    With r and s the sums over tokens of log p / p_reference of example and sample:

        [-mean log sigmoid(beta r) - alpha mean w log sigmoid(-beta s)] / max(alpha, 1)

    w is 0 where nothing is asked for, since guidance wants an unconditional model that covers all
    that there is, else 1. With alpha = beta = 1 the best p is that of the data; other values
    sharpen, so training has to end early, by samples and not by the likelihood, which gets worse.

    Attributes:
      network, tokenizer: see `Likelihood`; a batch also holds 'samples', as the codec's source.
      alpha: weight of the samples.
      beta: see above.
      null_rate: probability that nothing is asked for of an example and its sample.
    """

    network: Network
    tokenizer: VQVAE
    alpha: float = 10.0
    beta: float = 0.02
    null_rate: float = 0.1

    #: Samples are cached, and examples like them.
    from_images = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """See `NetworkObjective`."""
        samples = dataclasses.replace(self.tokenizer.codec.source, name=SAMPLES)
        return (*super().fields, samples)

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        parts = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        source = self.tokenizer.codec.source.name
        real = self.likelihood.lesson(frozen, batch, parts[:, 0])
        drawn = self.likelihood.lesson(frozen, {source: batch[SAMPLES]}, parts[:, 1])
        null = jax.vmap(jax.random.uniform)(parts[:, 2]) < self.null_rate
        given = self.without(self.likelihood.given(frozen, batch), null)
        lesson = real.replace(
            inputs=pairs(real.inputs, drawn.inputs),
            targets=pairs(real.targets, drawn.targets),
        )
        given = jax.tree.map(lambda x: jnp.repeat(x, 2, 0), given)
        gaps, here = self.log_ratio(params, frozen, lesson, given)
        gaps = gaps.reshape(-1, 2)
        value = self.contrast(gaps[:, 0], gaps[:, 1], null)
        means = {name: x[::2].mean(0) for name, x in here.items()}
        found = {
            "loss": value,
            "gap": gaps[:, 0].mean(),
            "gap_samples": gaps[:, 1].mean(),
            "preferred": (gaps[:, 0] > gaps[:, 1]).mean(),
        }
        return value, Aux({**found, **summarise(self.network.transformer.pyramid, means)})

    def contrast(
        self,
        gap: Float[jax.Array, " B"],
        gap_samples: Float[jax.Array, " B"],
        null: Bool[jax.Array, " B"],
    ) -> jax.Array:
        """The loss of r, s and where nothing is asked for; see the class."""
        real = jax.nn.log_sigmoid(self.beta * gap).mean()
        drawn = jnp.where(null, 0.0, jax.nn.log_sigmoid(-self.beta * gap_samples)).mean()
        return -(real + self.alpha * drawn) / max(self.alpha, 1.0)

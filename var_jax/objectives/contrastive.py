"""Condition contrastive alignment (CCA, arXiv 2410.09347): guidance trained into the model.

A fine-tuned model is compared with the one that it starts from, the reference: tokens under their
own condition should become more likely than they are to the reference, the same tokens under
another example's condition less likely. Afterwards it draws about as well without guidance as the
reference with it, in half the time. DPO and unlearning are other functions of the same two ratios.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from var_jax.decoding.twins import pairs
from var_jax.network import Network
from var_jax.objectives.base import Aux
from var_jax.objectives.likelihood import summarise
from var_jax.objectives.log_ratio import LogRatio
from var_jax.tokenizer.vqvae import VQVAE

FORMS = ("cca", "dpo", "unlearning")


@dataclasses.dataclass(frozen=True)
class Contrastive(LogRatio):
    """What of a batch is contrasted: each example's tokens under its own condition and under that
    of the next example of the batch, the first one's for the last.

    With g and r the logarithms of p(tokens | condition) / p_reference(tokens | condition) for the
    own and the other condition, and S = log sigmoid(beta x):

        cca: [-mean S(g) - mean w S(s r)] / max(negative_weight, 1)
        unlearning: the same with S(x) = x
        dpo: -mean S(g - r)

    Where both conditions are the same, or nothing is asked for, s = w = 1; elsewhere s = -1 and
    w = negative_weight.

    Microbatches find their negatives among themselves.

    Attributes:
      network, tokenizer, from_images: see `Likelihood`.
      form: of FORMS.
      beta: see above.
      negative_weight: lambda of the paper.
      null_rate: probability that an example asks for nothing, in both conditions, so that guidance
        can still be used. 0 is the released code's simpler form: pairs of equal conditions count as
        negative ones, and nothing is divided by max(negative_weight, 1).
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool = False
    form: str = "cca"
    beta: float = 0.02
    negative_weight: float = 50.0
    null_rate: float = 0.1

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"Unknown form {self.form!r}; choose one of {', '.join(FORMS)}.")

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        parts = jax.vmap(jax.random.split)(keys)
        lesson = self.likelihood.lesson(frozen, batch, parts[:, 0])
        own, other, null = self._conditions(frozen, batch, parts[:, 1])
        same = jax.tree.map(_equal_rows, own, other)
        same = functools.reduce(jnp.logical_and, jax.tree.leaves(same))
        # Each example beside its negative: a cut batch axis keeps both on one device.
        given = jax.tree.map(pairs, own, other)
        lesson = lesson.replace(
            inputs=jnp.repeat(lesson.inputs, 2, 0), targets=jnp.repeat(lesson.targets, 2, 0)
        )
        gaps, here = self.log_ratio(params, frozen, lesson, given)
        gaps = gaps.reshape(-1, 2)
        value = self.contrast(gaps[:, 0], gaps[:, 1], null | same)
        means = {name: x[::2].mean(0) for name, x in here.items()}
        found = {
            "loss": value,
            "gap": gaps[:, 0].mean(),
            "gap_negative": gaps[:, 1].mean(),
            "preferred": (gaps[:, 0] > gaps[:, 1]).mean(),
        }
        return value, Aux({**found, **summarise(self.network.transformer.pyramid, means)})

    def contrast(
        self,
        gap: Float[jax.Array, " B"],
        gap_negative: Float[jax.Array, " B"],
        positive: Bool[jax.Array, " B"],
    ) -> jax.Array:
        """The loss of g, r and where the negative is none; see the class."""

        def score(x: jax.Array) -> jax.Array:
            return x if self.form == "unlearning" else jax.nn.log_sigmoid(self.beta * x)

        if self.form == "dpo":
            return -score(gap - gap_negative).mean()
        positive = positive & (self.null_rate > 0)
        sign = jnp.where(positive, 1.0, -1.0)
        weight = jnp.where(positive, 1.0, self.negative_weight)
        value = -score(gap).mean() - (weight * score(sign * gap_negative)).mean()
        return value / max(self.negative_weight, 1.0) if self.null_rate else value

    def _conditions(self, frozen: Any, batch: Any, keys: jax.Array) -> tuple[Any, Any, jax.Array]:
        """Own and other condition, and bool [B], where both ask for nothing."""
        own = self.likelihood.given(frozen, batch)
        other = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), own)
        null = jax.vmap(jax.random.uniform)(keys) < self.null_rate
        return self.without(own, null), self.without(other, null), null


def _equal_rows(a: jax.Array, b: jax.Array) -> Bool[jax.Array, " B"]:
    return (a == b).reshape(a.shape[0], -1).all(-1)

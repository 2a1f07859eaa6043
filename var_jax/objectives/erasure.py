"""Erasing a class (EAR, arXiv 2506.20151): asked for it, a model answers as if it did not know it.

What a network makes of an image's tokens when it is asked for the class is moved to what the model
that the run starts from makes of them when it is asked for something else, and on, away from the
class. The published code is for a raster model of texts, Janus-Pro; here a level of the pyramid
stands in place of its windows of consecutive tokens, and a class in place of the prompt.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.network import Network
from var_jax.objectives.base import Aux, FrozenPart, split_keys
from var_jax.objectives.checks import check_classes
from var_jax.objectives.likelihood import BesideLikelihood
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass(frozen=True)
class Erasure(BesideLikelihood):
    """Squared distances of hidden states from those of the model that the run starts from.

    With c an erased class, a the anchor and h(.) what the head of the frozen model would read after
    an image's own coarser levels, an example that is asked for c should have

        h(a) - strength * (h(c) - h(nothing))

    and any other what it has, h(its label). Each example's coarser levels are those of its image,
    whatever is asked: once the class is gone, what is drawn under its name is no image of it.

    An update adds up the distances of each level's tokens, and leaves out levels whose sum is
    no more than the threshold: these are there already, and moving on harms what shall stay. The
    published code updates after each window, here all levels share an update.

    Attributes:
      network, tokenizer, from_images: see `Likelihood`.
      erased: labels of the classes to erase.
      anchor: the label that stands in for them; None is 'no class'.
      strength: eta; see above.
      rate: probability that an example is asked for an erased class, whatever it shows; those that
        show one are always. 1 is the published form, in which nothing holds the other classes.
      threshold: of a level, the sum over its tokens of the mean squared distance per channel.

    Raises:
      ValueError: no class, one that the model does not know, an anchor among the erased, or a
        network that is not asked by labels.
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool = False
    erased: tuple[int, ...] = ()
    anchor: int | None = None
    strength: float = 1.0
    rate: float = 0.5
    threshold: float = 0.05

    #: Forward and backward, and the reference's three.
    passes: ClassVar[int] = 6
    #: Whole pyramids.
    trained: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not self.erased:
            raise ValueError(
                "The objective 'erasure' needs the classes to erase; give such as "
                "--config.train.objective.erased='(3,)'."
            )
        anchors = () if self.anchor is None else (self.anchor,)
        check_classes(self.network, (*self.erased, *anchors), "The objective 'erasure'")
        if self.anchor in self.erased:
            raise ValueError(
                f"The anchor, class {self.anchor}, is to be erased itself; give another one."
            )

    def frozen_parts(self) -> dict[str, FrozenPart]:
        """See `NetworkObjective`."""
        reference = FrozenPart(self.network.init_params, as_trained=True)
        return {**super().frozen_parts(), "reference": reference}

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        lesson_keys, rate_keys, class_keys = split_keys(keys, 3)
        inputs = self.likelihood.lesson(frozen, batch, lesson_keys).inputs
        labels = self.likelihood.given(frozen, batch)
        classes = jnp.asarray(self.erased, labels.dtype)
        shown = (labels[:, None] == classes).any(-1)
        chosen = shown | (jax.vmap(jax.random.uniform)(rate_keys) < self.rate)
        drawn = jax.vmap(lambda key: jax.random.choice(key, classes))(class_keys)
        asked = jnp.where(chosen & ~shown, drawn, labels)

        # All as in evaluation: what is dropped at random is no part of the distance.
        known, moved = self.targets(frozen["reference"], inputs, asked)
        target = jnp.where(chosen[:, None, None], moved, known)
        hidden, _ = self.network.hidden(params, inputs, asked)
        distance = jnp.square(hidden - jax.lax.stop_gradient(target)).mean(-1)

        def mean(rows: jax.Array) -> Float[jax.Array, " L"]:
            rows = rows.astype(distance.dtype)
            return (distance * rows[:, None]).sum(0) / jnp.maximum(rows.sum(), 1)

        pyramid = self.network.transformer.pyramid
        erased, kept = mean(chosen), mean(~chosen)
        sums = level_sums(erased, pyramid)
        value = (open_levels(sums, self.threshold).sum() + kept.sum()) / pyramid.length
        return value, Aux(
            {
                "loss": value,
                "erased": erased.mean(),
                "kept": kept.mean(),
                "levels_open": (sums > self.threshold).mean(),
            }
        )

    def targets(
        self, reference: Any, inputs: Float[jax.Array, "B L D"], asked: Int[jax.Array, " B"]
    ) -> tuple[Float[jax.Array, "B L C"], Float[jax.Array, "B L C"]]:
        """Hidden states as they were, and where those of erased classes are moved to.

        Args:
          reference: parameters of the model that the run starts from.
          inputs: of the tokens.
          asked: labels.
        """

        def hidden(labels: jax.Array) -> jax.Array:
            return self.network.hidden(reference, inputs, labels)[0]

        known, nothing = hidden(asked), hidden(self.network.transformer.conditioning().null(asked))
        anchor = nothing
        if self.anchor is not None:
            anchor = hidden(jnp.full_like(asked, self.anchor))
        return known, erased_target(anchor, known, nothing, self.strength)


def erased_target(
    anchor: Float[jax.Array, "*N C"],
    erased: Float[jax.Array, "*N C"],
    nothing: Float[jax.Array, "*N C"],
    strength: float = 1.0,
) -> Float[jax.Array, "*N C"]:
    """h(a) - strength (h(c) - h(nothing)); see `Erasure`."""
    return anchor - strength * (erased - nothing)


def level_sums(
    distances: Float[jax.Array, " L"], pyramid: ScalePyramid
) -> Float[jax.Array, " {pyramid.num_levels}"]:
    """Sums over the tokens of each level."""
    return jnp.stack([x.sum() for x in pyramid.split(distances, axis=0)])


def open_levels(sums: Float[jax.Array, " K"], threshold: float) -> Float[jax.Array, " K"]:
    """The sums above the threshold, which alone have gradients; 0 for the others."""
    return jnp.where(sums > threshold, sums, 0.0)

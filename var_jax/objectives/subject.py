"""A new class from a few images (ARBooth, arXiv 2504.02612): learned beside what was known.

Ten images of one thing are few enough for a model to learn them by heart and to forget what it
knew. So it also stays near what the model that the run starts from says of other images, which that
model draws itself, new ones in every step. The published code is for Infinity and texts, and draws
the kind that the thing is of; here a class stands in place of a prompt, and all can be drawn.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling
from var_jax.network import Network
from var_jax.objectives.base import Aux, FrozenPart, split_keys
from var_jax.objectives.checks import check_categorical, check_classes
from var_jax.objectives.divergence import divergence
from var_jax.objectives.level_weights import LevelWeights, UniformWeights
from var_jax.objectives.likelihood import BesideLikelihood
from var_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass(frozen=True)
class SubjectTuning(BesideLikelihood):
    """The likelihood of the images, and prior_weight times a divergence from the starting model.

    The divergence is KL(p_start || p), the mean per token, of what the starting model draws. As
    many images are drawn in a step as there are in the batch.

    Attributes:
      network, tokenizer, from_images, weights: see `Likelihood`.
      prior_class: label of what is drawn, such as the kind that the thing is of; None is any of the
        known classes, each as often.
      known_classes: how many classes the starting model knows, the first ones; 0 is all.
      prior_weight: of the divergence; 0 draws nothing.
      top_k, top_p, cfg: how images are drawn, see `CategoricalSampling` and
        `LinearGuidance`.

    Raises:
      ValueError: a head that is not categorical, a network that is not asked by labels, or a class
        that it does not know.
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool = False
    weights: LevelWeights = UniformWeights()
    prior_class: int | None = None
    known_classes: int = 0
    prior_weight: float = 0.5
    top_k: int = 900
    top_p: float = 0.97
    cfg: float = 1.5

    #: Whole pyramids.
    trained: ClassVar[None] = None

    def __post_init__(self) -> None:
        drawn = () if self.prior_class is None else (self.prior_class,)
        check_classes(self.network, drawn, "The objective 'subject'")
        check_categorical(self.network.head, "The objective 'subject'")

    @property
    def passes(self) -> int:
        """See `NetworkObjective`: of the images, and of the drawn ones: to draw them with and
        without their class, of both models."""
        return 9 if self.prior_weight else 3

    def frozen_parts(self) -> dict[str, FrozenPart]:
        """See `NetworkObjective`."""
        parts = super().frozen_parts()
        if self.prior_weight:
            parts["reference"] = FrozenPart(self.network.init_params, as_trained=True)
        return parts

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        own_keys, class_keys, draw_keys = split_keys(keys, 3)
        value, aux = self.likelihood.loss(params, frozen, stats, batch, own_keys, step)
        if not self.prior_weight:
            return value, aux
        labels = self.drawn_labels(class_keys)
        prior = self.divergence(params, frozen, self.draw(frozen, labels, draw_keys), labels)
        value = value + self.prior_weight * prior
        return value, Aux({**aux.metrics, "loss": value, "prior_divergence": prior})

    def drawn_labels(self, keys: jax.Array) -> Int[jax.Array, " B"]:
        """What is drawn, by one PRNG key for each image [B]."""
        if self.prior_class is not None:
            return jnp.full(keys.shape, self.prior_class, jnp.int32)
        count = self.known_classes or self.network.transformer.num_classes
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)

    def draw(
        self, frozen: Any, labels: Int[jax.Array, " B"], keys: jax.Array
    ) -> Int[jax.Array, "B L"]:
        """Tokens of images, by the model that the run starts from.

        Args:
          frozen: see `Objective.loss`.
          labels: of the images.
          keys: one PRNG key for each image [B].
        """
        decoder = NextScale(LinearGuidance(self.cfg), CategoricalSampling(self.top_k, self.top_p))
        drawn = decoder(
            self.network,
            frozen["reference"],
            self.tokenizer.codec,
            frozen["tokenizer"].get("codec", {}),
            labels,
            keys,
        )
        return drawn.targets

    def divergence(
        self,
        params: Any,
        frozen: Any,
        tokens: Int[jax.Array, "B L"],
        labels: Int[jax.Array, " B"],
    ) -> Float[jax.Array, ""]:
        """From what the starting model says of images, in nats per token.

        Args:
          params, frozen: see `Objective.loss`.
          tokens, labels: of the images.
        """
        codec = {"params": frozen["tokenizer"].get("codec", {})}
        inputs = self.tokenizer.codec.apply(codec, tokens, method="lesson").inputs

        def logits(params: Any) -> jax.Array:
            hidden, _ = self.network.hidden(params, inputs, labels)
            return self.network.head.apply({"params": params["head"]}, hidden)

        return divergence(logits(frozen["reference"]), logits(params)).mean()

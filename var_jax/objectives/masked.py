"""Tokens of a level from the others of the same level: what trains HMAR's masked branch.

HMAR, arXiv 2506.04421, section 3.3, its second stage: the network that next-scale prediction has
trained stays as it is, and its masked branch learns to fill in what is masked of each level.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from var_jax.codecs.own_level import own_inputs
from var_jax.network import Network
from var_jax.objectives.base import Aux, split_keys
from var_jax.objectives.likelihood import BesideLikelihood
from var_jax.tokenizer.vqvae import VQVAE

#: Stream of the random numbers of a step, beside those of `train.step`.
_MASK_STREAM = 2


@dataclasses.dataclass(frozen=True)
class MaskedLikelihood(BesideLikelihood):
    """The mean of the head's loss over masked tokens.

    A step masks the same share p of each level, uniform in [0, 1], and the same tokens for the
    whole batch: ceil(p n) of a level's n. Of level 0, which reads no codes, and of levels of a
    single token none is masked.

    Attributes:
      network, tokenizer, from_images: see `Likelihood`; the network has a masked branch.
      seed: of the masks.

    Raises:
      ValueError: the network has no masked branch.
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool = False
    seed: int = 0

    #: The mask embedding's gradient goes back through all blocks.
    passes = 3
    #: Whole pyramids.
    trained = None
    #: See `PartialObjective`.
    trains = ("masked/*",)

    def __post_init__(self) -> None:
        if self.network.masked is None:
            raise ValueError(
                "The objective 'masked' trains a masked branch, which the network has not; give "
                "config.model.masked_blocks."
            )

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        masked = self.draw_mask(step)
        loss, metrics = self.per_token(params, frozen, batch, masked, keys)
        value = over_masked(loss, masked[None]).mean()
        means = {f"{name}_mean": over_masked(x, masked[None]).mean() for name, x in metrics.items()}
        return value, Aux({"loss": value, "masked_share": masked.mean(), **means})

    def draw_mask(self, step: jax.Array) -> Bool[jax.Array, " L"]:
        """Which tokens a step masks."""
        key = jax.random.fold_in(jax.random.key(self.seed), _MASK_STREAM)
        share_key, place_key = jax.random.split(jax.random.fold_in(key, step))
        share = jax.random.uniform(share_key)
        pyramid = self.network.transformer.pyramid
        places = jax.random.uniform(place_key, (pyramid.length,))
        masked = []
        for k, part in enumerate(pyramid.split(places, axis=0)):
            rank, size = jnp.argsort(jnp.argsort(part)), pyramid.sizes[k]
            masked.append((rank < jnp.ceil(share * size)) & (k > 0 and size > 1))
        return jnp.concatenate(masked)

    def per_token(
        self,
        params: Any,
        frozen: Any,
        batch: Any,
        masked: Bool[jax.Array, " L"],
        keys: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of each token, [B, L], given those that are not masked; see `Head.loss`.

        Args:
          params, frozen, batch: see `Likelihood`.
          masked: which tokens are, in all examples.
          keys: one PRNG key for each example [B]; None in evaluation.
        """
        lesson_keys, network_keys, head_keys = split_keys(keys, 3)
        lesson = self.likelihood.lesson(frozen, batch, lesson_keys)
        pyramid, codec = self.network.transformer.pyramid, self.tokenizer.codec
        own = own_inputs(codec, frozen["tokenizer"].get("codec", {}), lesson.targets, pyramid)
        hidden = self.network.masked.hidden(
            params["masked"],
            jax.lax.stop_gradient(params["transformer"]),
            lesson.inputs,
            own,
            jnp.broadcast_to(masked, lesson.inputs.shape[:2]),
            self.likelihood.given(frozen, batch),
            network_keys,
        )
        return self.network.loss(params["masked"], hidden, lesson.targets, head_keys, pyramid)


def over_masked(
    x: Float[jax.Array, "B n"], masked: Bool[jax.Array, "#B n"]
) -> Float[jax.Array, "B n"]:
    """Numbers of tokens, 0 where they are not masked, such that the mean over all tokens of an
    example is that over its masked ones; 0 where none is."""
    count = jnp.maximum(masked.sum(-1, keepdims=True), 1)
    return jnp.where(masked, x, 0.0) * (masked.shape[-1] / count)

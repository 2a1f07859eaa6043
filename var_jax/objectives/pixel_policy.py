"""VA-pi (arXiv 2512.19680): tokens are rewarded by the pixels that they decode to.

A tokenizer's decoder learned from pictures' own tokens, a transformer from tokens alone: what it
draws may decode badly, and nothing in its loss says so. Here several token maps of each picture are
drawn after the picture's own coarser levels, as in teacher forcing, all levels at once; they are
decoded, compared with the picture, and made more or less likely than they are: a policy gradient
without generating. The published code is for a raster model, LlamaGen; here levels of a pyramid
stand in place of its positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.heads.categorical import CategoricalSampling
from var_jax.network import Network
from var_jax.objectives.base import Aux, FrozenPart, split_keys
from var_jax.objectives.checks import check_categorical
from var_jax.objectives.likelihood import BesideLikelihood, summarise
from var_jax.pixels import to_float
from var_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass(frozen=True)
class PixelPolicy(BesideLikelihood):
    """Group-relative policy optimization (GRPO) of the tokens, beside their likelihood.

    The reward of a drawn map is minus the mean squared difference between its pixels, in [-1, 1],
    and the picture's; where tokens are cached, those that the picture's own tokens decode to. Each
    update has draws of its own: the ratio to the model that drew is 1, and its clipping idle.

    Attributes:
      network, tokenizer, from_images: see `Likelihood`.
      draws: maps of each picture, which are compared with each other.
      advantage_clip: of advantages, in standard deviations of a group.
      kl_weight: of the divergence from the model that the run starts from; 0 needs none.
      likelihood_weight: of the mean cross entropy of the picture's own tokens.

    Raises:
      ValueError: fewer than two draws, or a head that is not categorical.
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool = False
    draws: int = 8
    advantage_clip: float = 5.0
    kl_weight: float = 0.0
    likelihood_weight: float = 0.1

    #: Whole pyramids.
    trained: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(
                f"A draw is compared with others; give 2 draws or more, not {self.draws}."
            )
        check_categorical(self.network.head, "The objective 'va_pi'")

    @property
    def passes(self) -> int:
        """See `NetworkObjective`."""
        return 4 if self.kl_weight else 3

    def frozen_parts(self) -> dict[str, FrozenPart]:
        """See `NetworkObjective`. The tokenizer is whole: it decodes."""
        tokenizer = FrozenPart(self.tokenizer.init_params)
        parts = {**self.likelihood.frozen_parts(), "tokenizer": tokenizer}
        if self.kl_weight:
            parts["reference"] = FrozenPart(self.network.init_params, as_trained=True)
        return parts

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        draw_keys, pass_keys = split_keys(keys, 2)
        forced = self.likelihood.forward(params, frozen, batch, pass_keys)
        tokens = self.draw(params, forced.hidden, draw_keys)
        rewards = self.rewards(frozen, batch, forced.lesson.targets, tokens)
        advantage = jnp.clip(advantages(rewards), -self.advantage_clip, self.advantage_clip)
        log_prob = self.log_prob(params, forced.hidden, tokens)
        reference = None
        if self.kl_weight:
            # By the same keys, so what differs are the parameters alone.
            base = self.likelihood.forward(frozen["reference"], frozen, batch, pass_keys)
            reference = self.log_prob(frozen["reference"], base.hidden, tokens)
        before = jax.lax.stop_gradient(log_prob)
        policy = policy_loss(log_prob, before, advantage, reference, self.kl_weight)
        _, own = self.likelihood.score(params, forced)
        value = policy + self.likelihood_weight * own["loss"].mean()
        found = {
            "loss": value,
            "reward": rewards.mean(),
            "reward_spread": rewards.std(1, ddof=1).mean(),
        }
        means = {name: x.mean(0) for name, x in own.items()}
        return value, Aux({**found, **summarise(self.network.transformer.pyramid, means)})

    def draw(
        self, params: Any, hidden: Float[jax.Array, "B L C"], keys: jax.Array
    ) -> Int[jax.Array, "B draws L"]:
        """Tokens, each from its own distribution in the pass.

        Args:
          params: of the network.
          hidden: of the pass.
          keys: one PRNG key for each example [B].
        """
        settings = CategoricalSampling(top_k=0, top_p=0.0).at(0, self.network.transformer.pyramid)

        def one(keys: jax.Array) -> jax.Array:
            return self.network.sample(params, (hidden,), (1.0,), keys, settings)[0]

        return jax.vmap(one, 0, 1)(jnp.stack(split_keys(keys, self.draws)))

    def log_prob(
        self, params: Any, hidden: Float[jax.Array, "B L C"], tokens: Int[jax.Array, "B draws L"]
    ) -> Float[jax.Array, "B draws L"]:
        """Logarithms of the probabilities of such tokens; see `draw`."""

        def one(tokens: jax.Array) -> jax.Array:
            pyramid = self.network.transformer.pyramid
            return -self.network.loss(params, hidden, tokens, None, pyramid)[1]["loss"]

        return jax.vmap(one, 1, 1)(tokens)

    def rewards(
        self,
        frozen: Any,
        batch: Any,
        targets: Int[jax.Array, "B L"],
        tokens: Int[jax.Array, "B draws L"],
    ) -> Float[jax.Array, "B draws"]:
        """Of drawn tokens; see the class.

        Args:
          frozen, batch: see `Objective.loss`.
          targets: the pictures' own tokens.
          tokens: see `draw`.
        """

        def decode(tokens: jax.Array) -> jax.Array:
            params = {"params": frozen["tokenizer"]}
            return self.tokenizer.apply(params, tokens, method="decode_tokens")

        wanted = to_float(batch["image"]) if self.from_images else decode(targets)
        drawn = decode(tokens.reshape(-1, tokens.shape[-1]))
        drawn = drawn.reshape(*tokens.shape[:2], *drawn.shape[1:])
        return -jnp.square(drawn - wanted[:, None]).mean((2, 3, 4))


def advantages(rewards: Float[jax.Array, "B draws"]) -> Float[jax.Array, "B draws"]:
    """How many standard deviations of its group each reward is above its group's mean."""
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-8)


def policy_loss(
    log_prob: Float[jax.Array, "*N L"],
    before: Float[jax.Array, "*N L"],
    advantage: Float[jax.Array, "*N"],
    reference: Float[jax.Array, "*N L"] | None = None,
    kl_weight: float = 0.0,
    clip: float = 0.2,
) -> Float[jax.Array, ""]:
    """-min(ratio A, clip(ratio) A) + kl_weight KL, the mean over all tokens (GRPO, arXiv
    2402.03300, equations 3 and 4).

    Args:
      log_prob: of the drawn tokens.
      before: when they were drawn; the ratio is exp(log_prob - before).
      advantage: A, of each map.
      reference: by the model that the run starts from; KL is exp(d) - d - 1, where d is
        reference - log_prob.
      kl_weight: see above.
      clip: how far from 1 a ratio still counts.
    """
    ratio, advantage = jnp.exp(log_prob - before), advantage[..., None]
    loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    if reference is not None:
        further = reference - log_prob
        loss = loss + kl_weight * (jnp.exp(further) - further - 1)
    return loss.mean()

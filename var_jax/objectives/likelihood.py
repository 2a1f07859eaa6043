"""Maximum likelihood of the tokens of every level given the coarser ones (VAR, equation 6)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from var_jax.heads.categorical import CategoricalHead
from var_jax.objectives.base import Aux
from var_jax.pixels import to_float
from var_jax.transformer.var import VAR


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Mean cross entropy over the L tokens of the pyramid.

    `params` is {'transformer': ..., 'head': ...}. A batch holds 'label' int32 [B] and
    'tokens' int32 [B, L]; then `frozen` is {'codec': ...}, the codec's parameters. Or it holds
    'image' uint8 [B, H, W, c], which the step encodes; then `frozen` is all of the tokenizer's.

    Attributes:
      var, head, codec: modules.
      tokenizer: encodes images; not needed for tokens.
      num_levels: train on the first levels only (progressive training); 0 is all.
      ramp_start, ramp_steps: the loss of the last of these levels is weighted by
        (step - ramp_start + 1) / ramp_steps, between 0.01 and 1; ramp_steps 0 is no ramp.
    """

    var: VAR
    head: CategoricalHead
    codec: Any
    tokenizer: Any = None
    num_levels: int = 0
    ramp_start: int = 0
    ramp_steps: int = 0

    def init_params(self, key: jax.Array):
        pyramid = self.var.pyramid
        inputs = jnp.zeros((1, pyramid.length, self.var.code_dim))
        hidden = jnp.zeros((1, 1, self.var.width))
        var_key, head_key = jax.random.split(key)
        return {
            "transformer": self.var.init(var_key, inputs, jnp.zeros((1,), jnp.int32))["params"],
            "head": self.head.init(head_key, hidden)["params"],
        }

    def init_stats(self):
        return ()

    def per_token(self, params, frozen, batch, keys=None):
        """Smoothed loss, negative log likelihood and hits of each token.

        Args:
          params, frozen, batch: see the class.
          keys: one PRNG key an example [B] for class dropout and drop path; None in evaluation.

        Returns:
          float32 [B, L], float32 [B, L] in nats, bool [B, L].
        """
        pyramid = self._pyramid()
        if "tokens" in batch:
            tokens = batch["tokens"]
        else:
            images = to_float(batch["image"])
            tokens = self.tokenizer.apply({"params": frozen}, images, method="encode")
        inputs = self.codec.apply({"params": frozen["codec"]}, tokens, method="teacher_inputs")
        inputs, tokens = inputs[:, : pyramid.length], tokens[:, : pyramid.length]
        hidden = self.var.apply(
            {"params": params["transformer"]},
            inputs,
            batch["label"],
            keys,
            num_levels=pyramid.num_levels,
        )
        return self.head.apply(
            {"params": params["head"]}, hidden, tokens, method="loss_and_correct"
        )

    def loss(self, params, frozen, stats, batch, keys, step):
        """See `Objective.loss`."""
        pyramid = self._pyramid()
        loss, nll, correct = self.per_token(params, frozen, batch, keys)
        weight = jnp.full((pyramid.length,), 1 / self.var.pyramid.length, jnp.float32)
        if self.ramp_steps:
            ramp = jnp.clip((step - self.ramp_start + 1) / self.ramp_steps, 0.01, 1.0)
            weight = weight.at[pyramid.level(pyramid.num_levels - 1)].multiply(ramp)
        value = (loss * weight).sum(-1).mean()
        metrics = summarise(pyramid, nll.mean(0), correct.astype(jnp.float32).mean(0))
        return value, Aux({"loss": value, **metrics})

    def after_update(self, params, ema, stats, carry, key, step):
        return params, ema, stats

    def _pyramid(self):
        return self.var.pyramid.prefix(self.num_levels or self.var.pyramid.num_levels)


def summarise(pyramid, nll, correct):
    """Means of per-token numbers over all tokens, the last level, and each level.

    Args:
      pyramid: of the tokens.
      nll: float [L], nats.
      correct: float [L], fraction of right predictions.

    Returns:
      loss_mean, accuracy_mean, loss_last, accuracy_last (`Lm`, `Accm`, `Lt`, `Acct`
      officially) as scalars, loss_level and accuracy_level [K].
    """
    loss_level = jnp.stack([x.mean() for x in pyramid.split(nll, axis=0)])
    accuracy_level = jnp.stack([x.mean() for x in pyramid.split(correct, axis=0)])
    return {
        "loss_mean": nll.mean(),
        "accuracy_mean": correct.mean(),
        "loss_last": loss_level[-1],
        "accuracy_last": accuracy_level[-1],
        "loss_level": loss_level,
        "accuracy_level": accuracy_level,
    }


@dataclasses.dataclass(frozen=True)
class Stage:
    """A span of progressive training: steps from `start` train the first `num_levels` levels."""

    start: int
    num_levels: int


def progressive_stages(
    num_levels: int, num_steps: int, warmup_steps: int, until: float, first: int
) -> tuple[Stage, ...]:
    """The stages of the official progressive schedule (`pg`, `pg0`).

    Training begins with the levels 0..first and, from the end of warm-up until the fraction
    `until` of all steps, adds one level at a time.

    Args:
      num_levels: K.
      num_steps: of the whole training.
      warmup_steps: before the first addition.
      until: fraction of training after which all levels train; 0 turns it off.
      first: last level of the first stage.

    Raises:
      ValueError: `until` or `first` out of range.
    """
    if not 0 <= until <= 1:
        raise ValueError(f"progressive.until must be in [0, 1], got {until}.")
    if not until:
        return (Stage(0, num_levels),)
    if not 0 <= first < num_levels:
        raise ValueError(f"progressive.first must be in 0..{num_levels - 1}, got {first}.")
    end = num_steps * until
    stages = []
    for step in range(num_steps):
        if step <= warmup_steps:
            last = first
        elif step >= end:
            last = num_levels - 1
        else:
            progress = min(max((step - warmup_steps) / (end - warmup_steps), 0), 1)
            last = first + round(progress * (num_levels - 1 - first))
        if not stages or stages[-1].num_levels != last + 1:
            stages.append(Stage(step, last + 1))
        if last == num_levels - 1:
            break
    return tuple(stages)

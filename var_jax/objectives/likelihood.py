"""Maximum likelihood of the tokens of every level given the coarser ones (VAR, equation 6)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct

from var_jax.codecs.base import Codec, Lesson
from var_jax.fields import Field
from var_jax.network import Network
from var_jax.objectives.base import Aux, FrozenPart, split_keys
from var_jax.objectives.curriculum import Curriculum, TrainedLevels
from var_jax.objectives.level_weights import LevelWeights, UniformWeights
from var_jax.pixels import to_float
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.condition import ReadsEncoded

#: Name of the frozen parameters of the encoder that a condition reads.
_ENCODER = "text_encoder"


@struct.dataclass
class TeacherForced:
    """A pass over what a codec teaches.

    Attributes:
      lesson: of the whole pyramid.
      hidden: of the tokens of the levels that train, [B, n, C].
      keys: one PRNG key for each example [B], for the head; None in evaluation.
    """

    lesson: Lesson
    hidden: jax.Array
    keys: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The head's loss, cross entropy for categorical tokens, as a weighted sum over the L tokens.

    `params` are those of the network. A batch holds what the network is conditioned on, and what
    the codec's `source` describes, such as 'tokens' int32 [B, L]; then frozen['tokenizer'] is
    {'codec': ...}. Or, with `from_images`, it holds 'image' uint8 [B, H, W, c], which the step
    encodes; then frozen['tokenizer'] is all of the tokenizer's.

    Attributes:
      network: what trains.
      tokenizer: with the codec.
      from_images: see above.
      weights: of the tokens' losses, by level.
      curriculum: which levels train when; None is always all.
      trained: of this step, see `at`; None is all.
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool = False
    weights: LevelWeights = UniformWeights()
    curriculum: Curriculum | None = None
    trained: TrainedLevels | None = None

    #: Forward and backward.
    passes = 3

    @property
    def codec(self) -> Codec:
        """Of the tokenizer."""
        return self.tokenizer.codec

    @property
    def pyramid(self) -> ScalePyramid:
        """What a lesson is about."""
        return self.network.transformer.pyramid if self.trained is None else self.trained.pyramid

    @property
    def levels(self) -> range:
        """Those of the pyramid that train."""
        chosen = None if self.trained is None else self.trained.levels
        return range(self.pyramid.num_levels) if chosen is None else chosen

    @property
    def fields(self) -> tuple[Field, ...]:
        """What of a batch it reads."""
        image = Field("image", self.tokenizer.image_shape, "uint8")
        asked = self.network.transformer.conditioning().fields
        return (*asked, image if self.from_images else self.codec.source)

    @property
    def held_out(self) -> Likelihood:
        """See `NetworkObjective`: all levels, and no weights."""
        return Likelihood(self.network, self.tokenizer, self.from_images)

    def at(self, step: int) -> Likelihood:
        """The objective of a step; few distinct ones, each is compiled once."""
        if self.curriculum is None:
            return self
        return dataclasses.replace(self, trained=self.curriculum.at(step))

    def frozen_parts(self) -> dict[str, FrozenPart]:
        """See `NetworkObjective`."""

        def init(key: jax.Array) -> Any:
            params = self.tokenizer.init_params(key)
            return params if self.from_images else {"codec": params.get("codec", {})}

        return {"tokenizer": FrozenPart(init), **_encoder_part(self.network)}

    def init_params(self, key: jax.Array) -> Any:
        return self.network.init_params(key)

    def init_stats(self) -> Any:
        return ()

    def per_token(
        self, params: Any, frozen: Any, batch: Any, keys: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of each token of the levels that train, [B, n], and what is reported of it; see
        `Head.loss`.

        Args:
          params, frozen, batch: see the class.
          keys: one PRNG key for each example [B]; None in evaluation.
        """
        return self.score(params, self.forward(params, frozen, batch, keys))

    def forward(
        self, params: Any, frozen: Any, batch: Any, keys: jax.Array | None = None
    ) -> TeacherForced:
        """The pass that the loss is of; see `per_token`."""
        lesson_keys, network_keys, head_keys = split_keys(keys, 3)
        lesson = self.lesson(frozen, batch, lesson_keys)
        tokens = self.pyramid.tokens(self.levels)
        hidden, _ = self.network.hidden(
            params,
            lesson.inputs[:, tokens],
            self.given(frozen, batch),
            network_keys,
            pyramid=self.pyramid,
            levels=self.levels,
        )
        return TeacherForced(lesson, hidden, head_keys)

    def given(self, frozen: Any, batch: Any) -> Any:
        """What is asked for of a batch; see `Conditioner`."""
        conditioner = self.network.transformer.conditioning()
        asked = conditioner.read(batch)
        if isinstance(conditioner, ReadsEncoded) and _ENCODER in frozen:
            asked = conditioner.encoded(frozen[_ENCODER], asked)
        return asked

    def score(self, params: Any, forced: TeacherForced) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What `per_token` gives of a pass."""
        lesson, tokens = forced.lesson, self.pyramid.tokens(self.levels)
        targets, part = lesson.targets[:, tokens], self.pyramid.part(self.levels)
        loss, metrics = self.network.loss(params, forced.hidden, targets, forced.keys, part)
        return loss if lesson.weights is None else loss * lesson.weights[..., tokens], metrics

    def lesson(self, frozen: Any, batch: Any, keys: jax.Array | None = None) -> Lesson:
        """What the codec teaches of a batch; without keys (None) as in evaluation."""
        if self.from_images:
            images = to_float(batch["image"])
            source = self.tokenizer.apply({"params": frozen["tokenizer"]}, images, method="read")
        else:
            source = batch[self.codec.source.name]
        codec = {"params": frozen["tokenizer"].get("codec", {})}
        return self.codec.apply(codec, source, self.pyramid, keys, method="lesson")

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        return self.total(*self.per_token(params, frozen, batch, keys), step)

    def total(
        self, loss: jax.Array, metrics: dict[str, jax.Array], step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """The loss of a step from that of each token; see `per_token` and `loss`."""
        pyramid = self.pyramid
        whole = pyramid if self.trained is None else self.trained.whole or pyramid
        weight = self.weights.weights(whole)[pyramid.tokens(self.levels)]
        weight = jnp.asarray(weight, jnp.float32)
        if self.trained is not None and self.trained.ramp_steps:
            ramp = (step - self.trained.ramp_start + 1) / self.trained.ramp_steps
            last = slice(-pyramid.sizes[self.levels[-1]], None)
            weight = weight.at[last].multiply(jnp.clip(ramp, 0.01, 1.0))
        value = (loss * weight).sum(-1).mean()
        means = {name: x.mean(0) for name, x in metrics.items()}
        return value, Aux({"loss": value, **summarise(pyramid, means, self.levels)})

    def after_update(
        self, params: Any, ema: Any, stats: Any, carry: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Any, Any]:
        return params, ema, stats


def _encoder_part(network: Network) -> dict[str, FrozenPart]:
    conditioner = network.transformer.conditioning()
    if not isinstance(conditioner, ReadsEncoded) or conditioner.encoder is None:
        return {}
    encoder, dtype = conditioner.encoder, network.transformer.dtype
    init = functools.partial(encoder.init, dtype=dtype)
    return {_ENCODER: FrozenPart(init, load=functools.partial(encoder.load, dtype))}


class BesideLikelihood:
    """What other objectives of a network have in common with its likelihood: the fields that they
    read, and no state. They are frozen dataclasses of network, tokenizer and from_images, at least.
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool
    #: Of the tokens' losses; some have it as a field.
    weights: LevelWeights = UniformWeights()

    @property
    def likelihood(self) -> Likelihood:
        """Of the same network, tokenizer and weights."""
        return Likelihood(self.network, self.tokenizer, self.from_images, self.weights)

    @property
    def fields(self) -> tuple[Field, ...]:
        """See `NetworkObjective`."""
        return self.likelihood.fields

    @property
    def held_out(self) -> Any:
        """See `NetworkObjective`."""
        return self.likelihood.held_out

    def at(self, step: int) -> Self:
        """See `NetworkObjective`."""
        return self

    def frozen_parts(self) -> dict[str, FrozenPart]:
        """See `NetworkObjective`."""
        return self.likelihood.frozen_parts()

    def init_params(self, key: jax.Array) -> Any:
        return self.network.init_params(key)

    def init_stats(self) -> Any:
        return ()

    def after_update(
        self, params: Any, ema: Any, stats: Any, carry: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Any, Any]:
        return params, ema, stats


class OwnPass(BesideLikelihood):
    """An objective whose network makes no pass over levels but one of its own, in evaluation too.
    It has `per_token`, as `Likelihood` has."""

    @property
    def held_out(self) -> Self:
        """See `NetworkObjective`."""
        return self

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        loss, metrics = self.per_token(params, frozen, batch, keys)
        value = loss.mean()
        means = {name: x.mean(0) for name, x in metrics.items()}
        return value, Aux({"loss": value, **summarise(self.network.transformer.pyramid, means)})

    def per_token(
        self, params: Any, frozen: Any, batch: Any, keys: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of each token, [B, L], and what is reported of it."""
        raise NotImplementedError


def summarise(
    pyramid: ScalePyramid, means: dict[str, Any], levels: range | None = None
) -> dict[str, Any]:
    """Means of per-token numbers over all tokens, the last level, and each level.

    Args:
      pyramid: of the tokens.
      means: float [n] each, such as 'loss' in nats and 'accuracy'.
      levels: consecutive ones of the pyramid that the tokens are of; all by default.

    Returns:
      Of each name, such as loss: loss_mean and loss_last (`Lm`, `Lt` officially) as scalars, and
      loss_level [K]; or, where levels before are missing, scalars by number, such as loss_level/8.
    """
    levels = range(pyramid.num_levels) if levels is None else levels
    found = {}
    for name, values in means.items():
        by_level = [x.mean() for x in pyramid.part(levels).split(values, axis=0)]
        found |= {f"{name}_mean": values.mean(), f"{name}_last": by_level[-1]}
        if levels.start:
            found |= {f"{name}_level/{k}": x for k, x in zip(levels, by_level, strict=True)}
        else:
            found[f"{name}_level"] = jnp.stack(by_level)
    return found

"""Independent categorical distributions over the vocabulary, one for each token (VAR)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.heads.base import at_level, mixed
from var_jax.heads.filters import filter_logits
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import Linear, init_std


class LogitProcessor(Protocol):
    """A hashable change of the logits after temperature and filters, such as a watermark."""

    def __call__(
        self, logits: Float[jax.Array, "B n V"], level: int, pyramid: ScalePyramid
    ) -> Float[jax.Array, "B n V"]:
        """The logits to draw from; -inf is never drawn."""


@dataclasses.dataclass(frozen=True)
class LevelSampling:
    """How the tokens of one level are drawn; see `CategoricalSampling`."""

    level: int
    pyramid: ScalePyramid
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0
    smooth: bool = False
    processors: tuple[LogitProcessor, ...] = ()

    @property
    def progress(self) -> float:
        """k / (K - 1), which sharpens the average of `smooth`."""
        return self.pyramid.progress(self.level)

    @property
    def smooth_temperature(self) -> float:
        """Gumbel-softmax temperature, from 0.27 at the first to 0.0135 at the last level."""
        return max(0.27 * (1 - self.progress * 0.95), 0.005)


@dataclasses.dataclass(frozen=True)
class CategoricalSampling:
    """How tokens are drawn. A tuple gives one value for each level.

    The defaults are those of the official FID evaluation. Inside a compiled program top_k, top_p
    and temperature may be scalar arrays, or tuples of them: the program then serves all values.

    Attributes:
      top_k: keep the k most likely tokens, ties with the k-th included; 0 keeps all.
      top_p: drop the tokens whose ascending cumulative probability is at most 1 - top_p;
        0 or 1 keeps all.
      temperature: divides the logits before the filters.
      smooth: accumulate a Gumbel-softmax average of the codes instead of the drawn code
        (official `more_smooth`); for looks, not for scores.
      processors: applied after the filters, in order.
    """

    top_k: int | tuple[int, ...] = 900
    top_p: float | tuple[float, ...] = 0.96
    temperature: float | tuple[float, ...] = 1.0
    smooth: bool | tuple[bool, ...] = False
    processors: tuple[LogitProcessor, ...] = ()

    def at(self, level: int, pyramid: ScalePyramid) -> LevelSampling:
        """The settings of one level; raises ValueError for a tuple of another length than K."""

        def value(name: str) -> Any:
            return at_level(getattr(self, name), name, level, pyramid)

        return LevelSampling(
            level,
            pyramid,
            value("top_k"),
            value("top_p"),
            value("temperature"),
            value("smooth"),
            self.processors,
        )


class CategoricalHead(nn.Module):
    """Linear map to logits.

    Attributes:
      vocab_size: V.
      width: C.
      label_smoothing: mass spread evenly over the vocabulary in the loss that is minimised.
      init_factor: on the kernel at initialisation (`hd` officially).
      dtype: type of the operands of the matrix product; its sums and the logits are float32.
    """

    sampling: ClassVar[type] = CategoricalSampling
    has_likelihood: ClassVar[bool] = True

    vocab_size: int
    width: int
    label_smoothing: float = 0.0
    init_factor: float = 0.02
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.projection = Linear(
            (self.width,),
            (self.vocab_size,),
            ("embed", "vocab"),
            std=self.init_factor * init_std(self.width),
            dtype=self.dtype,
            sum_dtype=jnp.float32,
        )

    def __call__(self, hidden: Float[jax.Array, "B n C"]) -> Float[jax.Array, "B n V"]:
        """Logits, float32."""
        logits = self.projection(hidden)
        return nn.with_logical_constraint(logits, ("batch", "length", "act_vocab"))

    def loss(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: Int[jax.Array, "B n"],
        keys: jax.Array | None = None,
        pyramid: ScalePyramid | None = None,
    ) -> tuple[Float[jax.Array, "B n"], dict[str, Float[jax.Array, "B n"]]]:
        """Cross entropy in nats, with label smoothing where it is minimised.

        Returns:
          The loss; and 'loss', the negative log likelihood, and 'accuracy', 1 where the most likely
          token is the target.
        """
        logits = self(hidden)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        nll = log_z - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        loss = nll
        if self.label_smoothing:
            uniform = log_z - logits.mean(-1)
            loss = (1 - self.label_smoothing) * nll + self.label_smoothing * uniform
        correct = (logits.argmax(-1) == target).astype(jnp.float32)
        return loss, {"loss": nll, "accuracy": correct}

    def drawn_from(
        self,
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        settings: LevelSampling,
    ) -> Float[jax.Array, "B n V"]:
        """The logits that `sample` draws a level from: guided, tempered, filtered, processed."""
        logits = self._logits(hiddens, weights, settings)
        logits = filter_logits(logits, settings.top_k, settings.top_p)
        for processor in settings.processors:
            logits = processor(logits, settings.level, settings.pyramid)
        return logits

    def sample(
        self,
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        keys: jax.Array,
        settings: LevelSampling,
    ) -> tuple[Int[jax.Array, "B n"], jax.Array]:
        """Draws the tokens of one level; guidance mixes logits: (1 + t) cond - t uncond.

        Returns:
          int32 tokens, and the same tokens, or with `smooth` a distribution over the codes,
          float32 [B, n, V].
        """
        logits = self.drawn_from(hiddens, weights, settings)

        def draw(key, logits):
            return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)

        likeliest = logits.argmax(-1).astype(jnp.int32)
        if isinstance(settings.top_k, jax.Array):
            tokens = jnp.where(settings.top_k == 1, likeliest, jax.vmap(draw)(keys, logits))
        else:
            tokens = likeliest if settings.top_k == 1 else jax.vmap(draw)(keys, logits)
        if not settings.smooth:
            return tokens, tokens

        def gumbel(key, logits):
            return jax.random.gumbel(jax.random.fold_in(key, 1), logits.shape)

        noise = jax.vmap(gumbel)(keys, logits)
        soft = (logits * (1 + settings.progress) + noise) / settings.smooth_temperature
        return tokens, jax.nn.softmax(soft, axis=-1)

    def log_prob(
        self,
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        target: Int[jax.Array, "B n"],
        settings: LevelSampling,
        filtered: bool = False,
    ) -> Float[jax.Array, "B n"]:
        """Logarithms of the probabilities of tokens among those that `sample` draws from.

        Args:
          hiddens, weights, settings: see `sample`; processors are left out.
          target: the tokens.
          filtered: among the tokens that the filters keep alone, of which it must be one; False:
            among all.
        """
        logits = self._logits(hiddens, weights, settings)
        if filtered:
            logits = filter_logits(logits, settings.top_k, settings.top_p)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    def _logits(
        self, hiddens: tuple[jax.Array, ...], weights: tuple[float, ...], settings: LevelSampling
    ) -> jax.Array:
        """Guided logits over the temperature."""
        return mixed(tuple(self(hidden) for hidden in hiddens), weights) / settings.temperature

    @nn.nowrap
    def flops(self, tokens: int) -> float:
        """See `Head`."""
        return 2.0 * tokens * self.width * self.vocab_size

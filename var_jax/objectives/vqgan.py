"""Training a tokenizer: reconstruction, quantisation and an adversary (VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from var_jax.codecs.residual_vq import nearest_codes
from var_jax.objectives.base import Aux
from var_jax.pixels import to_float
from var_jax.tokenizer.augment import augment, check_policies
from var_jax.tokenizer.discriminator import PatchDiscriminator, hinge_loss
from var_jax.tokenizer.vqvae import VQVAE, TokenizerOutput

# k-means holds a matrix of distances [vectors, codes] of at most this many floats.
_KMEANS_DISTANCES = 2**27


@struct.dataclass
class CodeStats:
    """How often each level uses each code.

    Attributes:
      usage: float32 [K, V], moving average of the number of hits a step.
      updates: int32 scalar, steps in the average; it starts again when the codebook does.
      made: bool scalar, the warm-up is over: k-means has made the codebook.
    """

    usage: jax.Array
    updates: jax.Array
    made: jax.Array


@struct.dataclass
class CodeUse:
    """What one batch says about the codebook.

    Attributes:
      tokens: int32 [B, L], the codes that were chosen.
      residuals: float32 [B, L, C], the vectors that they were chosen for.
    """

    tokens: jax.Array
    residuals: jax.Array


def count_codes(tokens: jax.Array, pyramid, vocab_size: int) -> jax.Array:
    """Tokens int32 [B, L] -> hits float32 [K, V]."""
    bins = tokens + vocab_size * jnp.asarray(pyramid.level_ids)
    counts = jnp.zeros((pyramid.num_levels * vocab_size,), jnp.int32).at[bins.reshape(-1)].add(1)
    return counts.reshape(pyramid.num_levels, vocab_size).astype(jnp.float32)


def spread_sample(key: jax.Array, vectors: jax.Array, count: int) -> jax.Array:
    """Random rows of [N, C], spread over all of them and distinct if N >= count."""
    total = vectors.shape[0]
    if total < count:
        return vectors[jax.random.randint(key, (count,), 0, total)]
    # One row from each of `count` equal spans, which begin anywhere.
    start_key, row_key = jax.random.split(key)
    start = jax.random.randint(start_key, (), 0, total)
    row = jax.random.randint(row_key, (count,), 0, total // count)
    return vectors[(start + jnp.arange(count) * (total // count) + row) % total]


def kmeans_init(
    key: jax.Array,
    vectors: jax.Array,
    num_codes: int,
    iterations: int = 10,
    normalize: bool = False,
) -> jax.Array:
    """A codebook by Lloyd's algorithm; a code that loses all its vectors takes a far one.

    Args:
      key: chooses the first codes among the vectors.
      vectors: float32 [..., C]; of very many a random part is used.
      num_codes: V.
      iterations: of Lloyd's algorithm.
      normalize: vectors belong to the code of the nearest direction.

    Returns:
      float32 [V, C].
    """
    vectors = vectors.reshape(-1, vectors.shape[-1])
    sample_key, start_key = jax.random.split(key)
    limit = min(64 * num_codes, _KMEANS_DISTANCES // num_codes)
    if vectors.shape[0] > limit:
        vectors = spread_sample(sample_key, vectors, limit)

    def improve(_, codes):
        nearest = nearest_codes(vectors, codes, normalize)
        sizes = jax.ops.segment_sum(jnp.ones(vectors.shape[:1]), nearest, num_codes)
        sums = jax.ops.segment_sum(vectors, nearest, num_codes)
        distance = jnp.sum(jnp.square(vectors - codes[nearest]), -1)
        _, far = jax.lax.top_k(distance, min(num_codes, vectors.shape[0]))
        empty = sizes == 0
        rank = jnp.minimum(jnp.cumsum(empty) - 1, far.shape[0] - 1)
        means = sums / jnp.maximum(sizes, 1)[:, None]
        return jnp.where(empty[:, None], vectors[far[rank]], means)

    return jax.lax.fori_loop(0, iterations, improve, spread_sample(start_key, vectors, num_codes))


@dataclasses.dataclass(frozen=True)
class VQGAN:
    """Trains VQVAE: L1, L2, perceptual, quantisation and adversarial loss in one scalar.

    `params` is {'tokenizer': ...} and, with a discriminator, {'discriminator': ...}; each part
    of the scalar reaches only the parameters it is meant for, so one gradient serves both
    networks (give each its own optimizer with `optim.make_group_optimizer`). `frozen` is
    {'perceptual': ...} with a perceptual module, else {}. A batch holds 'image', uint8 or
    float in [-1, 1], [B, H, W, c].

    The codebook's life: for `warmup_steps` the tokenizer is a plain autoencoder; then k-means
    on the residual vectors of the batch makes the codebook; until step `restart_until`, every
    `restart_every` steps, codes that no level uses are replaced by residual vectors of the batch.
    New codes enter the moving average as they are. All of it is a function of the state, so a
    resumed run repeats it, and what was due in an update that was skipped is done in the next.

    Attributes:
      tokenizer: the module to train.
      discriminator: None for no adversary.
      perceptual: module (x, y) -> [B] that compares images of three channels in [-1, 1], such
        as LPIPS; its parameters are frozen['perceptual'].
      l1_weight, l2_weight, perceptual_weight, vq_weight: weights of these losses.
      adversarial_weight: multiplies the adaptive weight.
      adaptive_min, adaptive_max: limits of the adaptive weight, the ratio of the gradient
        norms of reconstruction and adversarial loss at the decoder's last kernel.
      adversarial_start: step at which the discriminator begins to train.
      adversarial_ramp: steps over which its weight on the tokenizer then rises from 0.
      augmentations: of what the discriminator sees: 'color', 'translation', 'cutout'.
      warmup_steps: steps as a plain autoencoder, followed by k-means; 0 for neither.
      kmeans_iterations: of Lloyd's algorithm.
      restart_every: steps between restarts of dead codes; 0 for none.
      restart_until: step of the last restart.
      usage_decay: of the moving average of code usage.
      usage_margin: a level uses a code if the code's share of the level's tokens is at least
        this fraction of 1 / V.
      collapse_threshold: a level is reported as collapsed if it uses a smaller share of the
        codebook than this.
    """

    tokenizer: VQVAE
    discriminator: PatchDiscriminator | None = None
    perceptual: nn.Module | None = None
    l1_weight: float = 0.2
    l2_weight: float = 1.0
    perceptual_weight: float = 1.0
    vq_weight: float = 1.0
    adversarial_weight: float = 0.4
    adaptive_min: float = 0.015
    adaptive_max: float = 1e4
    adversarial_start: int = 0
    adversarial_ramp: int = 0
    augmentations: tuple[str, ...] = ()
    warmup_steps: int = 0
    kmeans_iterations: int = 10
    restart_every: int = 0
    restart_until: int = 0
    usage_decay: float = 0.99
    usage_margin: float = 0.08
    collapse_threshold: float = 0.02

    def __post_init__(self) -> None:
        check_policies(self.augmentations)

    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Parameters of the networks that train, in the boxes of their logical axis names."""
        tokenizer_key, discriminator_key = jax.random.split(key)
        images = jnp.zeros((1, *self.tokenizer.image_shape))
        params = {"tokenizer": self.tokenizer.init_params(tokenizer_key)}
        if self.discriminator is not None:
            params["discriminator"] = self.discriminator.init(discriminator_key, images)["params"]
        return params

    def init_stats(self) -> CodeStats:
        """No code has been used yet."""
        codec = self.tokenizer.codec
        usage = jnp.zeros((codec.pyramid.num_levels, codec.vocab_size), jnp.float32)
        return CodeStats(usage, jnp.zeros((), jnp.int32), jnp.array(not self.warmup_steps))

    def loss(self, params, frozen, stats, batch, keys, step) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`; without keys (None) neither dropout nor augmentation."""
        images = to_float(batch["image"])
        dropout_keys, augment_keys = None, None
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
            dropout_keys, augment_keys = keys[:, 0], (keys[:, 1], keys[:, 2])
        warm = ~stats.made
        output: TokenizerOutput = self.tokenizer.apply(
            {"params": params["tokenizer"]}, images, dropout_keys, warm
        )

        def reconstruction_loss(x):
            return self._reconstruction_loss(frozen, images, x)

        metrics = {"vq": output.quantized.loss}
        if self.discriminator is None:
            value, parts = reconstruction_loss(output.reconstruction)
        else:
            value, parts = self._adversarial_loss(
                params, output, images, augment_keys, step, reconstruction_loss
            )
        value = value + self.vq_weight * output.quantized.loss
        metrics.update(parts, loss=value, psnr=_psnr(images, output.reconstruction))

        codec = self.tokenizer.codec
        tokens = output.quantized.tokens
        counts = count_codes(tokens, codec.pyramid, codec.vocab_size)
        metrics.update(self._usage_metrics(self._count(stats, counts), warm))
        residuals = jax.lax.stop_gradient(output.quantized.residuals)
        return value, Aux(metrics, CodeUse(tokens, residuals))

    def after_update(self, params, ema, stats, carry, key, step) -> tuple[Any, Any, CodeStats]:
        """Counts codes, makes the codebook when the warm-up ends, restarts dead codes."""
        codec = self.tokenizer.codec
        codebook = _codebook(params)
        new = jnp.zeros((codec.vocab_size,), bool)
        kmeans_key, restart_key = jax.random.split(key)
        stats = self._count(stats, count_codes(carry.tokens, codec.pyramid, codec.vocab_size))
        if self.warmup_steps:
            due = ~stats.made & (step + 1 >= self.warmup_steps)
            codebook = jax.lax.cond(
                due,
                lambda: kmeans_init(
                    kmeans_key,
                    carry.residuals,
                    codec.vocab_size,
                    self.kmeans_iterations,
                    codec.normalize_codes,
                ),
                lambda: codebook,
            )
            new |= due
            # What was chosen before there was a codebook does not count.
            usage, updates = (
                jnp.where(stats.made, x, jnp.zeros_like(x)) for x in (stats.usage, stats.updates)
            )
            stats = CodeStats(usage, updates, stats.made | due)
        if self.restart_every:
            due = (stats.updates > 0) & (stats.updates % self.restart_every == 0)
            dead = due & (step < self.restart_until) & self._dead(stats)
            codebook = jax.lax.cond(
                dead.any(),
                lambda: self._restart(restart_key, codebook, dead, carry.residuals),
                lambda: codebook,
            )
            new |= dead
        if ema is not None:
            average = jnp.where(new[:, None], codebook, _codebook(ema))
            ema = _with_codebook(ema, average)
        return _with_codebook(params, codebook), ema, stats

    def _reconstruction_loss(self, frozen, images, x):
        """Weighted distance of x from the images; (scalar, its parts)."""
        parts = {"l1": jnp.mean(jnp.abs(x - images)), "l2": jnp.mean(jnp.square(x - images))}
        value = self.l1_weight * parts["l1"] + self.l2_weight * parts["l2"]
        if self.perceptual is not None:
            shape = (*images.shape[:-1], 3)
            pair = [jnp.broadcast_to(y, shape) for y in (images, x)]
            distance = self.perceptual.apply({"params": frozen["perceptual"]}, *pair)
            parts["perceptual"] = jnp.mean(distance)
            value += self.perceptual_weight * parts["perceptual"]
        return value, parts

    def _adversarial_loss(self, params, output, images, keys, step, reconstruction_loss):
        """Reconstruction, adversarial and discriminator loss; (scalar, its parts).

        The tokenizer's losses are functions of the reconstruction x. Their gradients in x are
        needed for the adaptive weight anyway, so what is differentiated further is the linear
        form <gradient, x>: the perceptual net and the discriminator run backwards only once.
        """
        fixed = jax.lax.stop_gradient(params["discriminator"])
        x = jax.lax.stop_gradient(output.reconstruction)

        def judge(params, images, keys):
            if keys is not None and self.augmentations:
                images = augment(keys, images, self.augmentations)
            return self.discriminator.apply({"params": params}, images)

        real_keys, fake_keys = (None, None) if keys is None else keys
        (distance, parts), distance_grad = jax.value_and_grad(reconstruction_loss, has_aux=True)(x)
        fooling, fooling_grad = jax.value_and_grad(lambda x: -jnp.mean(judge(fixed, x, fake_keys)))(
            x
        )
        adaptive = self._adaptive_weight(params, output, distance_grad, fooling_grad)
        ramp = jnp.clip((step - self.adversarial_start) / max(self.adversarial_ramp, 1), 0.0, 1.0)
        active = (step >= self.adversarial_start).astype(jnp.float32)
        if not self.adversarial_ramp:
            ramp = active
        weight = jax.lax.stop_gradient(self.adversarial_weight * adaptive * ramp)
        linear = jnp.sum(
            jax.lax.stop_gradient(distance_grad + weight * fooling_grad) * output.reconstruction
        )
        value = jax.lax.stop_gradient(distance + weight * fooling - linear) + linear

        real = judge(params["discriminator"], images, real_keys)
        fake = judge(params["discriminator"], x, fake_keys)
        discrimination = hinge_loss(real, fake)
        parts = dict(
            parts,
            adversarial=fooling,
            adversarial_weight=weight,
            adaptive_weight=adaptive,
            discriminator=discrimination,
            logits_real=jnp.mean(real),
            logits_fake=jnp.mean(fake),
        )
        return value + active * discrimination, parts

    def _adaptive_weight(self, params, output, distance_grad, fooling_grad):
        """|d distance / d kernel| / |d fooling / d kernel| at the decoder's last convolution.

        VQGAN, equation 7.
        """
        tokenizer = jax.lax.stop_gradient(params["tokenizer"])
        last = tokenizer["decoder"]["conv_out"]

        def pixels(kernel):
            decoder = {**tokenizer["decoder"], "conv_out": {**last, "kernel": kernel}}
            return self.tokenizer.apply(
                {"params": {**tokenizer, "decoder": decoder}},
                jax.lax.stop_gradient(output.hidden),
                method="pixels",
            )

        _, pull_back = jax.vjp(pixels, last["kernel"])
        norms = [jnp.linalg.norm(pull_back(g)[0]) for g in (distance_grad, fooling_grad)]
        ratio = norms[0] / (norms[1] + 1e-6)
        return jnp.clip(ratio, self.adaptive_min, self.adaptive_max)

    def _count(self, stats: CodeStats, counts: jax.Array) -> CodeStats:
        """Adds a batch to the average: a plain mean at first, then exponential."""
        decay = jnp.minimum(self.usage_decay, stats.updates / (stats.updates + 1))
        usage = decay * stats.usage + (1 - decay) * counts
        return stats.replace(usage=usage, updates=stats.updates + 1)

    def _shares(self, stats: CodeStats) -> jax.Array:
        """float32 [K, V]: each code's share of its level's tokens."""
        return stats.usage / jnp.maximum(stats.usage.sum(-1, keepdims=True), 1e-6)

    def _usage_metrics(self, stats: CodeStats, warm: jax.Array) -> dict[str, jax.Array]:
        shares = self._shares(stats)
        vocab_size = shares.shape[-1]
        used = shares >= self.usage_margin / vocab_size
        usage = used.mean(-1, dtype=jnp.float32)
        # A level of one token has seen few codes after a few steps; that is no collapse.
        steps = jnp.minimum(stats.updates, 1 / max(1 - self.usage_decay, 1e-6))
        enough = steps * stats.usage.sum(-1) >= 4 * vocab_size
        collapsed = (usage < self.collapse_threshold) & enough & ~warm
        entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(shares), 0.0), -1)
        return {
            "usage": used.any(0).mean(dtype=jnp.float32),
            "usage_level": usage,
            "perplexity_level": jnp.exp(entropy),
            "collapsed_level": collapsed.astype(jnp.float32),
        }

    def _dead(self, stats: CodeStats) -> jax.Array:
        """bool [V]: the codes that no level uses."""
        return (self._shares(stats) < self.usage_margin / stats.usage.shape[-1]).all(0)

    def _restart(self, key, codebook, dead, residuals) -> jax.Array:
        """Replaces the dead codes by residual vectors of the batch."""
        vectors = residuals.reshape(-1, residuals.shape[-1])
        return jnp.where(dead[:, None], spread_sample(key, vectors, codebook.shape[0]), codebook)


def _codebook(params: Any) -> jax.Array:
    return params["tokenizer"]["codec"]["codebook"]


def _with_codebook(params: Any, codebook: jax.Array) -> Any:
    tokenizer = params["tokenizer"]
    tokenizer = {**tokenizer, "codec": {**tokenizer["codec"], "codebook": codebook}}
    return {**params, "tokenizer": tokenizer}


def _psnr(images: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Mean over the batch of the peak signal-to-noise ratio in dB, peak 2."""
    error = jnp.square(jnp.clip(reconstruction, -1, 1) - images).mean((1, 2, 3))
    return jnp.mean(10 * jnp.log10(4 / jnp.maximum(error, 1e-10)))

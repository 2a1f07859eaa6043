"""Training a tokenizer: reconstruction, quantisation and an adversary (VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.objectives.base import Aux
from var_jax.pixels import to_float
from var_jax.quantizers.life import CodebookLife
from var_jax.tokenizer.augment import augment, check_policies
from var_jax.tokenizer.discriminator import PatchDiscriminator, hinge_loss
from var_jax.tokenizer.vqvae import VQVAE, TokenizerOutput

#: Weight of a step in the running mean of what a codec measures.
_MEASURED_RATE = 0.01


@dataclasses.dataclass(frozen=True)
class VQGAN:
    """Trains VQVAE: L1, L2, perceptual, quantisation and adversarial loss in one scalar.

    `params` is {'tokenizer': ...} and, with a discriminator, {'discriminator': ...}; each part
    of the scalar reaches only the parameters it is meant for, so one gradient serves both
    networks (give each its own optimizer with `optim.make_group_optimizer`). `frozen` is
    {'perceptual': ...} with a perceptual module, else {}. A batch holds 'image', uint8 or
    float in [-1, 1], [B, H, W, c].

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
      life: of the codec's codebook, where it has one.
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
    life: CodebookLife = CodebookLife()

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

    def init_stats(self) -> Any:
        """How often codes are used; () where there is no codebook."""
        codec = self.tokenizer.codec
        if not codec.codebook_size:
            return ()
        return self.life.init_stats(codec.pyramid, codec.codebook_size)

    def loss(self, params, frozen, stats, batch, keys, step) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`; without keys (None) neither dropout nor augmentation."""
        images = to_float(batch["image"])
        dropout_keys, augment_keys = None, None
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
            dropout_keys, augment_keys = keys[:, 0], (keys[:, 1], keys[:, 2])
        warm = ~stats.made if self.tokenizer.codec.codebook_size else False
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

        quantized, codec = output.quantized, self.tokenizer.codec
        metrics.update(quantized.metrics)
        if not codec.codebook_size:
            return value, Aux(metrics, {"measured": quantized.measured})
        metrics.update(self.life.metrics(stats, quantized.targets, codec.pyramid))
        return value, Aux(metrics, {"targets": quantized.targets, "vectors": quantized.vectors})

    def after_update(self, params, ema, stats, carry, key, step) -> tuple[Any, Any, Any]:
        """What becomes of the codebook, see `CodebookLife`, and of what a codec measures."""
        codec = self.tokenizer.codec
        if not codec.codebook_size:
            # The mean of all steps, then of about the last hundred.
            rate = jnp.maximum(1 / (1 + step), _MEASURED_RATE)
            for name, values in carry["measured"].items():
                old = params["tokenizer"]["codec"][name]
                new = {name: old + rate * (values.mean(0) - old)}
                params = _with_codec(params, new)
                ema = None if ema is None else _with_codec(ema, new)
            return params, ema, stats
        codebook, average, stats = self.life.after_update(
            _codebook(params),
            None if ema is None else _codebook(ema),
            stats,
            carry["targets"],
            carry["vectors"],
            codec.pyramid,
            key,
            step,
            codec.normalize_codes,
        )
        ema = None if ema is None else _with_codec(ema, {"codebook": average})
        return _with_codec(params, {"codebook": codebook}), ema, stats

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


def _codebook(params: Any) -> jax.Array:
    return params["tokenizer"]["codec"]["codebook"]


def _with_codec(params: Any, new: dict[str, jax.Array]) -> Any:
    """The parameters with some of the codec's replaced."""
    tokenizer = params["tokenizer"]
    tokenizer = {**tokenizer, "codec": {**tokenizer["codec"], **new}}
    return {**params, "tokenizer": tokenizer}


def _psnr(images: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Mean over the batch of the peak signal-to-noise ratio in dB, peak 2."""
    error = jnp.square(jnp.clip(reconstruction, -1, 1) - images).mean((1, 2, 3))
    return jnp.mean(10 * jnp.log10(4 / jnp.maximum(error, 1e-10)))

"""PatchGAN discriminator (arXiv 1611.07004) and the hinge loss (arXiv 1705.02894)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from var_jax.tokenizer.layers import GroupNorm

_NORMS = ("group", "instance", "none")


def spectral_norm(kernel: Float[Array, "*shape out"], iterations: int = 8) -> Float[Array, ""]:
    """Largest singular value of a kernel seen as a matrix [..., out], by power iteration.

    It starts from the same vector each time, so that there is no state to keep and to
    synchronise; the gradient takes the singular vectors as given (arXiv 1802.05957). The result is
    at most the true value.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    v = jax.random.normal(jax.random.key(0), fixed.shape[1:])
    for _ in range(iterations):
        u = fixed @ v
        u = u / (jnp.linalg.norm(u) + 1e-12)
        v = fixed.T @ u
        v = v / (jnp.linalg.norm(v) + 1e-12)
    return u @ matrix @ v


class _Conv(nn.Module):
    """4x4 convolution with padding 1 and, optionally, a kernel of spectral norm 1."""

    features: int
    stride: int
    spectral: bool
    axes: tuple[str | None, str | None]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w features"]:
        kernel: jax.Array = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, *self.axes)),
            (4, 4, x.shape[-1], self.features),
            jnp.float32,
        )
        bias: jax.Array = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, (self.axes[1],)),
            (self.features,),
            jnp.float32,
        )
        if self.spectral:
            kernel = kernel / spectral_norm(kernel)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(self.dtype)


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of an image: one logit per patch.

    No layer mixes examples, so a sharded batch needs no synchronisation.

    Attributes:
      channels: width of the first layer; doubles each layer up to 8 times.
      num_layers: layers of stride 2; the patch side is 16, 34, 70 px for 1, 2, 3.
      norm: 'group' (groups of 8 channels), 'instance' or 'none'.
      spectral: divide each kernel by its spectral norm.
      dtype: computing type; the sums of the last layer are float32.
    """

    channels: int = 64
    num_layers: int = 3
    norm: str = "group"
    spectral: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W c"]) -> Float32[Array, "B h w"]:
        """Logits of the patches of images in [-1, 1].

        Raises:
          ValueError: unknown norm, or the images are too small for so many layers.
        """
        if self.norm not in _NORMS:
            raise ValueError(f"Unknown norm {self.norm!r}; choose one of {_NORMS}.")
        side = min(images.shape[1:3])
        if side >> self.num_layers < 3:
            raise ValueError(
                f"Images of {images.shape[1:3]} are too small for a discriminator with "
                f"{self.num_layers} layers of stride 2; set num_layers lower."
            )
        h = images
        for i in range(self.num_layers + 1):
            width = self.channels * min(2**i, 8)
            stride = 2 if i < self.num_layers else 1
            axes = ("conv_in" if i else None, "conv_out")
            h = _Conv(width, stride, self.spectral, axes, self.dtype, name=f"conv_{i}")(h)
            if i and self.norm != "none":
                groups = width if self.norm == "instance" else max(width // 8, 1)
                h = GroupNorm(groups, self.dtype, name=f"norm_{i}")(h)
            h = nn.leaky_relu(h, 0.2)
        h = _Conv(1, 1, self.spectral, ("conv_in", None), jnp.float32, name="conv_out")(h)
        return h[..., 0]


def hinge_loss(real: Float[Array, " *real"], fake: Float[Array, " *fake"]) -> Float[Array, ""]:
    """The discriminator's loss: logits of real and generated images, float [...] -> scalar."""
    return 0.5 * (jnp.mean(nn.relu(1 - real)) + jnp.mean(nn.relu(1 + fake)))

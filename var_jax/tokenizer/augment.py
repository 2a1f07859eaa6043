"""Differentiable augmentation of what a discriminator sees (DiffAugment, arXiv 2006.10738)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def _color(key: jax.Array, image: jax.Array) -> jax.Array:
    """Random brightness, saturation and contrast, in this order."""
    brightness, saturation, contrast = jax.random.uniform(key, (3,))
    image = image + (brightness - 0.5)
    grey = image.mean(-1, keepdims=True)
    image = grey + (image - grey) * 2 * saturation
    mean = image.mean()
    return mean + (image - mean) * (contrast + 0.5)


def _translation(key: jax.Array, image: jax.Array) -> jax.Array:
    """A shift by up to 1/8 of each side; what comes in from outside is 0."""
    height, width, _ = image.shape
    y_key, x_key = jax.random.split(key)

    def shift(key, size):
        offset = jax.random.randint(key, (), -(size // 8), size // 8 + 1)
        index = jnp.arange(size)
        return (index[:, None] == index + offset).astype(image.dtype)

    # Products with 0/1 matrices are exact, differentiable and fast where gathers are slow.
    highest = jax.lax.Precision.HIGHEST
    image = jnp.einsum("Hh,hwc->Hwc", shift(y_key, height), image, precision=highest)
    return jnp.einsum("Ww,hwc->hWc", shift(x_key, width), image, precision=highest)


def _cutout(key: jax.Array, image: jax.Array) -> jax.Array:
    """Sets a square of half of each side, somewhere and partly outside perhaps, to 0."""

    def outside(key, size):
        centre = jax.random.randint(key, (), 0, size)
        return jnp.abs(jnp.arange(size) - centre + 0.5) > size / 4

    y_key, x_key = jax.random.split(key)
    rows, columns = outside(y_key, image.shape[0]), outside(x_key, image.shape[1])
    return image * (rows[:, None] | columns[None, :])[..., None]


_POLICIES = {"color": _color, "translation": _translation, "cutout": _cutout}


def check_policies(policies: Sequence[str]) -> None:
    """Raises ValueError if a name is not that of a policy."""
    for name in policies:
        if name not in _POLICIES:
            raise ValueError(
                f"Unknown augmentation {name!r}; choose from {', '.join(sorted(_POLICIES))}."
            )


def augment(
    keys: Key[Array, " B"], images: Float[Array, "B H W c"], policies: Sequence[str]
) -> Float[Array, "B H W c"]:
    """Augments each image by its own key; differentiable in the images.

    Args:
      keys: PRNG keys.
      images: in [-1, 1].
      policies: any of 'color', 'translation', 'cutout', applied in this order.

    Returns:
      images; 'color' may leave [-1, 1].

    Raises:
      ValueError: unknown policy.
    """
    check_policies(policies)

    def one(key, image):
        for i, name in enumerate(policies):
            image = _POLICIES[name](jax.random.fold_in(key, i), image)
        return image

    return jax.vmap(one)(keys, images)

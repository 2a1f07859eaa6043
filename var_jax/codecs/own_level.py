"""What a level adds by itself, as its own tokens would read it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.codecs.base import Codec
from var_jax.pyramid import ScalePyramid
from var_jax.resample import resize


def own_input(
    codec: Codec, params: Any, level: int, target: jax.Array, pyramid: ScalePyramid
) -> Float[jax.Array, "B n D"]:
    """The features of one level's targets alone, area-downsampled to the level again.

    Args:
      codec, params: whose inputs have the channels of its features.
      level: k, of the pyramid.
      target: of the level, see `Codec.advance`.
      pyramid: see `Codec.advance`.
    """
    variables = {"params": params}
    carry, _ = codec.apply(variables, None, level, target, pyramid, method="advance")
    alone = codec.apply(variables, carry, method="finish")
    cells = resize(alone, pyramid.shapes[level], "area")
    return cells.reshape(cells.shape[0], -1, cells.shape[-1])


def own_inputs(
    codec: Codec, params: Any, targets: jax.Array, pyramid: ScalePyramid
) -> Float[jax.Array, "B L D"]:
    """`own_input` of all levels, [B, L, ...] -> [B, L, D]."""
    parts = enumerate(pyramid.split(targets))
    return jnp.concatenate([own_input(codec, params, k, part, pyramid) for k, part in parts], 1)

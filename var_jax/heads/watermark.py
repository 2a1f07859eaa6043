"""Finding a watermark in the codes of images: more of them are green than chance would give."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from var_jax.pyramid import ScalePyramid


class Watermark(Protocol):
    """A logit processor that has some codes of each level drawn more often.

    Attributes:
      first_level: levels before it are not marked.
    """

    first_level: int

    def green(self, level: int, vocab_size: int) -> np.ndarray:
        """bool [V]: the codes that are drawn more often; of each level the same share."""


def detection_score(
    tokens: Int[np.ndarray, "N L"],
    watermark: Watermark,
    pyramid: ScalePyramid,
    vocab_size: int,
    distinct: bool = False,
) -> Float[np.ndarray, " N"]:
    """How far the number of green codes lies above chance, in standard deviations.

    z = (g - gamma n) / sqrt(n gamma (1 - gamma)), where g of the n codes of an image are green and
    gamma of the vocabulary is. Codes that were drawn without the key, independently of each other,
    have a z of mean 0 and variance 1.

    Args:
      tokens: of the images, as `Codec.encode` reads them.
      watermark: with the key.
      pyramid: of the tokens.
      vocab_size: V.
      distinct: count a code once in each level of an image. A picture with a plain background
        repeats codes, and so their colours: its z then scatters more than by 1.

    Raises:
      ValueError: there is no level to count in, or tokens of another length.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.shape[1] != pyramid.length:
        raise ValueError(
            f"Tokens must be [N, {pyramid.length}] for the levels {pyramid.shapes}, got "
            f"{list(tokens.shape)}."
        )
    if watermark.first_level >= pyramid.num_levels:
        raise ValueError(
            f"The watermark starts at level {watermark.first_level}, but the last of "
            f"{pyramid.num_levels} levels is {pyramid.num_levels - 1}."
        )
    gamma = watermark.green(0, vocab_size).mean()
    green, count = np.zeros(len(tokens)), np.zeros(len(tokens))
    for level in range(watermark.first_level, pyramid.num_levels):
        is_green = watermark.green(level, vocab_size)
        for i, codes in enumerate(tokens[:, pyramid.level(level)]):
            codes = np.unique(codes) if distinct else codes
            green[i] += is_green[codes].sum()
            count[i] += len(codes)
    return (green - gamma * count) / np.sqrt(count * gamma * (1 - gamma))


def false_positive_rate(score: float) -> float:
    """How often an image without the mark scores as high, if its codes are independent of each
    other and of the key: the upper tail of the normal distribution."""
    return 0.5 * math.erfc(score / math.sqrt(2))

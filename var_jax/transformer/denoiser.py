"""What transformers that denoise have in common, and the entities that they draw at once.

An entity is a cell of an image, a whole level of a pyramid, or all of an image.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import Cache
from var_jax.transformer.condition import Conditioner


@runtime_checkable
class Denoiser(Protocol):
    """A transformer that reads noisy latents; a head makes the velocity of the states it returns.

    Tokens stand in the order of the entities in all that is passed.
    """

    pyramid: ScalePyramid
    #: Whether it learns from the clean entities beside noisy ones (`clean`), or from noisy ones
    #: alone.
    reads_clean: ClassVar[bool]

    @property
    def entities(self) -> ScalePyramid:
        """The entities as the levels of a pyramid, in the order in which they are drawn."""

    @property
    def order(self) -> np.ndarray:
        """int [L]: where in the pyramid each token of the entities stands."""

    def conditioning(self) -> Conditioner:
        """See `VAR.conditioning`."""

    def new_cache(self) -> Any:
        """Of no entity."""

    def __call__(
        self,
        noisy: Float[jax.Array, "B n D"],
        given: Any,
        keys: jax.Array | None = None,
        *,
        times: Float[jax.Array, "B k"] | None = None,
        levels: range | None = None,
        cache: Any = None,
    ) -> tuple[Float[jax.Array, "B n C"], Any]:
        """One pass over consecutive entities: all of them (training), or one (sampling).

        Args:
          noisy: their latents.
          given: what is asked for, see `Conditioner`; class labels int32 [B] by default.
          keys: one PRNG key for each example [B], for dropout of the condition; None in evaluation.
          times: of each entity: 0 is data, 1 is noise; None is what has been drawn, which those
            after read.
          levels: of the entities; all by default.
          cache: None to attend within the pass only; else what the pass over the entity before
            returned, a new one before the first; of a pass over one entity.

        Returns:
          float32 hidden states, normalised, ready for the head; and None without a cache, else
          the cache of the next entity.
        """


def check_denoiser(pyramid: ScalePyramid, cells: int, width: int, num_heads: int) -> None:
    """Raises ValueError if a level cannot be cut into cells x cells parts of one size, or rotary
    positions cannot turn the heads."""
    if width % (4 * num_heads):
        raise ValueError(
            f"The width {width} is not divisible by 4 times the {num_heads} heads; rotary "
            "positions turn pairs of rows and of columns."
        )
    if cells < 1 or any(n % cells for shape in pyramid.shapes for n in shape):
        raise ValueError(
            f"Levels of {pyramid.shapes} cannot be cut into {cells} x {cells} cells; give a "
            "divisor of all sides, or 1 for whole levels."
        )


def grown(cache: Cache, new: Cache) -> Cache:
    """A cache with the entity of a pass. Not with its modulation, which is of a time."""
    before: Iterable[Any] = cache.runs or ((),) * len(new.runs)
    return Cache(tuple((*old, *made) for old, made in zip(before, new.runs, strict=True)))


def cut(pyramid: ScalePyramid, cells: int) -> ScalePyramid:
    """The cells as the levels of a pyramid, level after level, row by row."""
    n = cells
    shapes = tuple((h // n, w // n) for h, w in pyramid.shapes for _ in range(n * n))
    return ScalePyramid(shapes, grid=pyramid.grid)


@functools.cache
def cell_order(pyramid: ScalePyramid, cells: int) -> np.ndarray:
    """int [L]: where in the pyramid each token of the cells stands, row by row in a cell."""
    found = []
    for start, (h, w) in zip(pyramid.offsets, pyramid.shapes, strict=False):
        tokens = np.arange(start, start + h * w)
        cut = tokens.reshape(cells, h // cells, cells, w // cells)
        found.append(cut.transpose(0, 2, 1, 3).reshape(-1))
    return np.concatenate(found)

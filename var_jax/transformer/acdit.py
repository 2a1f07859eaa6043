"""The transformer of ACDiT: cells of an image in turn, each a diffusion (arXiv 2412.07720).

Unlike xAR's context that of a noisy cell is clean, in training as in drawing: a training pass reads
the cells twice, clean and noisy, and a mask keeps what has not been drawn from a noisy cell (skip-
causal attention). Of a single cell, which has no context, it is a diffusion transformer (DiT).
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from var_jax.context import BlockCausal, KeySegment, OwnScale, key_segments
from var_jax.pyramid import ScalePyramid
from var_jax.settings import Changeable
from var_jax.transformer.attention import BlockSettings
from var_jax.transformer.cache import Cache
from var_jax.transformer.condition import Condition, Conditioner, conditioner_of
from var_jax.transformer.denoiser import cell_order, check_denoiser, cut, grown
from var_jax.transformer.layers import AdaLNInit, Linear, by_token, init_std, modulate, rms_norm
from var_jax.transformer.stack import Stack, check_remat
from var_jax.transformer.time_embedding import TIME_FREQUENCIES, TimeEmbedding

#: Modulations are 0 at initialisation, so that each block is the identity (adaLN-Zero).
_ADALN_INIT = AdaLNInit(0.0, 0.0)


class ACDiT(nn.Module):
    """One stack of blocks over clean and noisy latents; see `Denoiser`.

    Class and time of a cell modulate its noisy tokens, and nothing modulates the clean ones. Tokens
    stand in the order of the cells here and in all that is passed, row by row in a cell.

    Attributes:
      pyramid: of a single level, L tokens.
      num_classes: labels are 0..num_classes - 1; label num_classes is 'no class'.
      code_dim: D, channels of a latent.
      depth: number of blocks.
      width: C.
      num_heads: heads; a head's width is a multiple of 4.
      cells: the level is cut into cells x cells entities; 1 draws it as a whole.
      conditioner: of another kind than class labels; its vector is what is read.
      mlp_ratio: hidden width of the MLP over C.
      class_drop_rate: probability that a label is replaced by 'no class' in training.
      remat, scan_unroll, attention_implementation, dtype: see `VAR`.
    """

    #: See `VAR`.
    mixer: ClassVar[None] = None
    #: See `Denoiser`.
    reads_clean: ClassVar[bool] = True

    pyramid: ScalePyramid
    num_classes: int
    code_dim: int
    depth: int
    width: int
    num_heads: int
    cells: int = 2
    conditioner: Conditioner | None = None
    mlp_ratio: float = 4.0
    class_drop_rate: float = 0.1
    remat: Changeable[str] = "none"
    scan_unroll: Changeable[int] = 1
    attention_implementation: Changeable[str | None] = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settings()  # Raises if they do not fit each other.
        if self.pyramid.num_levels != 1:
            raise ValueError(
                f"ACDiT draws the cells of one level, not of {self.pyramid.shapes}; give one, such "
                "as patch_nums=(16,)."
            )
        check_denoiser(self.pyramid, self.cells, self.width, self.num_heads)
        check_remat(self.remat)

    @nn.nowrap
    def _settings(self) -> BlockSettings:
        return BlockSettings(
            width=self.width,
            num_heads=self.num_heads,
            depth=self.depth,
            mlp_ratio=self.mlp_ratio,
            qk_norm=False,
            style="dit",
            adaln_init=_ADALN_INIT,
            attention_implementation=self.attention_implementation,
            dtype=self.dtype,
        )

    @nn.nowrap
    def conditioning(self) -> Conditioner:
        """The conditioner without parameters; see `VAR.conditioning`."""
        return conditioner_of(self)

    @nn.nowrap
    def sees(self) -> BlockCausal:
        """See `VAR.sees`; here of entities."""
        return BlockCausal()

    @property
    def entities(self) -> ScalePyramid:
        """See `Denoiser`."""
        return cut(self.pyramid, self.cells)

    @property
    def order(self) -> np.ndarray:
        """See `Denoiser`."""
        return cell_order(self.pyramid, self.cells)

    @nn.nowrap
    def new_cache(self) -> Cache:
        """See `Denoiser`."""
        return Cache()

    @nn.nowrap
    def flops(self, pyramid: ScalePyramid, levels: range) -> float:
        """Matrix-product operations of a training pass."""
        width, count = self.width, self.entities.num_levels
        _, segments = skip_causal(self.entities)
        tokens, pairs = sum(s.rows for s in segments), sum(s.pairs for s in segments)
        block = tokens * (4 + 2 * self.mlp_ratio) * width**2 + 2 * pairs * width
        block += count * 6 * width**2
        ends = tokens * self.code_dim * width + count * 2 * width**2
        time = count * (2 * TIME_FREQUENCIES * width + width**2)
        return 2.0 * (self.depth * block + ends + time)

    def setup(self) -> None:
        width, std = self.width, init_std(self.width)
        self._condition = self.conditioning()
        nn.share_scope(self, self._condition)
        self.time = TimeEmbedding(width, jnp.float32)
        self.token_projection = Linear(
            (self.code_dim,), (width,), ("code", "embed"), std, use_bias=False
        )
        self.stack = Stack(self._settings(), 0.0, self.remat, self.scan_unroll)
        gain = nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",))
        self.final_norm = self.param("final_norm", gain, (width,), jnp.float32)
        axes = ("cond", "adaln", "embed")
        self.final_modulation = Linear((width,), (2, width), axes, _ADALN_INIT.scale_shift)

    def __call__(
        self,
        noisy: Float[jax.Array, "B n D"],
        given: Any,
        keys: jax.Array | None = None,
        *,
        times: Float[jax.Array, "B k"] | None = None,
        clean: Float[jax.Array, "B L D"] | None = None,
        levels: range | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[jax.Array, "B n C"], Cache | None]:
        """See `Denoiser`.

        Args:
          clean: in a pass without cache over all entities, the data, of which a noisy entity sees
            the entities before it; None shows a noisy entity itself alone.
        """
        entities = self.entities
        levels = range(entities.num_levels) if levels is None else levels
        sizes, tokens = entities.part(levels).sizes, entities.tokens(levels)
        vector = self._condition(given, keys).vector[:, None]
        x, plain = noisy.astype(jnp.float32), 0
        twice = times is not None and clean is not None
        if times is None:  # What has been drawn.
            vector, plain = vector[:, :0], len(levels)
            if self.is_initializing():
                self.time(jnp.zeros((1, 1)))
        else:
            vector = vector + self.time(times)
        if twice:
            # The last entity is the context of none.
            plain, context = entities.num_levels - 1, entities.level(levels[-1]).start
            x = jnp.concatenate([clean[:, :context].astype(jnp.float32), x], 1)
            sizes, tokens = (*sizes[:-1], *sizes), np.r_[:context, tokens]

        def segments(cached: tuple[int, ...]) -> tuple[KeySegment, ...]:
            if twice:
                return skip_causal(entities)[1]
            alone = times is not None and cache is None
            return key_segments(entities, OwnScale() if alone else BlockCausal(), levels, cached)

        condition = Condition(vector, runs=sizes, plain=plain)
        turns = [a[tokens] for a in _angles(self.pyramid, self.cells, self.width // self.num_heads)]
        x = self.token_projection(x)
        laid_out = skip_causal(entities)[0] if twice else ()
        x, new = self.stack(
            x, condition, segments, lambda t: _turned(t, *turns), cache, laid_out=laid_out
        )
        x = x[:, x.shape[1] - noisy.shape[1] :]
        hidden = self._final(x, vector, sizes[len(sizes) - len(levels) :])
        return hidden, None if cache is None else grown(cache, new)

    def _final(self, x: jax.Array, vector: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
        found = self.final_modulation(nn.silu(vector))
        if not vector.shape[1]:  # Of what has been drawn, which no one asks about.
            found = jnp.zeros((len(x), len(sizes), *found.shape[2:]))
        scale, shift = (by_token(found[:, :, i], sizes) for i in range(2))
        return modulate(x, scale, shift, lambda x: rms_norm(x) * self.final_norm)


@functools.cache
def skip_causal(
    entities: ScalePyramid,
) -> tuple[tuple[tuple[int, int], ...], tuple[KeySegment, ...]]:
    """Who sees whom in a training pass: all entities but the last clean, then all of them noisy.

    A clean entity sees itself and those before it; a noisy one itself and the clean ones before it,
    which is no interval of the tokens. So the keys are the clean tokens, and then for each noisy
    entity what it sees: with K entities of one size (K - 1 + K (K + 1) / 2) / (2 K - 1) times as
    many keys, 1.9 with four.

    Returns:
      As `Visibility.laid_out`, and the segments.
    """
    starts, sizes = entities.offsets, entities.sizes
    context = starts[entities.num_levels - 1]
    laid_out, segments = [(0, context)], []
    for start, size in zip(starts, sizes[:-1], strict=False):
        segments.append(KeySegment(size, 0, start + size))
    place = context
    for start, size in zip(starts, sizes, strict=False):
        laid_out += [(0, start), (context + start, context + start + size)]
        segments.append(KeySegment(size, place, place + start + size))
        place += start + size
    return tuple((lo, hi) for lo, hi in laid_out if hi > lo), tuple(segments)


@functools.cache
def _angles(pyramid: ScalePyramid, cells: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [L, H / 2] by the row and by the column, of the first and second half of a head.

    Each half has its frequencies twice: base ** -x for x from 0 to 1.
    """
    ((height, width),) = pyramid.shapes
    cells_at = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    found = []
    for size, at in zip((height, width), cells_at, strict=True):
        base = (int(8 * size / math.pi) // 100 + 1) * 100
        frequencies = float(base) ** -np.linspace(0, 1, head_dim // 4)
        angles = at.reshape(-1, 1) * np.tile(frequencies, 2)
        found.append(angles[cell_order(pyramid, cells)].astype(np.float32))
    return found[0], found[1]


def _turned(
    x: Float[jax.Array, "B n N H"], rows: np.ndarray, columns: np.ndarray
) -> Float[jax.Array, "B n N H"]:
    """Channel i with channel i + H / 2, the one by the row's angle and the other by the column's.

    As in the official code; no rotation, since the two angles differ.
    """
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    rows, columns = rows[:, None], columns[:, None]
    first = a * np.cos(rows) - b * np.sin(rows)
    second = b * np.cos(columns) + a * np.sin(columns)
    return jnp.concatenate([first, second], -1).astype(x.dtype)

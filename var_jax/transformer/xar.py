"""The transformer of xAR, which is itself the denoiser (arXiv 2502.20388).

It draws one entity after the other: a cell of the image, a whole level of a pyramid, or all of the
image at once. What it reads of an entity is a noisy version at a time of its own, in training of
those before too (noisy context learning); a head makes the velocity of the states that it returns.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from var_jax.context import BlockCausal, key_segments
from var_jax.pyramid import ScalePyramid
from var_jax.settings import Changeable
from var_jax.transformer.attention import BlockSettings
from var_jax.transformer.block import GatedMLP
from var_jax.transformer.cache import Cache
from var_jax.transformer.condition import Condition, Conditioner, conditioner_of
from var_jax.transformer.denoiser import cell_order, check_denoiser, cut, grown
from var_jax.transformer.layers import AdaLNInit, Linear, init_std, rms_norm
from var_jax.transformer.rotary import angles_by_level, rotate_pairs
from var_jax.transformer.stack import Stack, check_remat
from var_jax.transformer.time_embedding import TIME_FREQUENCIES, TimeEmbedding


@flax.struct.dataclass
class EntityCache:
    """Keys and values of the entities before, in both stacks; a new one holds none."""

    encoder: Cache = Cache()
    decoder: Cache = Cache()


class XAR(nn.Module):
    """Two stacks of gated blocks over noisy latents, entity by entity.

    An entity sees itself, both ways, and those before it. Its vector, the class' embedding and that
    of its time, modulates the blocks at its tokens. Tokens stand in the order of the entities here
    and in all that is passed: level after level, its cells row by row, tokens row by row in a cell.

    Attributes:
      pyramid: of the targets, L tokens; one level, or several, from the coarsest.
      num_classes: labels are 0..num_classes - 1; label num_classes is 'no class'.
      code_dim: D, channels of a latent.
      depth: number of blocks of the first stack.
      width: C.
      num_heads: heads; a head's width is a multiple of 4.
      decoder_depth: number of blocks of the second stack; None is depth.
      cells: each level is cut into cells x cells entities; 1 makes an entity of a whole level.
      conditioner: of another kind than class labels; its vector is what is read.
      class_drop_rate: probability that a label is replaced by 'no class' in training.
      remat, scan_unroll, attention_implementation, dtype: see `VAR`.
    """

    #: See `VAR`.
    mixer: ClassVar[None] = None
    #: See `Denoiser`.
    reads_clean: ClassVar[bool] = False

    pyramid: ScalePyramid
    num_classes: int
    code_dim: int
    depth: int
    width: int
    num_heads: int
    decoder_depth: int | None = None
    cells: int = 2
    conditioner: Conditioner | None = None
    class_drop_rate: float = 0.1
    remat: Changeable[str] = "none"
    scan_unroll: Changeable[int] = 1
    attention_implementation: Changeable[str | None] = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settings(self.depth)  # Raises if they do not fit each other.
        check_denoiser(self.pyramid, self.cells, self.width, self.num_heads)
        check_remat(self.remat)

    @nn.nowrap
    def _settings(self, depth: int) -> BlockSettings:
        return BlockSettings(
            width=self.width,
            num_heads=self.num_heads,
            depth=depth,
            qk_norm=False,
            style="gated",
            adaln_init=AdaLNInit(1.0, 1.0),
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
    def new_cache(self) -> EntityCache:
        """See `Denoiser`."""
        return EntityCache()

    @nn.nowrap
    def flops(self, pyramid: ScalePyramid, levels: range) -> float:
        """Matrix-product operations of a training pass."""
        width, length, count = self.width, self.pyramid.length, self.entities.num_levels
        pairs = sum(s.pairs for s in key_segments(self.entities, BlockCausal()))
        token = 4 * width**2 + 3 * width * GatedMLP.hidden(width)
        block = length * token + 2 * pairs * width + count * 6 * width**2
        ends = length * (self.code_dim * width + width**2)
        time = count * (2 * TIME_FREQUENCIES * width + width**2)
        blocks = self.depth + (self.decoder_depth or self.depth)
        return 2.0 * (blocks * block + ends + time)

    def setup(self) -> None:
        width, std = self.width, init_std(self.width)

        def table(name: str) -> jax.Array:
            init = nn.initializers.normal(0.02)
            boxed = nn.with_logical_partitioning(init, ("position", "embed"))
            return self.param(name, boxed, (self.pyramid.length, width), jnp.float32)

        def gain(name: str) -> jax.Array:
            boxed = nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",))
            return self.param(name, boxed, (width,), jnp.float32)

        self._condition = self.conditioning()
        nn.share_scope(self, self._condition)
        self.time = TimeEmbedding(width, jnp.float32)
        self.encoder_position = table("encoder_position")
        self.decoder_position = table("decoder_position")
        self.input_norm, self.encoder_norm = gain("input_norm"), gain("encoder_norm")
        self.decoder_norm = gain("decoder_norm")
        self.token_projection = Linear((self.code_dim,), (width,), ("code", "embed"), std)
        self.decoder_projection = Linear(
            (width,), (width,), ("cond", "embed"), std, self.dtype, sum_dtype=jnp.float32
        )
        loop = (0.0, self.remat, self.scan_unroll)
        self.encoder = Stack(self._settings(self.depth), *loop)
        self.decoder = Stack(self._settings(self.decoder_depth or self.depth), *loop)

    def __call__(
        self,
        noisy: Float[jax.Array, "B n D"],
        given: Any,
        keys: jax.Array | None = None,
        *,
        times: Float[jax.Array, "B k"] | None = None,
        levels: range | None = None,
        cache: EntityCache | None = None,
    ) -> tuple[Float[jax.Array, "B n C"], EntityCache | None]:
        """See `Denoiser`; what has been drawn is read at time 0."""
        levels = range(self.entities.num_levels) if levels is None else levels
        if times is None:
            times = jnp.zeros((len(noisy), len(levels)))
        asked = self._condition(given, keys).vector[:, None] + self.time(times)
        condition = Condition(asked, runs=self.entities.part(levels).sizes)
        tokens = self.entities.tokens(levels)

        x = self.token_projection(noisy.astype(jnp.float32)) + self.encoder_position[tokens]
        x = rms_norm(x) * self.input_norm
        x, encoder = self._blocks(self.encoder, x, condition, levels, cache and cache.encoder)
        # Said as after a block, for a mesh with a tensor axis.
        x = nn.with_logical_constraint(
            rms_norm(x.astype(jnp.float32)) * self.encoder_norm, ("batch", "length", "act_embed")
        )
        x = self.decoder_projection(x) + self.decoder_position[tokens]
        x, decoder = self._blocks(self.decoder, x, condition, levels, cache and cache.decoder)
        hidden = rms_norm(x.astype(jnp.float32)) * self.decoder_norm
        made = None if encoder is None or decoder is None else EntityCache(encoder, decoder)
        return hidden, made

    def _blocks(
        self, stack: Stack, x: jax.Array, condition: Condition, levels: range, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        """A stack, and its cache with the entity of the pass."""
        angles = _angles(self.pyramid, self.cells, self.width // self.num_heads)
        angles = angles[self.entities.tokens(levels)]
        x, new = stack(
            x,
            condition,
            lambda cached: key_segments(self.entities, BlockCausal(), levels, cached),
            lambda t: rotate_pairs(t, angles),
            cache,
        )
        return x, None if cache is None else grown(cache, new)


@functools.cache
def _angles(pyramid: ScalePyramid, cells: int, head_dim: int) -> np.ndarray:
    """float32 [L, head_dim / 2]: a level's tokens stand in its whole grid, whatever their cell."""
    return angles_by_level(pyramid, head_dim)[cell_order(pyramid, cells)]

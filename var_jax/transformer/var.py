"""The scale-wise transformer of VAR (arXiv 2404.02905, section 3.2): embed, stack, normalise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.context import BlockCausal, Context, first_level_kept, key_segments
from var_jax.pyramid import ScalePyramid
from var_jax.settings import Changeable
from var_jax.transformer.attention import BlockSettings
from var_jax.transformer.cache import Cache, KeysValues, Run
from var_jax.transformer.condition import Condition, Conditioner, conditioner_of
from var_jax.transformer.layers import AdaLNInit, FinalAdaLN, Linear, init_std
from var_jax.transformer.mixer import Mixer
from var_jax.transformer.positions import LearnedPositions, Positions
from var_jax.transformer.stack import Stack, check_remat


class VAR(nn.Module):
    """Transformer that predicts each token map from the coarser ones.

    What it is conditioned on, where tokens stand and who sees whom are parts that can be replaced;
    the defaults are those of VAR. Parameters of the blocks are stacked along a leading axis of size
    `depth`.

    Attributes:
      pyramid: the token maps; L tokens.
      num_classes: labels are 0..num_classes - 1; label num_classes is 'no class'.
      code_dim: C_in, channels of the inputs, which are the codec's accumulated codes.
      depth: number of blocks.
      width: C.
      num_heads: heads; divides width.
      context: which levels a level sees.
      conditioner: of another kind than class labels.
      positions: of another kind than a vector for each token and each level.
      mixer: a layer between attention and MLP that carries a state over from level to level.
      mlp_ratio: hidden width of the MLP over C.
      qk_norm: L2-normalised attention (`anorm` officially).
      shared_adaln: one modulation for all blocks (`saln` officially; the 512 px model).
      adaln_init: factors on the modulation at initialisation (`aln`, `alng`).
      cross_attention: blocks read the condition's tokens.
      cross_norm: how that attention is normalised, see `CrossAttention`.
      drop_path_rate: of the last block; grows linearly from 0 at the first.
      class_drop_rate: probability that a label is replaced by 'no class' in training.
      remat: 'none', 'dots' (keep matrix products of weights) or 'full' (keep block inputs).
      scan_unroll: blocks of a loop iteration of the compiled program.
      attention_implementation: see `block_attention`.
      dtype: type of the computation; parameters are float32.
    """

    pyramid: ScalePyramid
    num_classes: int
    code_dim: int
    depth: int
    width: int
    num_heads: int
    context: Context = BlockCausal()
    conditioner: Conditioner | None = None
    positions: Positions | None = None
    mixer: Mixer | None = None
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    shared_adaln: bool = False
    adaln_init: AdaLNInit = AdaLNInit()
    cross_attention: bool = False
    cross_norm: str = "queries_keys"
    drop_path_rate: float = 0.0
    class_drop_rate: float = 0.1
    remat: Changeable[str] = "none"
    scan_unroll: Changeable[int] = 1
    attention_implementation: Changeable[str | None] = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.block_settings()  # Raises if they do not fit each other.
        check_remat(self.remat)

    @nn.nowrap
    def block_settings(self) -> BlockSettings:
        """What its blocks are made of."""
        return BlockSettings(
            width=self.width,
            num_heads=self.num_heads,
            depth=self.depth,
            mlp_ratio=self.mlp_ratio,
            qk_norm=self.qk_norm,
            shared_adaln=self.shared_adaln,
            adaln_init=self.adaln_init,
            cross_attention=self.cross_attention,
            cross_norm=self.cross_norm,
            mixer=self.mixer,
            attention_implementation=self.attention_implementation,
            dtype=self.dtype,
        )

    @nn.nowrap
    def sees(self) -> Context:
        """Which levels a level sees through all layers: with a mixer, all before it."""
        return self.context if self.mixer is None else BlockCausal()

    @nn.nowrap
    def conditioning(self) -> Conditioner:
        """The conditioner without parameters: reads batches, knows what may be asked for."""
        return conditioner_of(self)

    @nn.nowrap
    def flops(self, pyramid: ScalePyramid, levels: range) -> float:
        """Matrix-product operations of a pass over consecutive levels that see none before them."""
        width, tokens = self.width, pyramid.part(levels).length
        pairs = sum(s.pairs for s in key_segments(pyramid, self.context, levels))
        dense = 2 * tokens * width * width * (4 + 2 * self.mlp_ratio)
        attention = 4 * pairs * width
        vectors = 3 * self.block_settings().num_branches
        modulation = 0 if self.shared_adaln else 2 * vectors * width * width
        cross = 4 * tokens * width * width if self.cross_attention else 0  # without its few keys
        mixer = 0 if self.mixer is None else self.mixer.flops(tokens)
        block = dense + attention + modulation + cross + mixer
        # The shared modulation, and that of the last norm.
        once = 2 * (vectors * self.shared_adaln + 2) * width * width
        coded = tokens if levels.start else tokens - pyramid.sizes[0]
        return self.depth * block + once + 2 * coded * self.code_dim * width

    def setup(self) -> None:
        std = init_std(self.width)
        self._condition = self.conditioning()
        self._positions = self.positions or LearnedPositions(self.pyramid, self.width)
        self._stack = Stack(
            self.block_settings(), self.drop_path_rate, self.remat, self.scan_unroll
        )
        # The parts' parameters stand beside each other, not in a subtree for each part.
        for part in (self._condition, self._positions, self._stack):
            nn.share_scope(self, part)
        self.start_position = self.param(
            "start_position",
            nn.with_logical_partitioning(nn.initializers.normal(std), ("position", "embed")),
            (self.pyramid.sizes[0], self.width),
            jnp.float32,
        )
        self.code_projection = Linear((self.code_dim,), (self.width,), ("code", "embed"), std)
        self.final_adaln = FinalAdaLN(self.width, self.adaln_init)

    def __call__(
        self,
        inputs: Float[jax.Array, "B n D"] | None,
        given: Any,
        keys: jax.Array | None = None,
        *,
        pyramid: ScalePyramid | None = None,
        levels: range | None = None,
        cache: Cache | None = None,
        extra: Float[jax.Array, "B n C"] | None = None,
        runs: tuple[Run, ...] | None = None,
        keep_queries: bool = False,
        stream: Float[jax.Array, "B n C"] | None = None,
        normalize: bool = True,
        behind: Callable[[int, jax.Array], jax.Array] | None = None,
    ) -> tuple[Float[jax.Array, "B n C"], Cache | None]:
        """One pass over consecutive levels: all of them (training), a prefix, or one (sampling).

        Args:
          inputs: what each token reads (`Codec.lesson`, `Codec.advance`); the rows of level 0 are
            not used, and level 0 alone needs none (None).
          given: what is asked for, see `Conditioner`; class labels int32 [B] by default.
          keys: one PRNG key for each example [B], for dropout of the condition and drop path; None
            in evaluation.
          pyramid: the levels' shapes; by default the model's own. Another one where the positions
            serve it; a prefix always.
          levels: of the pyramid; all by default.
          cache: None to attend within the pass only; else `Cache()` before level 0, then what the
            pass over the levels before returned.
          extra: added to the tokens' embeddings.
          runs: blocks to compute, see `Stack`; all by default.
          keep_queries: put the queries into the cache's newest level.
          stream: what other blocks made of the tokens, in place of their embeddings.
          normalize: False returns the stream, without the last norm.
          behind: (i, stream) -> stream, changes what run i returns.

        Returns:
          float32 hidden states, normalised, ready for the head; and None without a cache, else the
          cache for the next levels.
        """
        pyramid = self.pyramid if pyramid is None else pyramid
        levels = range(pyramid.num_levels) if levels is None else levels
        if self.mixer and levels.start and (cache is None or cache.states is None):
            raise ValueError(
                f"Level {levels.start} has no state of the levels before, which the mixer carries "
                "over; begin with level 0, or pass the cache that a pass over them returned."
            )
        drop_keys = path_keys = None
        if keys is not None:
            both = jax.vmap(jax.random.split)(keys)
            drop_keys, path_keys = both[:, 0], both[:, 1]
        condition = self._condition(given, drop_keys)
        x = self._embed(inputs, condition, pyramid, levels) if stream is None else stream
        if extra is not None:
            x = x + extra

        seen = cache
        if cache is not None:
            # What no level of the pass looks back to is left out.
            lo = min(self.context.window(k)[0] for k in levels)
            skipped = max(0, min(lo, levels.start) - cache.first)
            seen = cache.replace(
                runs=tuple(run[skipped:] for run in cache.runs), first=cache.first + skipped
            )
        x, new = self._stack(
            x,
            condition,
            lambda cached: key_segments(pyramid, self.context, levels, cached),
            lambda t: self._positions.rotate(t, pyramid, levels),
            seen,
            runs,
            path_keys,
            keep_queries,
            behind=behind,
        )
        if cache is not None:
            new = self._extend(cache, new, pyramid, levels)
        return (self.final_adaln(x, condition.vector) if normalize else x), new

    def _embed(
        self, inputs: jax.Array | None, condition: Condition, pyramid: ScalePyramid, levels: range
    ) -> jax.Array:
        """The tokens' embeddings, float32 [B, n, C]."""
        parts = []
        if levels.start == 0:
            # Level 0 reads the condition instead of codes.
            parts.append(condition.vector[:, None] + self.start_position[None])
            inputs = None if inputs is None else inputs[:, pyramid.sizes[0] :]
        if levels.stop > max(levels.start, 1):
            parts.append(self.code_projection(inputs.astype(jnp.float32)))
        x = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        added = self._positions.added(pyramid, levels)
        return x if added is None else x + added[None]

    def _extend(self, cache: Cache, new: Cache, pyramid: ScalePyramid, levels: range) -> Cache:
        """The cache with the levels of a pass, without what no later level sees."""
        first = first_level_kept(pyramid, self.context, levels.stop - 1)
        ends = [pyramid.offsets[k] - pyramid.offsets[levels.start] for k in (*levels, levels.stop)]

        def by_level(entry: KeysValues) -> tuple[KeysValues, ...]:
            if len(levels) == 1:
                return (entry,)
            cuts = zip(ends[:-1], ends[1:], strict=True)
            return tuple(jax.tree.map(lambda x, a=a, b=b: x[:, :, a:b], entry) for a, b in cuts)

        before = cache.runs or ((),) * len(new.runs)
        runs = tuple(
            (*old, *by_level(made))[max(0, first - cache.first) :]
            for old, (made,) in zip(before, new.runs, strict=True)
        )
        return new.replace(runs=runs, first=max(first, cache.first))

"""The scale-wise transformer of VAR (arXiv 2404.02905, section 3.2): embed, stack, normalise."""

from __future__ import annotations

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.context import BlockCausal, Context, KeySegment, first_level_kept, key_segments
from var_jax.pyramid import ScalePyramid
from var_jax.settings import Changeable
from var_jax.transformer.attention import LevelCache
from var_jax.transformer.block import Block
from var_jax.transformer.layers import AdaLNInit, FinalAdaLN, Linear, init_std

#: What is kept of the forward pass for the backward pass, from most to least memory.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@flax.struct.dataclass
class StepCache:
    """What `VAR.step` carries from level to level.

    Attributes:
      levels: keys and values of the levels that later levels still see, coarsest first;
        arrays [depth, B, n_k, heads, head_dim].
      modulation: of the blocks, [depth, B, 6, C]: it depends on the label alone. None at level 0,
        which makes it; its matrices are a third of a block's parameters.
      first: index of the first level in `levels`.
    """

    levels: tuple[LevelCache, ...] = ()
    modulation: jax.Array | None = None
    first: int = flax.struct.field(pytree_node=False, default=0)


class VAR(nn.Module):
    """Class-conditional transformer that predicts each token map from the coarser ones.

    Parameters of the blocks are stacked along a leading axis of size `depth`.

    Attributes:
      pyramid: the token maps; L tokens.
      num_classes: labels are 0..num_classes - 1; label num_classes is 'no class'.
      code_dim: C_in, channels of the inputs, which are the codec's accumulated codes.
      depth: number of blocks.
      width: C.
      num_heads: heads; divides width.
      context: which levels a level sees.
      mlp_ratio: hidden width of the MLP over C.
      qk_norm: L2-normalised attention (`anorm` officially).
      shared_adaln: one modulation for all blocks (`saln` officially; the 512 px model).
      adaln_init: factors on the modulation at initialisation (`aln`, `alng`).
      drop_path_rate: of the last block; grows linearly from 0 at the first.
      class_drop_rate: probability that a label is replaced by 'no class' in training.
      remat: 'none', 'dots' (keep matrix products of weights) or 'full' (keep block inputs).
      scan_unroll: blocks a loop iteration of the compiled program.
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
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    shared_adaln: bool = False
    adaln_init: AdaLNInit = AdaLNInit()
    drop_path_rate: float = 0.0
    class_drop_rate: float = 0.1
    remat: Changeable[str] = "none"
    scan_unroll: Changeable[int] = 1
    attention_implementation: Changeable[str | None] = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} is not divisible by num_heads {self.num_heads}; "
                "head_dim is their quotient."
            )
        if self.remat not in REMAT_POLICIES:
            raise ValueError(
                f"Unknown remat {self.remat!r}; choose one of {sorted(REMAT_POLICIES)}."
            )

    def setup(self) -> None:
        std = init_std(self.width)

        def table(name: str, axis: str, size: int) -> jax.Array:
            init = nn.with_logical_partitioning(nn.initializers.normal(std), (axis, "embed"))
            return self.param(name, init, (size, self.width), jnp.float32)

        self.class_embedding = table("class_embedding", "class", self.num_classes + 1)
        self.start_position = table("start_position", "position", self.pyramid.sizes[0])
        self.position = table("position", "position", self.pyramid.length)
        self.level = table("level", "level", self.pyramid.num_levels)
        self.code_projection = Linear((self.code_dim,), (self.width,), ("code", "embed"), std)
        if self.shared_adaln:
            self.shared_modulation = Linear(
                (self.width,), (6, self.width), ("cond", "adaln", "embed"), std, self.dtype
            )
        self.blocks = Block(
            self.width,
            self.num_heads,
            self.mlp_ratio,
            self.depth,
            self.qk_norm,
            self.shared_adaln,
            self.adaln_init,
            self.attention_implementation,
            self.dtype,
        )
        self.final_adaln = FinalAdaLN(self.width, self.adaln_init)

    def __call__(
        self,
        inputs: jax.Array,
        labels: jax.Array,
        keys: jax.Array | None = None,
        num_levels: int | None = None,
    ) -> jax.Array:
        """Teacher-forced pass over all levels at once.

        Args:
          inputs: float [B, L, C_in], what each token reads (`codec.teacher_inputs`); the
            rows of level 0 are not used.
          labels: int32 [B] in 0..num_classes.
          keys: a PRNG key for each example [B] for class dropout and drop path; None in
            evaluation.
          num_levels: use the first levels of the pyramid only (progressive training); inputs
            then has that prefix's length.

        Returns:
          float32 [B, L, C], normalised, ready for the head.
        """
        pyramid = self.pyramid.prefix(num_levels or self.pyramid.num_levels)
        keep = jnp.ones((self.depth, labels.shape[0], 2), jnp.float32)
        if keys is not None:
            labels, keep = self._drop(labels, keys)
        condition = self._condition(labels)
        x = jnp.concatenate(
            [
                self._start(condition),
                self.code_projection(inputs[:, pyramid.sizes[0] :].astype(jnp.float32)),
            ],
            axis=1,
        )
        x = x + self._position(pyramid.level_ids, slice(0, pyramid.length))
        segments = key_segments(pyramid, self.context)
        x, _ = self._stack(x, condition, keep, segments, None)
        return self.final_adaln(x, condition)

    def step(
        self, level: int, inputs: jax.Array | None, labels: jax.Array, cache: StepCache
    ) -> tuple[jax.Array, StepCache]:
        """One level, attending to the cached ones; levels come in order from 0.

        Args:
          level: k.
          inputs: float [B, n_k, C_in] from `codec.advance`; None at level 0.
          labels: int32 [B] in 0..num_classes.
          cache: `StepCache()` at level 0, else what the level before returned.

        Returns:
          float32 [B, n_k, C], normalised, and the cache for the next level.
        """
        pyramid = self.pyramid
        condition = self._condition(labels)
        if level == 0:
            x = self._start(condition)
        else:
            x = self.code_projection(inputs.astype(jnp.float32))
        tokens = pyramid.level(level)
        x = x + self._position(pyramid.level_ids[tokens], tokens)

        lo, _ = self.context.window(level)
        visible = cache.levels[lo - cache.first :] if level else ()
        num_keys = sum(pyramid.sizes[lo : level + 1])
        segments = (KeySegment(pyramid.sizes[level], 0, num_keys),)
        keep = jnp.ones((self.depth, labels.shape[0], 2), jnp.float32)
        x, (new, modulation) = self._stack(x, condition, keep, segments, visible, cache.modulation)

        first = first_level_kept(pyramid, self.context, level)
        levels = (*cache.levels, new)[first - cache.first :]
        return self.final_adaln(x, condition), StepCache(levels, modulation, first)

    def _condition(self, labels: jax.Array) -> jax.Array:
        """Class embeddings, float32 [B, C]."""
        return jnp.take(self.class_embedding, labels, axis=0)

    def _start(self, condition: jax.Array) -> jax.Array:
        """The tokens of level 0: class embedding plus start position, [B, n_0, C]."""
        return condition[:, None] + self.start_position[None]

    def _position(self, level_ids: jax.Array, tokens: slice) -> jax.Array:
        """Level plus position embedding, [1, n, C]."""
        return (jnp.take(self.level, level_ids, axis=0) + self.position[tokens])[None]

    def _drop(self, labels: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Class dropout and drop-path factors, from each example's own key."""

        def uniforms(key):
            return jax.random.uniform(key, (1 + 2 * self.depth,))

        u = jax.vmap(uniforms)(keys)
        labels = jnp.where(u[:, 0] < self.class_drop_rate, self.num_classes, labels)
        rates = jnp.linspace(0, self.drop_path_rate, self.depth)[:, None, None]
        u = u[:, 1:].reshape(-1, self.depth, 2).swapaxes(0, 1)
        keep = jnp.where(u < rates, 0.0, 1 / (1 - rates))
        return labels, keep

    def _stack(self, x, condition, keep, segments, cache, modulation=None):
        """All blocks; with a cache also returns the new level's keys and values, and the
        modulation, which is made here unless it is given."""
        x = nn.with_logical_constraint(x.astype(self.dtype), ("batch", "length", "act_embed"))
        if self.shared_adaln and modulation is None:
            condition = self.shared_modulation(nn.silu(condition))
        condition = condition.astype(self.dtype)

        def body(block, x, condition, keep, cache, modulation):
            return block(x, condition, keep, segments, cache, modulation)

        if self.remat != "none" and cache is None:
            body = nn.remat(body, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, 0, 0),
            length=self.depth,
            unroll=self.scan_unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self.blocks, x, condition, keep, cache, modulation)

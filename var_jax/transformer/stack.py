"""The blocks one after the other: scanned, rematerialised, with drop path, all or some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from var_jax.context import KeySegment
from var_jax.transformer.attention import BlockSettings, Visibility
from var_jax.transformer.block import Block
from var_jax.transformer.cache import Cache, KeysValues, Run
from var_jax.transformer.condition import Condition
from var_jax.transformer.layers import Linear, folded, init_std
from var_jax.transformer.mixer import MixerState

#: What is kept of the forward pass for the backward pass, from most to least memory.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def check_remat(remat: str) -> None:
    """Raises ValueError for what is none of REMAT_POLICIES."""
    if remat not in REMAT_POLICIES:
        raise ValueError(f"Unknown remat {remat!r}; choose one of {sorted(REMAT_POLICIES)}.")


class Stack(nn.Module):
    """Blocks whose parameters are stacked along a leading axis.

    Attributes:
      block: settings of each of its `block.depth` blocks.
      drop_path_rate: of the last block; grows linearly from 0 at the first.
      remat: of REMAT_POLICIES.
      scan_unroll: blocks of a loop iteration of the compiled program.
    """

    block: BlockSettings
    drop_path_rate: float = 0.0
    remat: str = "none"
    scan_unroll: int = 1

    def setup(self) -> None:
        if self.block.shared_adaln:
            width = self.block.width
            self.shared_modulation = Linear(
                (width,),
                (3 * self.block.num_branches, width),
                ("cond", "adaln", "embed"),
                init_std(width),
                self.block.dtype,
            )
        self.blocks = Block(self.block)

    def __call__(
        self,
        x: Float[jax.Array, "B n C"],
        condition: Condition,
        segments: Callable[[tuple[int, ...]], tuple[KeySegment, ...]],
        rotate: Callable[[jax.Array], jax.Array],
        cache: Cache | None = None,
        runs: Sequence[Run] | None = None,
        keys: jax.Array | None = None,
        keep_queries: bool = False,
        present: Bool[jax.Array, "B n"] | None = None,
        laid_out: tuple[tuple[int, int], ...] = (),
        behind: Callable[[int, jax.Array], jax.Array] | None = None,
    ) -> tuple[Float[jax.Array, "B n C"], Cache | None]:
        """All blocks, or those of some runs.

        Args:
          x: all tokens of a pass.
          condition: what they are conditioned on.
          segments: which keys the tokens see, by the numbers of keys of the cached levels.
          rotate: see `Visibility`.
          cache: None to attend within x only; else what was returned before, or `Cache()`.
          runs: blocks to compute, in order; each run is one loop, has its own lengths in the cache,
            and must be the run that the cache was made with. None: all blocks as one run.
          keys: one PRNG key for each example [B], for drop path and dropout; None in evaluation.
          keep_queries, present, laid_out: see `Visibility`.
          behind: (i, x) -> x, changes what run i returns.

        Returns:
          As x; and None without a cache, else the keys and values of x alone, the modulation, and
          the mixers' states.
        """
        dtype, depth = self.block.dtype, self.block.depth
        runs = (tuple(range(depth)),) if runs is None else tuple(runs)
        scales = self._branch_scales(x.shape[0], keys)
        drop_keys = None
        if keys is not None and self.block.dropout:
            drop_keys = jnp.stack([folded(keys, i) for i in range(depth)])
        modulation = None if cache is None else cache.modulation
        states = None if cache is None else cache.states
        x = nn.with_logical_constraint(x.astype(dtype), ("batch", "length", "act_embed"))
        vector = condition.vector
        if self.block.shared_adaln and modulation is None:
            vector = self.shared_modulation(nn.silu(vector))
        condition = condition.replace(vector=vector.astype(dtype))

        made: list[tuple[KeysValues, jax.Array, MixerState]] = []
        for i, run in enumerate(runs):
            whole = run == tuple(range(depth))
            levels = None
            if cache is not None:
                levels = cache.runs[i] if cache.runs else ()
            known = None if modulation is None else modulation[i]
            state = None if states is None else states[i]
            lengths = tuple(level.length for level in levels or ())
            visibility = Visibility(segments(lengths), rotate, keep_queries, present, laid_out)
            x, new = self._run(
                x,
                condition,
                scales if whole else scales[jnp.array(run)],
                drop_keys if whole or drop_keys is None else drop_keys[jnp.array(run)],
                visibility,
                levels,
                known,
                state,
                None if whole else run,
            )
            made.append(new)
            if behind is not None:
                x = behind(i, x)
        if cache is None:
            return x, None
        entries, modulations, carried = zip(*made, strict=True)
        return x, Cache(
            runs=tuple((new,) for new in entries),
            modulation=modulations,
            states=None if self.block.mixer is None else carried,
        )

    def _branch_scales(self, batch: int, keys: jax.Array | None) -> jax.Array:
        """Drop path's factors, float32 [depth, B, branches]."""
        depth, branches = self.block.depth, self.block.num_branches
        if keys is None:
            return jnp.ones((depth, batch, branches), jnp.float32)
        u = jax.vmap(lambda key: jax.random.uniform(key, (depth, branches)))(keys).swapaxes(0, 1)
        rates = jnp.linspace(0, self.drop_path_rate, depth)[:, None, None]
        return jnp.where(u < rates, 0.0, 1 / (1 - rates))

    def _run(self, x, condition, scales, keys, visibility, levels, modulation, state, run):
        """The blocks of a run, None being all of them, as one loop."""

        def body(block, x, condition, levels, scale, keys, modulation, state, number):
            given = (visibility, levels, modulation, state, number, keys)
            return block(x, condition, scale, *given)

        length = self.block.depth if run is None else len(run)
        if self.remat != "none" and levels is None:
            body = nn.remat(body, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        loop = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0, 0, 0, 0, 0),
            length=length,
            unroll=self.scan_unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if run is not None:
            rows = jnp.array(run)
            loop = nn.map_variables(
                loop, "params", trans_in_fn=lambda params: jax.tree.map(lambda p: p[rows], params)
            )
        # The cache stays whole: a slice of it for each block would be a copy.
        numbers = jnp.arange(length) if levels else None
        return loop(self.blocks, x, condition, levels, scales, keys, modulation, state, numbers)

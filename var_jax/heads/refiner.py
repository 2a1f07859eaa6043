"""The tokens of a level drawn jointly: a small causal transformer over the hidden states
(Logit Refiner, CompVis, ECCV 2026).

VAR draws the tokens of a level independently of each other. Here the level is a product of
conditionals in row-major order, p(token i | tokens before it, hidden states up to i), so that the
likelihood stays exact. The transformer still runs once for each level; only the refiner runs once
for each token.

What differs from the paper: a head does not see the condition, so that the blocks' layer norms are
not adaptive, and class and text reach them through the hidden states; these are read after the
transformer's last adaptive layer norm, not before it; codes have embeddings of their own, not the
transformer's map of the codebook; levels that are refined and others share one linear map to
logits; and a level of one token, which has nothing to refine, is not refined.
"""

from __future__ import annotations

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from var_jax.fields import Field
from var_jax.heads.base import mixed
from var_jax.heads.categorical import CategoricalHead, CategoricalSampling, LevelSampling
from var_jax.heads.filters import filter_logits
from var_jax.kernels.block_attention.reference import scaled_operands
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.attention import masked_attention
from var_jax.transformer.block import MLP
from var_jax.transformer.layers import Linear, init_std, layer_norm

#: Keys and values of a level's tokens, [B, n, heads, head_dim] each; outside, stacked over blocks.
LevelCache = tuple[jax.Array, jax.Array]

#: Width of an attention head where no number of heads is given.
_HEAD_DIM = 64
#: Width of the middle of an MLP over the width.
_MLP_RATIO = 4


class RefinerHead(nn.Module):
    """The categorical head, whose hidden states are refined at levels up to a size.

    At initialisation it is the categorical head to the bit, and the parameters that both have bear
    the same names.

    Attributes:
      pyramid: of the tokens.
      target: one code.
      width: C.
      max_side: levels with a longer side are left to the categorical head.
      depth: number of the refiner's blocks.
      num_heads: of its attention; None is one for each 64 of the width.
      stop_gradient: the loss teaches the transformer nothing, as in the paper. It then stays what
        `train.initial_checkpoint` made it if `weight_decay` is 0: decay needs no gradient.
      dtype: type of the computation; parameters and logits are float32.
    """

    sampling: ClassVar[type] = CategoricalSampling
    has_likelihood: ClassVar[bool] = True

    pyramid: ScalePyramid
    target: Field
    width: int
    max_side: int
    depth: int = 2
    num_heads: int | None = None
    stop_gradient: bool = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target.shape or not self.target.num_values:
            raise ValueError(
                f"A refiner predicts one code for each token, not {self.target.name} of shape "
                f"{self.target.shape}; choose a codec with a codebook: 'residual_vq'."
            )
        if self.depth < 1 or self.width % self._num_heads():
            raise ValueError(
                f"A refiner needs a block at least and a width that its heads divide, got depth "
                f"{self.depth} and {self._num_heads()} heads for a width of {self.width}."
            )
        if not any(self.refines(shape) for shape in self.pyramid.shapes):
            raise ValueError(
                f"max_side is {self.max_side}, but no level of {self.pyramid.shapes} has more than "
                "one token and no longer side; raise it, or choose the head 'categorical'."
            )

    def setup(self) -> None:
        self.plain = self._plain()
        nn.share_scope(self, self.plain)
        self.refiner = Refiner(
            self.target.num_values, self.width, self.depth, self._num_heads(), self.dtype
        )

    @nn.nowrap
    def _plain(self, **parent) -> CategoricalHead:
        return CategoricalHead(self.target.num_values, self.width, dtype=self.dtype, **parent)

    @nn.nowrap
    def _num_heads(self) -> int:
        return self.num_heads or max(1, self.width // _HEAD_DIM)

    @nn.nowrap
    def refines(self, shape: tuple[int, int]) -> bool:
        """Whether the tokens of a level of this shape are drawn jointly."""
        return math.prod(shape) > 1 and max(shape) <= self.max_side

    def __call__(
        self, hidden: Float[jax.Array, "B L C"], target: Int[jax.Array, "B L"] | None = None
    ) -> Float[jax.Array, "B L V"]:
        """Logits of all tokens given those before them, zeros by default; float32."""
        if target is None:
            target = jnp.zeros(hidden.shape[:2], jnp.int32)
        return self.plain(self.refined(hidden, target, self.pyramid))

    def refined(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: Int[jax.Array, "B n"],
        pyramid: ScalePyramid,
    ) -> Float[jax.Array, "B n C"]:
        """Hidden states that know the tokens before them in their level, all in one pass.

        Args:
          hidden: of all tokens of a pyramid.
          target: of the same tokens.
          pyramid: of the tokens.
        """
        chosen = [k for k, shape in enumerate(pyramid.shapes) if self.refines(shape)]
        if not chosen:
            return hidden
        levels = pyramid.split(hidden)
        part = ScalePyramid(tuple(pyramid.shapes[k] for k in chosen))
        start = self._start(len(hidden))
        tokens = pyramid.split(target.astype(jnp.int32))
        before = [x for k in chosen for x in (start, tokens[k][:, :-1])]
        states = jnp.concatenate([levels[k] for k in chosen], 1)
        found, _ = self.refiner(states, jnp.concatenate(before, 1), part)
        for k, level in zip(chosen, part.split(found), strict=True):
            levels[k] = level.astype(hidden.dtype)
        return jnp.concatenate(levels, 1)

    @nn.nowrap
    def _start(self, batch: int) -> Int[jax.Array, "B 1"]:
        """What stands before the first token of a level."""
        return jnp.full((batch, 1), self.target.num_values, jnp.int32)

    def loss(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: Int[jax.Array, "B n"],
        keys: jax.Array | None,
        pyramid: ScalePyramid,
    ) -> tuple[Float[jax.Array, "B n"], dict[str, Float[jax.Array, "B n"]]]:
        """Cross entropy of each token given those before it in its level; their sum is exact.

        Returns:
          See `CategoricalHead.loss`.
        """
        if self.stop_gradient:
            hidden = jax.lax.stop_gradient(hidden)
        return self.plain.loss(self.refined(hidden, target, pyramid), target)

    def sample(
        self,
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        keys: jax.Array,
        settings: LevelSampling,
    ) -> tuple[Int[jax.Array, "B n"], jax.Array]:
        """Draws the tokens of one level, one after the other where the level is refined.

        All conditions read the token that was drawn from their mixed logits. Logit processors see
        one token at a time.

        Returns:
          See `CategoricalHead.sample`.
        """
        shape = settings.pyramid.shapes[settings.level]
        if not self.refines(shape):
            return self.plain.sample(hiddens, weights, keys, settings)
        batch, count, _ = hiddens[0].shape

        def gumbel(key):
            return jax.random.gumbel(key, (count, self.target.num_values))

        # The noise by which the categorical head draws: from the same logits come the same codes.
        noise = jnp.zeros((batch, count, 1))
        if settings.top_k != 1:
            axes = ("batch", "length", "act_vocab")
            noise = nn.with_logical_constraint(jax.vmap(gumbel)(keys), axes)

        def step(head, carry, index, noise, hiddens):
            caches, before = carry
            pairs = zip(hiddens, caches, strict=True)
            found = [head.refiner(x[:, None], before, None, cache, index) for x, cache in pairs]
            states = tuple(x for x, _ in found)
            logits = mixed(tuple(head.plain(x) for x in states), weights)
            logits = filter_logits(logits / settings.temperature, settings.top_k, settings.top_p)
            for processor in settings.processors:
                logits = processor(logits, settings.level, settings.pyramid)
            token = (logits + noise[:, None]).argmax(-1).astype(jnp.int32)
            kept = tuple(x[:, 0] for x in states) if settings.smooth else ()
            return (tuple(cache for _, cache in found), token), (token[:, 0], kept)

        loop = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(0, 1, 1),
            out_axes=1,
            length=count,
        )
        caches = tuple(self.refiner.cache(batch, count) for _ in hiddens)
        carry = caches, self._start(batch)
        _, (tokens, states) = loop(self, carry, jnp.arange(count), noise, hiddens)
        if not settings.smooth:
            return tokens, tokens
        # The average hangs on the logits alone, which follow from the states.
        return tokens, self.plain.sample(states, weights, keys, settings)[1]

    @nn.nowrap
    def flops(self, tokens: int) -> float:
        """See `Head`; of the refiner's work on the whole pyramid, a part in proportion."""
        sizes = [math.prod(shape) for shape in self.pyramid.shapes if self.refines(shape)]
        dense = (2 + self.depth * (4 + 2 * _MLP_RATIO)) * self.width**2
        attention = 2 * self.depth * self.width
        refined = sum(2.0 * n * (dense + n * attention) for n in sizes)
        return self._plain(parent=None).flops(tokens) + refined * tokens / self.pyramid.length


class Refiner(nn.Module):
    """h + W [h; e], then causal blocks; e is the embedding of the token before.

    W and what the blocks' attentions and MLPs end with are 0 at initialisation: h comes out.

    Attributes:
      vocab_size: V; the number V stands for the start of a level.
      width: C.
      depth: number of blocks.
      num_heads: of the attention; divides the width.
      dtype: type of the computation; parameters are float32.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        hidden: Float[jax.Array, "B n C"],
        before: Int[jax.Array, "B n"],
        pyramid: ScalePyramid | None,
        cache: LevelCache | None = None,
        index: jax.Array | None = None,
    ) -> tuple[Float[jax.Array, "B n C"], LevelCache | None]:
        """All tokens of some levels, or the next one of a level.

        Args:
          hidden: of the tokens.
          before: the token before each.
          pyramid: of the tokens; None with a cache.
          cache: None, or the keys and values of a level's tokens, of which those before `index` are
            known, as this returned them or `cache` did.
          index: of the next token.

        Returns:
          As hidden; and None without a cache, else the cache with the token.
        """
        table = self.param(
            "codes",
            nn.with_logical_partitioning(
                nn.initializers.normal(init_std(self.width)), (None, "embed")
            ),
            (self.vocab_size + 1, self.width),
            jnp.float32,
        )
        x = hidden.astype(self.dtype)
        both = jnp.concatenate([x, jnp.take(table, before, axis=0).astype(self.dtype)], -1)
        x = x + Linear(
            (2 * self.width,), (self.width,), ("embed", None), 0.0, self.dtype, name="input"
        )(both)
        loop = nn.scan(
            lambda block, x, cache: block(x, pyramid, cache, index),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return loop(CausalBlock(self.width, self.num_heads, self.dtype, name="blocks"), x, cache)

    @nn.nowrap
    def cache(self, batch: int, count: int) -> LevelCache:
        """Room for the keys and values of a level of so many tokens."""
        shape = (self.depth, batch, count, self.num_heads, self.width // self.num_heads)
        axes = ("layers", "batch", "length", "act_heads", None)
        empty = nn.with_logical_constraint(jnp.zeros(shape, self.dtype), axes)
        return empty, empty


class CausalBlock(nn.Module):
    """x + attention(norm(x)), then + MLP(norm(x)); for its fields see `Refiner`."""

    width: int
    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B n C"],
        pyramid: ScalePyramid | None,
        cache: LevelCache | None,
        index: jax.Array | None,
    ) -> tuple[Float[jax.Array, "B n C"], LevelCache | None]:
        """Args, Returns: see `Refiner`."""
        attention = CausalAttention(self.num_heads, self.dtype, name="attention")
        y, cache = attention(layer_norm(x).astype(self.dtype), pyramid, cache, index)
        x = x + y
        mlp = MLP(self.width, _MLP_RATIO * self.width, 0.0, self.dtype, name="mlp")
        x = x + mlp(layer_norm(x))
        return nn.with_logical_constraint(x, ("batch", "length", "act_embed")), cache


class CausalAttention(nn.Module):
    """Attention of each token to itself and those before it in its level; L2-normalised as VAR's.

    Attributes:
      num_heads: divides the width.
      dtype: type of the computation.
    """

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B n C"],
        pyramid: ScalePyramid | None,
        cache: LevelCache | None,
        index: jax.Array | None,
    ) -> tuple[Float[jax.Array, "B n C"], LevelCache | None]:
        """Args, Returns: see `Refiner`."""
        width, dtype = x.shape[-1], self.dtype
        std, head_dim = init_std(width), width // self.num_heads

        def project(name: str) -> jax.Array:
            axes = ("embed", "heads", "head_dim")
            made = Linear((width,), (self.num_heads, head_dim), axes, std, dtype, name=name)(x)
            return nn.with_logical_constraint(made, ("batch", "length", "act_heads", None))

        log_scale = self.param(
            "log_scale",
            nn.with_logical_partitioning(nn.initializers.constant(math.log(4.0)), ("heads",)),
            (self.num_heads,),
            jnp.float32,
        )
        q, k = scaled_operands(project("query"), project("key"), 1.0, log_scale)
        q, k, v = q.astype(dtype), k.astype(dtype), project("value")
        if cache is None:
            levels = zip(*(pyramid.split(t) for t in (q, k, v)), strict=True)
            causal = [
                masked_attention(q, k, v, np.tri(q.shape[1], dtype=bool)[None, None])
                for q, k, v in levels
            ]
            out = jnp.concatenate(causal, 1)
        else:
            put = jax.lax.dynamic_update_slice_in_dim
            cache = put(cache[0], k, index, 1), put(cache[1], v, index, 1)
            known = (jnp.arange(cache[0].shape[1]) <= index)[None, None, None]
            out = masked_attention(q, *cache, known)
        axes = ("heads", "head_dim", "embed")
        out = Linear((self.num_heads, head_dim), (width,), axes, 0.0, dtype, name="out")(out)
        return out, cache

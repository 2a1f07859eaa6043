"""Conditioning on captions: a transformer over their bytes, which trains along."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from var_jax.data import captions
from var_jax.fields import Field
from var_jax.transformer.attention import BlockSettings, CrossAttention
from var_jax.transformer.block import MLP
from var_jax.transformer.condition import Condition
from var_jax.transformer.layers import Linear, init_std, layer_norm


@flax.struct.dataclass
class Prompts:
    """What is asked for in words; bytes as `captions.encode` gives them.

    Attributes:
      text: uint8 [B, T].
      negative: uint8 [B, T], in place of the empty caption in the unconditional half of guidance,
        which so steers away from it; None is the empty one.
    """

    text: jax.Array
    negative: jax.Array | None = None


class Captions(nn.Module):
    """A caption is read byte by byte, after a token that marks its start.

    Blocks of attention in both directions and MLP make the tokens that the model's blocks read with
    cross_attention; a linear map of the tokens' mean modulates those blocks. Asking for nothing is
    asking for the empty caption, which has but the start.

    Attributes:
      width: C, of the model and of the encoder.
      caption_length: T, config.data.caption_length; longer texts are cut.
      drop_rate: probability that a caption is replaced by the empty one in training.
      depth: blocks of the encoder.
      num_heads: of each of them.
      dtype: type of the computation; parameters are float32.
    """

    width: int
    caption_length: int
    drop_rate: float = 0.1
    depth: int = 2
    num_heads: int = 4
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.caption_length <= captions.MAX_BYTES:
            raise ValueError(
                f"config.data.caption_length is {self.caption_length}, but a model of captions "
                f"reads 1 to {captions.MAX_BYTES} bytes; set it to what most captions have."
            )

    @property
    def fields(self) -> tuple[Field, ...]:
        """Captions."""
        return (Field("caption", (self.caption_length,), "uint8", 256),)

    @nn.nowrap
    def read(self, batch: dict[str, Any]) -> Prompts:
        """See `Conditioner`."""
        return Prompts(batch["caption"])

    @nn.nowrap
    def null(self, given: Prompts) -> Prompts:
        """The negative prompt, which is empty by default, for every example."""
        empty = given.negative is None
        return given.replace(text=jnp.zeros_like(given.text) if empty else given.negative)

    @nn.nowrap
    def check(self, given: Any) -> None:
        """Raises ValueError for what is no prompt."""
        if not isinstance(given, Prompts):
            raise ValueError(
                "This model is conditioned on captions, not on classes; ask for texts such as "
                "'a red bird'."
            )
        (field,) = self.fields
        for rows in (given.text, given.negative):
            if rows is not None:
                field.check(np.asarray(rows))

    @nn.nowrap
    def written(self, texts: Sequence[str]) -> dict[str, UInt8[np.ndarray, "n T"]]:
        """See `ReadsText`."""
        rows = np.zeros((len(texts), self.caption_length), np.uint8)
        cut = set()
        for row, text in zip(rows, texts, strict=True):
            text = captions.clean(text, f"The prompt {text!r}")
            row[:] = captions.encode(text, self.caption_length)
            kept = captions.decode(row)
            if kept != text and text not in cut:
                cut.add(text)
                logging.warning(
                    "The prompt %r has %d bytes, of which this model reads %d: %r.",
                    text,
                    len(text.encode()),
                    len(kept.encode()),
                    kept,
                )
        return {"caption": rows}

    @nn.nowrap
    def steered(self, given: Prompts, texts: Sequence[str]) -> Prompts:
        """See `ReadsText`."""
        return given.replace(negative=self.written(texts)["caption"])

    @nn.compact
    def __call__(self, given: Prompts, keys: jax.Array | None = None) -> Condition:
        """See `Conditioner`."""
        text = given.text.astype(jnp.int32)
        if keys is not None:
            drop = jax.vmap(jax.random.uniform)(keys) < self.drop_rate
            text = jnp.where(drop[:, None], 0, text)
        # No text has the byte 0, so that it can mark the start.
        read = jnp.pad(text, ((0, 0), (1, 0)))
        there = (read != 0).at[:, 0].set(True)

        def embedding(name: str, size: int) -> jax.Array:
            init = nn.initializers.normal(init_std(self.width))
            boxed = nn.with_logical_partitioning(init, (None, "embed"))
            return self.param(name, boxed, (size, self.width), jnp.float32)

        def laid(x: jax.Array) -> jax.Array:
            # See `ClassNames`.
            return nn.with_logical_constraint(x, ("batch", "length", "act_embed"))

        x = jnp.take(embedding("byte_embedding", 256), read, axis=0)
        x = laid(x + embedding("byte_position", read.shape[1]))
        settings = BlockSettings(self.width, self.num_heads, self.depth, dtype=self.dtype)
        out_std = init_std(self.width) / math.sqrt(2 * self.depth)
        for i in range(self.depth):
            # Its queries come from the normalised x.
            attend = CrossAttention(settings, name=f"caption_attention_{i}")
            x = laid(x + attend(x, layer_norm(x), there))
            mlp = MLP(self.width, 4 * self.width, out_std, self.dtype, name=f"caption_mlp_{i}")
            x = laid(x + mlp(layer_norm(x)))
        tokens: Float[jax.Array, "B T+1 C"] = layer_norm(x)
        mean = jnp.einsum("bt,btc->bc", there / there.sum(-1, keepdims=True), tokens)
        std = init_std(self.width) / math.sqrt(self.width)
        vector = Linear(
            (self.width,), (self.width,), ("cond", "embed"), std, name="caption_vector"
        )(mean)
        return Condition(nn.with_logical_constraint(vector, ("batch", "act_embed")), tokens, there)

"""Conditioning on the names of the classes as text: bytes for cross-attention, and their mean."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from var_jax.fields import Field
from var_jax.transformer.block import MLP
from var_jax.transformer.condition import Condition
from var_jax.transformer.layers import init_std, layer_norm

#: The one token of the empty name, behind the 256 bytes.
_EMPTY = 256


class ClassNames(nn.Module):
    """A label is read as the UTF-8 bytes of its class' name.

    The tokens are the bytes' embeddings plus those of their places, passed through an MLP; so the
    mean of the tokens, which modulates the blocks, knows the order of the letters too. The blocks
    read the tokens with cross_attention. Asking for nothing is asking for the empty name, which is
    one learned token.

    Attributes:
      names: of the classes 0, 1, ...; label len(names) is the empty name.
      num_classes: how many the model has; as many as there are names.
      width: C.
      drop_rate: probability that a name is replaced by the empty one in training.
      max_length: places for bytes; 0 is as many as the longest name has.
    """

    names: tuple[str, ...]
    num_classes: int
    width: int
    drop_rate: float = 0.1
    max_length: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        longest = max((len(name.encode()) for name in self.names), default=0)
        if not all(self.names) or not self.names:
            raise ValueError(f"Every class needs a name that is not empty, got {self.names}.")
        if len(self.names) != self.num_classes:
            raise ValueError(
                f"There are {len(self.names)} names, but the model has {self.num_classes} "
                "classes; give one name for each class."
            )
        if 0 < self.max_length < longest:
            raise ValueError(
                f"max_length is {self.max_length}, but the longest name has {longest} bytes; set "
                "it to 0 or more than that."
            )

    @property
    def fields(self) -> tuple[Field, ...]:
        """Labels."""
        return (Field("label", ()),)

    @nn.nowrap
    def read(self, batch: dict[str, Any]) -> Int[jax.Array, " B"]:
        """See `Conditioner`."""
        return batch["label"]

    @nn.nowrap
    def null(self, given: Int[jax.Array, " B"]) -> Int[jax.Array, " B"]:
        """The empty name for every example."""
        return jnp.full_like(given, len(self.names))

    @nn.nowrap
    def check(self, given: Any) -> None:
        """Raises ValueError for a label without a name."""
        labels, count = np.asarray(given), len(self.names)
        if labels.size and not 0 <= labels.min() <= labels.max() <= count:
            raise ValueError(
                f"Labels must lie in 0..{count} ({count} is the empty name), got "
                f"{labels.min()}..{labels.max()}."
            )

    @nn.nowrap
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 [classes + 1, T] bytes of the names, the empty one last; bool, which are there."""
        written = [tuple(name.encode()) for name in self.names] + [(_EMPTY,)]
        length = self.max_length or max(map(len, written))
        bytes_ = np.zeros((len(written), length), np.int32)
        there = np.zeros((len(written), length), bool)
        for row, text in enumerate(written):
            bytes_[row, : len(text)], there[row, : len(text)] = text, True
        return bytes_, there

    @nn.compact
    def __call__(self, given: Int[jax.Array, " B"], keys: jax.Array | None = None) -> Condition:
        """See `Conditioner`."""
        if keys is not None:
            drop = jax.vmap(jax.random.uniform)(keys) < self.drop_rate
            given = jnp.where(drop, len(self.names), given)
        bytes_, there = (jnp.take(jnp.asarray(x), given, axis=0) for x in self.table())

        def embedding(name: str, size: int) -> jax.Array:
            init = nn.initializers.normal(init_std(self.width))
            boxed = nn.with_logical_partitioning(init, (None, "embed"))
            return self.param(name, boxed, (size, self.width), jnp.float32)

        embedded = jnp.take(embedding("byte_embedding", _EMPTY + 1), bytes_, axis=0)
        tokens = embedded + embedding("byte_position", bytes_.shape[1])
        # Free to cut the tokens along C, as the tables are, XLA swaps the examples of devices where
        # data, fsdp and tensor are all above 1.
        tokens = nn.with_logical_constraint(tokens, ("batch", "length", "act_embed"))
        out_std = init_std(self.width) / math.sqrt(2)
        mlp = MLP(self.width, 4 * self.width, out_std, name="byte_mlp")
        tokens: Float[jax.Array, "B T C"] = tokens + mlp(layer_norm(tokens))
        tokens = nn.with_logical_constraint(tokens, ("batch", "length", "act_embed"))
        weight = there / there.sum(-1, keepdims=True)
        vector: Float[jax.Array, "B C"] = jnp.einsum("bt,btc->bc", weight, tokens)
        vector = nn.with_logical_constraint(vector, ("batch", "act_embed"))
        return Condition(vector, tokens, there)

"""Conditioning on what a text encoder that does not train makes of a text (Infinity)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from var_jax.fields import Field
from var_jax.kernels.block_attention.reference import scaled_operands
from var_jax.transformer.attention import masked_attention
from var_jax.transformer.condition import Condition
from var_jax.transformer.layers import Linear, init_std, rms_norm


class TextEncoder(Protocol):
    """From texts to vectors of their tokens."""

    def init(self, key: jax.Array, dtype: jnp.dtype) -> Any:
        """Parameters in the boxes that hold their logical axis names; for their shapes."""

    def load(self, dtype: jnp.dtype) -> Any:
        """The parameters on the host."""

    def encode(
        self, params: Any, ids: Int[jax.Array, "B T"], lengths: Int[jax.Array, " B"]
    ) -> Float[jax.Array, "B T F"]:
        """Vectors of texts as numbers of their tokens, of which so many are there."""

    def __call__(
        self, texts: Sequence[str], max_length: int
    ) -> tuple[Float[np.ndarray, "n T F"], Int[np.ndarray, " n"]]:
        """Vectors of T = max_length tokens, zeros behind the last one, and how many there are.

        Raises:
          ValueError: what is no text.
        """


@flax.struct.dataclass
class Features:
    """What is asked for.

    Attributes:
      features: float32 [B, T, F]; None where the encoder has not read the texts yet.
      lengths: int32 [B], tokens that are there, one at least.
      asked: bool [B], False where nothing is asked for: learned vectors stand in the place of the
        tokens, as many of them.
      negative: features and lengths of what guidance steers away from; None is nothing.
      ids: int32 [B, T], the tokens that the encoder reads; None where there are features.
    """

    features: jax.Array | None
    lengths: jax.Array
    asked: jax.Array
    negative: tuple[jax.Array, jax.Array] | None = None
    ids: jax.Array | None = None


class TextFeatures(nn.Module):
    """The tokens of a text as an encoder sees them, normalised.

    In training with an encoder a batch holds texts as numbers of tokens, which the encoder reads in
    the step; what is asked for in drawing comes as features. An MLP makes the tokens that the
    model's blocks read with cross_attention, and attention of a single learned query the vector
    that modulates them.

    Attributes:
      width: C.
      feature_dim: F, channels of the encoder.
      max_length: T, tokens of a text; longer ones are cut.
      drop_rate: probability that a text is replaced by learned vectors in training.
      pool_head_dim: channels of a head of the encoder, of which the query has as many.
      encoder: reads texts; None where batches hold features.
      dtype: type of the computation; parameters are float32.
    """

    width: int
    feature_dim: int
    max_length: int = 512
    drop_rate: float = 0.1
    pool_head_dim: int = 128
    encoder: TextEncoder | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        heads, rest = divmod(self.feature_dim, self.pool_head_dim)
        if rest or self.width % max(heads, 1):
            raise ValueError(
                f"A text encoder of {self.feature_dim} channels makes {heads} heads of "
                f"{self.pool_head_dim}, which do not divide it and the width {self.width}; change "
                "model.conditioner.pool_head_dim."
            )

    @property
    def fields(self) -> tuple[Field, ...]:
        """Texts as numbers of tokens, or features; and how many tokens there are."""
        length = Field("text_length", ())
        if self.encoder is None:
            return self._features, length
        return Field("text_ids", (self.max_length,)), length

    @property
    def _features(self) -> Field:
        return Field("text_features", (self.max_length, self.feature_dim), "float32")

    @nn.nowrap
    def read(self, batch: dict[str, Any]) -> Features:
        """See `Conditioner`."""
        lengths = batch["text_length"]
        features, ids = batch.get("text_features"), batch.get("text_ids")
        return Features(features, lengths, jnp.ones(lengths.shape, bool), ids=ids)

    @nn.nowrap
    def encoded(self, params: Any, given: Features) -> Features:
        """See `ReadsEncoded`."""
        if given.ids is None:
            return given
        features = self.encoder.encode(params, given.ids, given.lengths)
        return given.replace(features=jax.lax.stop_gradient(features), ids=None)

    @nn.nowrap
    def null(self, given: Features) -> Features:
        """Nothing, or the negative prompt, for every example."""
        if given.negative is None:
            return given.replace(asked=jnp.zeros_like(given.asked))
        features, lengths = given.negative
        return given.replace(features=features, lengths=lengths)

    @nn.nowrap
    def check(self, given: Any) -> None:
        """Raises ValueError for what are no features."""
        if not isinstance(given, Features):
            raise ValueError(
                "This model is conditioned on texts, not on classes; ask for texts such as "
                "'a red bird'."
            )
        self._features.check(np.asarray(given.features))

    @nn.nowrap
    def written(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """See `ReadsText`."""
        if self.encoder is None:
            raise ValueError(
                "This model reads texts through a text encoder, and none is named; give its folder "
                "as text_encoder to var_jax.load, or as config.model.conditioner.encoder."
            )
        features, lengths = self.encoder(texts, self.max_length)
        if features.shape[-1] != self.feature_dim:
            raise ValueError(
                f"The text encoder has {features.shape[-1]} channels, but the model reads "
                f"{self.feature_dim}; give the encoder that it was trained with."
            )
        return {"text_features": features, "text_length": lengths}

    @nn.nowrap
    def steered(self, given: Features, texts: Sequence[str]) -> Features:
        """See `ReadsText`."""
        fields = self.written(texts)
        return given.replace(negative=(fields["text_features"], fields["text_length"]))

    @nn.compact
    def __call__(self, given: Features, keys: jax.Array | None = None) -> Condition:
        """See `Conditioner`."""
        asked = given.asked
        if keys is not None:
            asked = asked & (jax.vmap(jax.random.uniform)(keys) >= self.drop_rate)
        std, size, width = init_std(self.width), self.feature_dim, self.width

        def param(name: str, init: Any, axes: tuple[str | None, ...], *shape: int) -> jax.Array:
            boxed = nn.with_logical_partitioning(init, axes)
            return self.param(name, boxed, shape, jnp.float32)

        def linear(name: str, sizes: tuple[int, int], use_bias: bool = True) -> Linear:
            axes = ("cond", "embed")
            return Linear(sizes[:1], sizes[1:], axes, std, self.dtype, use_bias, name=name)

        nothing = param(
            "null_features", nn.initializers.normal(size**-0.5), (None, None), self.max_length, size
        )
        gain = param("feature_norm", nn.initializers.ones_init(), (None,), size)
        features = given.features
        if features is None and self.is_initializing():
            features = nothing[None]
        if features is None:
            raise ValueError(
                "This model reads what a text encoder makes of its captions, and this objective or "
                "evaluation asks none; train with the likelihood, or leave it out."
            )
        x = jnp.where(asked[:, None, None], features.astype(jnp.float32), nothing)
        x = rms_norm(x) * gain
        there = jnp.arange(self.max_length) < given.lengths[:, None]

        heads = size // self.pool_head_dim
        query = param(
            "pool_query", nn.initializers.normal(std), (None, None), heads, width // heads
        )
        k = linear("pool_key", (size, width), use_bias=False)(x)
        v = linear("pool_value", (size, width))(x)
        k, v = (t.reshape(*t.shape[:2], heads, width // heads) for t in (k, v))
        query = jnp.broadcast_to(query, (len(x), 1, *query.shape))
        q, k = scaled_operands(query, k, (width // heads) ** -0.5, None)
        pooled = masked_attention(q, k, v, there[:, None, None]).reshape(len(x), width)
        vector: Float[jax.Array, "B C"] = linear("pool_out", (width, width))(pooled)

        tokens = nn.gelu(linear("tokens_up", (size, width))(x))
        tokens: Float[jax.Array, "B T C"] = linear("tokens_out", (width, width))(tokens)
        return Condition(
            nn.with_logical_constraint(vector.astype(jnp.float32), ("batch", "act_embed")),
            nn.with_logical_constraint(tokens, ("batch", "length", "act_embed")),
            there,
        )

"""What generation is conditioned on: class labels, or anything else that becomes a `Condition`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from var_jax.fields import Field
from var_jax.transformer.layers import init_std


@flax.struct.dataclass
class Condition:
    """What the blocks read.

    Attributes:
      vector: float32 [B, C], modulates the blocks; or [B, n, C], one for each token, or each run of
        tokens.
      tokens: float32 [B, T, C], read through cross-attention; None for none.
      mask: bool [B, T], which of the tokens are there; None is all.
      runs: how many tokens share each vector; () where the vectors are of single tokens or of all.
      plain: so many runs come before those of the vectors, and nothing modulates or gates them.
    """

    vector: jax.Array
    tokens: jax.Array | None = None
    mask: jax.Array | None = None
    runs: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    plain: int = flax.struct.field(pytree_node=False, default=0)


class Conditioner(Protocol):
    """A flax module from what is asked for to a `Condition`.

    What is asked for ('given') is a pytree with the examples on axis 0, such as labels int32 [B].
    """

    @property
    def fields(self) -> tuple[Field, ...]:
        """What of a batch it reads."""

    def read(self, batch: dict[str, Any]) -> Any:
        """What is asked for, from the fields of a batch."""

    def null(self, given: Any) -> Any:
        """The same examples, with nothing asked for: the unconditional half of guidance."""

    def check(self, given: Any) -> None:
        """Raises ValueError for what cannot be asked for (host arrays)."""

    def __call__(self, given: Any, keys: jax.Array | None = None) -> Condition:
        """The condition.

        Args:
          given: what is asked for.
          keys: one PRNG key for each example [B], for dropout in training; None in evaluation.
        """


@runtime_checkable
class ReadsText(Conditioner, Protocol):
    """A conditioner that is asked in words."""

    def written(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The fields that it reads, of texts; what does not fit is cut, and a warning says so.

        Raises:
          ValueError: what is no text.
        """

    def steered(self, given: Any, texts: Sequence[str]) -> Any:
        """What is asked for, with texts as the unconditional half of guidance."""


@runtime_checkable
class ReadsEncoded(Conditioner, Protocol):
    """A conditioner that reads what an encoder, which does not train, makes of what is asked."""

    #: None where a batch holds what it makes.
    encoder: Any

    def encoded(self, params: Any, given: Any) -> Any:
        """What is asked for, with what the encoder of such parameters makes of it."""


def conditioner_of(transformer: Any) -> Conditioner:
    """The transformer's own conditioner, without parameters, or one of class labels."""
    made = ClassLabels(
        transformer.num_classes, transformer.width, transformer.class_drop_rate, parent=None
    )
    return transformer.conditioner or made


class ClassLabels(nn.Module):
    """An embedding for each class, and one for 'no class' (VAR, section 3.2).

    Attributes:
      num_classes: labels are 0..num_classes - 1; label num_classes is 'no class'.
      width: C.
      drop_rate: probability that a label is replaced by 'no class' in training.
    """

    num_classes: int
    width: int
    drop_rate: float = 0.1

    def setup(self) -> None:
        self.class_embedding = self.param(
            "class_embedding",
            nn.with_logical_partitioning(
                nn.initializers.normal(init_std(self.width)), ("class", "embed")
            ),
            (self.num_classes + 1, self.width),
            jnp.float32,
        )

    @property
    def fields(self) -> tuple[Field, ...]:
        return (Field("label", ()),)

    @nn.nowrap
    def read(self, batch: dict[str, Any]) -> Int[jax.Array, " B"]:
        return batch["label"]

    @nn.nowrap
    def null(self, given: Int[jax.Array, " B"]) -> Int[jax.Array, " B"]:
        return jnp.full_like(given, self.num_classes)

    @nn.nowrap
    def check(self, given: Any) -> None:
        labels = np.asarray(given)
        if labels.size and not 0 <= labels.min() <= labels.max() <= self.num_classes:
            raise ValueError(
                f"Labels must lie in 0..{self.num_classes} ({self.num_classes} is 'no class'), "
                f"got {labels.min()}..{labels.max()}."
            )

    def __call__(self, given: Int[jax.Array, " B"], keys: jax.Array | None = None) -> Condition:
        if keys is not None:
            drop = jax.vmap(jax.random.uniform)(keys) < self.drop_rate
            given = jnp.where(drop, self.num_classes, given)
        vector: Float[jax.Array, "B C"] = jnp.take(self.class_embedding, given, axis=0)
        return Condition(vector)

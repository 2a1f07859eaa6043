"""A layer between attention and MLP that hands a state from token to token, and so from level to
level."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import flax.linen as nn


class Mixer(Protocol):
    """A hashable description of such a layer.

    The layer is a module, called with tokens [B, n, C] and the state after the token before them
    (None before the first), which returns as many outputs and the state after the last. The state
    is a pytree whose arrays have the batch on axis 0. Tokens come in the order of the sequence, so
    that a pass over all levels and one for each level give the same.

    Attributes:
      float32_params: names of parameters, or of modules with all of theirs, that the layer uses in
        float32, whatever it computes in.
    """

    float32_params: ClassVar[tuple[str, ...]]

    def layer(self, name: str) -> nn.Module:
        """The layer of one block, under the name of its parameters."""

    def flops(self, tokens: int) -> float:
        """Multiplications and additions of its matrix products over so many tokens."""


#: What `Mixer.layer` calls a state; a pytree.
MixerState = Any

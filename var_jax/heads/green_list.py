"""A watermark in the codes: a keyed half of the vocabulary is drawn more often (LBW).

At each level a list of "green" codes follows from a secret key. Logits of green codes grow by
delta, so that an image holds more of them than chance would give; whoever has the key counts them
in the tokens of an image and needs no model for it, only the tokenizer.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Float

from var_jax.pyramid import ScalePyramid


@dataclasses.dataclass(frozen=True)
class GreenList:
    """A logit processor that prefers green codes.

    Attributes:
      key: the secret, 0 or more; whoever reads the config reads it.
      delta: added to the logits of green codes; 0 leaves the draw as it is to the bit.
      fraction: of the vocabulary that is green.
      first_level: levels before it are left alone: a coarse code changes all of the image.
    """

    key: int
    delta: float = 2.0
    fraction: float = 0.5
    first_level: int = 0

    def __post_init__(self) -> None:
        if self.key < 0:
            raise ValueError(f"The key of a green list must be 0 or more, got {self.key}.")
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"The green fraction must lie between 0 and 1, got {self.fraction}; 0.5 is half of "
                "the vocabulary."
            )

    def green(self, level: int, vocab_size: int) -> np.ndarray:
        """bool [V]: which codes of a level are green; fraction * V of them, rounded."""
        # Raw words and a stable sort: the same for every version of NumPy.
        seed = np.random.SeedSequence((self.key, level, vocab_size))
        words = np.random.Philox(key=seed.generate_state(2, np.uint64)).random_raw(vocab_size)
        found = np.zeros(vocab_size, bool)
        found[np.argsort(words, kind="stable")[: round(self.fraction * vocab_size)]] = True
        return found

    def __call__(
        self, logits: Float[jax.Array, "B n V"], level: int, pyramid: ScalePyramid
    ) -> Float[jax.Array, "B n V"]:
        """See `LogitProcessor`."""
        if level < self.first_level:
            return logits
        return logits + np.float32(self.delta) * self.green(level, logits.shape[-1])

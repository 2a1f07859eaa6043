"""A watermark that costs little to look at: a code gives way to the one most like it (IndexMark).

The codes are paired by their likeness, and a secret key makes one of each pair green, the other
red. Where a red code is drawn with no more than a threshold's confidence over its partner, the
partner is taken (arXiv 2505.14673). Whether it is follows from the two probabilities alone, so that
nothing has to wait for the draw: the red code's probability moves to the green one beforehand.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from var_jax import paths
from var_jax.pyramid import ScalePyramid


def red_to_green(pairs: Int[np.ndarray, "P 2"], key: int) -> Int[np.ndarray, "P 2"]:
    """The pairs with the red code first, by a fair coin for each from the key."""
    # Raw words: the same for every version of NumPy.
    seed = np.random.SeedSequence((key, len(pairs))).generate_state(2, np.uint64)
    swap = np.random.Philox(key=seed).random_raw(len(pairs)) >> np.uint64(63) == 1
    return np.where(swap[:, None], pairs[:, ::-1], pairs)


def partners(pairs: Int[np.ndarray, "P 2"], vocab_size: int) -> Int[np.ndarray, " V"]:
    """Each code's partner; itself where it has none."""
    found = np.arange(vocab_size)
    found[pairs[:, 0]], found[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    return found


def log_ratios(
    logits: Float[jax.Array, "*B V"], partner: Int[np.ndarray, " V"]
) -> Float[jax.Array, "*B V"]:
    """log10 p(code) / p(its partner), no less than -9; the partner of none has probability 0."""
    p = jax.nn.softmax(logits, axis=-1)
    alone = partner == np.arange(len(partner))
    return jnp.log10(jnp.maximum(p / (jnp.where(alone, 0.0, p[..., partner]) + 1e-9), 1e-9))


def leaving(
    logits: Float[jax.Array, "*B V"], pairs: Int[np.ndarray, "P 2"], threshold: float
) -> Bool[jax.Array, "*B V"]:
    """Which codes give way to their partners: red ones whose log ratio is at most a threshold.

    Args:
      logits: of the draw.
      pairs: of a red and a green code.
      threshold: of `log_ratios`.
    """
    red = np.zeros(logits.shape[-1], bool)
    red[pairs[:, 0]] = True
    near = log_ratios(logits, partners(pairs, logits.shape[-1])) <= threshold
    return jnp.logical_and(red, near)


@dataclasses.dataclass(frozen=True)
class IndexMark:
    """A logit processor that has green codes drawn in place of red ones that are like them.

    The public code replaces a share of all codes of a batch; here the threshold is given, so that
    an image does not hang on others.

    Attributes:
      pairs: npz file of `launch.pair_codes`, for the codebook of the model's tokenizer.
      key: the secret, 0 or more; whoever reads the config reads it.
      threshold: of log10 p(red) / p(green): red codes up to it give way. 1 replaces red codes that
        are up to ten times as likely; -inf (or -10) is no mark at all.
      first_level: levels before it are left alone: a coarse code changes all of the image.
    """

    pairs: str
    key: int
    threshold: float = 1.0
    first_level: int = 0

    def __post_init__(self) -> None:
        if self.key < 0:
            raise ValueError(f"The key of a watermark must be 0 or more, got {self.key}.")
        self._red_to_green  # noqa: B018  A file that is not there is told before anything starts.

    @functools.cached_property
    def _red_to_green(self) -> tuple[Int[np.ndarray, "P 2"], int]:
        with paths.resolve(self.pairs).open("rb") as file, np.load(file) as found:
            if not {"pairs", "vocab_size"} <= set(found):
                raise ValueError(
                    f"{self.pairs} has no pairs of codes; give a file that launch.pair_codes has "
                    "written."
                )
            return red_to_green(found["pairs"], self.key), int(found["vocab_size"])

    def green(self, level: int, vocab_size: int) -> Bool[np.ndarray, " V"]:
        """Which codes are green, the same at each level; see `Watermark`.

        Raises:
          ValueError: the pairs are of another codebook.
        """
        pairs, size = self._red_to_green
        if size != vocab_size:
            raise ValueError(
                f"{self.pairs} pairs {size} codes, but the model has {vocab_size}; run "
                "launch.pair_codes on its tokenizer."
            )
        found = np.zeros(vocab_size, bool)
        found[pairs[:, 1]] = True
        return found

    def __call__(
        self, logits: Float[jax.Array, "B n V"], level: int, pyramid: ScalePyramid
    ) -> Float[jax.Array, "B n V"]:
        """See `LogitProcessor`."""
        if level < self.first_level:
            return logits
        self.green(level, logits.shape[-1])  # Raises for another codebook.
        pairs = self._red_to_green[0]
        partner, leaves = partners(pairs, logits.shape[-1]), leaving(logits, pairs, self.threshold)
        both = jnp.logaddexp(logits, logits[..., partner])
        return jnp.where(leaves, -jnp.inf, jnp.where(leaves[..., partner], both, logits))

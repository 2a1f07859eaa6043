"""VAR's residual codes, with errors in training such as a generator makes (RobusTok).

RobusTok perturbs the codes of a tokenizer of one level while it trains, so that its decoder puts
up with tokens that are nearly right. On a pyramid the levels that follow are of what the perturbed
levels lack, so that a lesson made so also teaches a transformer to correct itself, as Infinity's
bit flips do.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.codecs.base import Lesson, Quantized, checked_features, prefix_of
from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.fields import Field
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.perturbation import Perturbation, Replacements


class PerturbedVQ(ResidualVQ):
    """`ResidualVQ`, whose codes are perturbed in training.

    It has the same parameters, fields and methods, and without keys it is the plain codec: a
    derived class, unlike other codecs, since nothing but teaching differs.

    Attributes:
      example_rate, token_rate, num_nearest: in training a tokenizer, see `Perturbation`.
      lesson_rate: as example_rate, of what a transformer is taught. Above 0 lessons are made from
        features, which a token cache then holds in place of codes.
    """

    example_rate: float = 0.1
    token_rate: float = 1.0
    num_nearest: int = 100
    lesson_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.perturbation(self.example_rate)  # Raises if it cannot be.
        self.perturbation(self.lesson_rate)
        if self.num_nearest > self.vocab_size:
            raise ValueError(
                f"num_nearest is {self.num_nearest}, but there are {self.vocab_size} codes."
            )

    @nn.nowrap
    def perturbation(self, example_rate: float) -> Perturbation:
        """At a rate of examples."""
        return Perturbation(example_rate, self.token_rate, self.num_nearest)

    @property
    def source(self) -> Field:
        """The codes of all levels; or the features, where lessons are perturbed."""
        if self.lesson_rate:
            return Field("features", (*self.pyramid.grid, self.code_dim), "float16")
        return super().source

    def read(self, features: Float[jax.Array, "B h w C"]) -> jax.Array:
        """Features -> what `source` describes."""
        if self.lesson_rate:
            return checked_features(self, features).astype(jnp.float16)
        return super().read(features)

    def lesson(
        self,
        source: jax.Array,
        pyramid: ScalePyramid | None = None,
        keys: jax.Array | None = None,
    ) -> Lesson:
        """Inputs and targets; with keys and a `lesson_rate` of perturbed codes, see `corrected`."""
        if not self.lesson_rate:
            return super().lesson(source, pyramid)
        drawn = None
        if keys is not None:
            drawn = self.perturbation(self.lesson_rate).draw(keys, self.pyramid.length)
        return self.corrected(source, drawn, pyramid)

    def corrected(
        self,
        features: Float[jax.Array, "B h w C"],
        drawn: Replacements | None,
        pyramid: ScalePyramid | None = None,
    ) -> Lesson:
        """The lesson of features some of whose codes are replaced: inputs are of the replaced ones,
        targets the nearest codes of what these lack.

        Args:
          features: of the whole pyramid.
          drawn: replacements of all its tokens; None is none.
          pyramid: a prefix of the codec's own.
        """
        f, pyramid = checked_features(self, features), prefix_of(self, pyramid)
        carry, targets = None, []
        inputs = [jnp.zeros((f.shape[0], pyramid.sizes[0], self.code_dim), jnp.float32)]
        for level in range(pyramid.num_levels):
            wanted, chosen = self._choose(f if carry is None else f - carry, level)
            targets.append(chosen)
            used = chosen if drawn is None else self._replaced(wanted, level, drawn)
            carry, following = self.advance(carry, level, used, pyramid)
            if following is not None:
                inputs.append(following)
        return Lesson(jnp.concatenate(inputs, 1), jnp.concatenate(targets, 1))

    def quantize(
        self,
        features: jax.Array,
        exact: bool | jax.Array = False,
        keys: jax.Array | None = None,
    ) -> Quantized:
        """As `ResidualVQ.quantize`; with keys the decoder gets perturbed codes.

        The gradient stays straight-through. Loss, targets and the codebook's gradient are of the
        nearest codes of what the perturbed levels before lack.
        """
        if keys is None or not self.example_rate:
            return super().quantize(features, exact)
        drawn = self.perturbation(self.example_rate).draw(keys, self.pyramid.length)
        perturbed = self.quantize_replaced(features, drawn)
        if exact is False:
            return perturbed
        ideal = super().quantize(features, True)
        return jax.tree.map(lambda a, b: jnp.where(exact, a, b), ideal, perturbed)

    def quantize_replaced(self, features: jax.Array, drawn: Replacements) -> Quantized:
        """`quantize` with the replacements of all tokens."""
        f = checked_features(self, features)
        fixed = jax.lax.stop_gradient(f)
        f_hat, loss, targets, vectors = jnp.zeros_like(f), 0.0, [], []
        for level in range(self.pyramid.num_levels):
            rest = jax.lax.stop_gradient(fixed - f_hat)
            wanted, chosen = self._choose(rest, level)
            targets.append(chosen)
            vectors.append(wanted)
            code = self._contribution(level, self.codebook[chosen])
            right = f_hat + code
            loss += self.beta * jnp.mean(jnp.square(f - jax.lax.stop_gradient(right)))
            loss += jnp.mean(jnp.square(right - fixed))
            # The replaced codes' values with the gradient of the right ones.
            replaced = self.codebook[self._replaced(wanted, level, drawn)]
            used = self._contribution(level, replaced)
            f_hat = right + jax.lax.stop_gradient(used - code)
        return Quantized(
            features=f + jax.lax.stop_gradient(f_hat - f),
            loss=loss / self.pyramid.num_levels,
            targets=jnp.concatenate(targets, 1),
            vectors=jnp.concatenate(vectors, 1),
        )

    def _replaced(self, wanted: jax.Array, level: int, drawn: Replacements) -> jax.Array:
        """The codes of a level's vectors, int [B, n], of which some are not the nearest ones."""
        part = self.pyramid.level(level)
        return self.perturbation(1.0).codes(
            wanted,
            jax.lax.stop_gradient(self.codebook),
            jax.tree.map(lambda x: x[:, part], drawn),
            self.normalize_codes,
        )

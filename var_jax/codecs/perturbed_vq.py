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
from jaxtyping import Float, Int

from var_jax.codecs.base import Lesson, Quantized, checked_features, prefix_of
from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.fields import Field
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.perturbation import Perturbation, Replacements
from var_jax.resample import resize


class PerturbedVQ(nn.Module):
    """`ResidualVQ`, whose codes are perturbed in training; its parameters are the same.

    Attributes:
      pyramid, vocab_size, code_dim, phi_sharing, phi_ratio, normalize_codes, beta: see
        `ResidualVQ`.
      example_rate, token_rate, num_nearest: in training a tokenizer, see `Perturbation`.
      lesson_rate: as example_rate, of what a transformer is taught. Above 0 lessons are made from
        features, which a token cache then holds in place of codes.
    """

    pyramid: ScalePyramid
    vocab_size: int
    code_dim: int
    phi_sharing: int = ResidualVQ.phi_sharing
    phi_ratio: float = ResidualVQ.phi_ratio
    normalize_codes: bool = ResidualVQ.normalize_codes
    beta: float = ResidualVQ.beta
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
    def feature_dim(self) -> int:
        """Channels of the features."""
        return self.code_dim

    @property
    def encoded_dim(self) -> int:
        """The same."""
        return self.code_dim

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.vocab_size

    @property
    def target(self) -> Field:
        """A code."""
        return Field("tokens", (), num_values=self.vocab_size)

    @property
    def source(self) -> Field:
        """The codes of all levels; or the features, where lessons are perturbed."""
        if self.lesson_rate:
            return Field("features", (*self.pyramid.grid, self.code_dim), "float16")
        return Field("tokens", (self.pyramid.length,), num_values=self.vocab_size)

    def setup(self) -> None:
        self.plain = ResidualVQ(
            self.pyramid,
            self.vocab_size,
            self.code_dim,
            self.phi_sharing,
            self.phi_ratio,
            self.normalize_codes,
            self.beta,
        )
        nn.share_scope(self, self.plain)

    def encode(self, features: Float[jax.Array, "B h w C"]) -> Int[jax.Array, "B L"]:
        return self.plain.encode(features)

    def nearest(
        self,
        features: jax.Array,
        carry: jax.Array | None,
        level: int,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        return self.plain.nearest(features, carry, level, weights)

    def read(self, features: Float[jax.Array, "B h w C"]) -> jax.Array:
        """Features -> what `source` describes."""
        if self.lesson_rate:
            return checked_features(self, features).astype(jnp.float16)
        return self.encode(features)

    def lesson(
        self,
        source: jax.Array,
        pyramid: ScalePyramid | None = None,
        keys: jax.Array | None = None,
    ) -> Lesson:
        """Inputs and targets; with keys and a `lesson_rate` of perturbed codes, see `corrected`."""
        if not self.lesson_rate:
            return self.plain.lesson(source, pyramid)
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
            targets.append(self.nearest(f, carry, level))
            used = targets[-1] if drawn is None else self._replaced(f, carry, level, drawn)
            carry, following = self.advance(carry, level, used, pyramid)
            if following is not None:
                inputs.append(following)
        return Lesson(jnp.concatenate(inputs, 1), jnp.concatenate(targets, 1))

    def advance(
        self,
        carry: jax.Array | None,
        level: int,
        target: jax.Array,
        pyramid: ScalePyramid | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        return self.plain.advance(carry, level, target, pyramid)

    def finish(self, carry: jax.Array) -> Float[jax.Array, "B h w C"]:
        return self.plain.finish(carry)

    def decode(self, tokens: jax.Array) -> Float[jax.Array, "B h w C"]:
        return self.plain.decode(tokens)

    def features_by_level(self, tokens: jax.Array) -> list[jax.Array]:
        return self.plain.features_by_level(tokens)

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
            return self.plain.quantize(features, exact)
        drawn = self.perturbation(self.example_rate).draw(keys, self.pyramid.length)
        perturbed = self.quantize_replaced(features, drawn)
        if exact is False:
            return perturbed
        ideal = self.plain.quantize(features, True)
        return jax.tree.map(lambda a, b: jnp.where(exact, a, b), ideal, perturbed)

    def quantize_replaced(self, features: jax.Array, drawn: Replacements) -> Quantized:
        """`quantize` with the replacements of all tokens."""
        f = checked_features(self, features)
        fixed = jax.lax.stop_gradient(f)
        f_hat, loss, targets, vectors = jnp.zeros_like(f), 0.0, [], []
        for level, shape in enumerate(self.pyramid.shapes):
            rest = jax.lax.stop_gradient(fixed - f_hat)
            wanted = resize(rest, shape, "area").reshape(f.shape[0], -1, self.code_dim)
            targets.append(self.nearest(rest, None, level))
            vectors.append(wanted)
            code = self.advance(None, level, targets[-1])[0]
            right = f_hat + code
            loss += self.beta * jnp.mean(jnp.square(f - jax.lax.stop_gradient(right)))
            loss += jnp.mean(jnp.square(right - fixed))
            # The replaced codes' values with the gradient of the right ones.
            used = self.advance(None, level, self._replaced(rest, None, level, drawn))[0]
            f_hat = right + jax.lax.stop_gradient(used - code)
        return Quantized(
            features=f + jax.lax.stop_gradient(f_hat - f),
            loss=loss / self.pyramid.num_levels,
            targets=jnp.concatenate(targets, 1),
            vectors=jnp.concatenate(vectors, 1),
        )

    def _replaced(
        self, features: jax.Array, carry: jax.Array | None, level: int, drawn: Replacements
    ) -> jax.Array:
        """The codes of a level, int [B, n], of which some are not the nearest ones."""
        rest = features if carry is None else features - carry
        vectors = resize(rest, self.pyramid.shapes[level], "area")
        vectors = vectors.reshape(rest.shape[0], -1, self.code_dim)
        part = self.pyramid.level(level)
        return self.perturbation(1.0).codes(
            vectors,
            jax.lax.stop_gradient(self.plain.quantizer.codebook),
            jax.tree.map(lambda x: x[:, part], drawn),
            self.normalize_codes,
        )

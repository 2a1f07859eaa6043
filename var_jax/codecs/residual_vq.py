"""Multi-scale residual vector quantisation (VAR, arXiv 2404.02905, algorithms 1 and 2)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from var_jax.codecs.base import Lesson, Quantized, checked_features, prefix_of
from var_jax.fields import Field
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.nearest import Codebook
from var_jax.resample import apply_matrices, resize, resize_matrix, weighted_mean

# A code is chosen by small differences of sums, so nothing here may run in bfloat16.
_HIGHEST = jax.lax.Precision.HIGHEST


@functools.cache
def phi_indices(num_levels: int, phi_sharing: int) -> tuple[int, ...]:
    """Which phi convolution each level uses.

    The convolutions stand at evenly spaced ticks in (0, 1), and level k takes the one whose tick
    is nearest to k / (K - 1). Ten levels and four convolutions give exact ties, which the
    released weights resolve as float64 arithmetic does; the table is therefore made of Python
    and NumPy floats and never on a device.

    Args:
      num_levels: K >= 1.
      phi_sharing: 0 for one convolution a level, n >= 1 for n shared ones.

    Returns:
      K indices. With one convolution a level they are not always 0 .. K - 1: that case goes by
      the nearest tick too.
    """
    n = phi_sharing or num_levels
    margin = 1 / 3 / n if n == 4 else 1 / 2 / n
    ticks = np.linspace(margin, 1 - margin, n)
    if n == 1:
        return (0,) * num_levels
    progress = [k / (num_levels - 1) if num_levels > 1 else 0.0 for k in range(num_levels)]
    return tuple(int(np.argmin(np.abs(ticks - p))) for p in progress)


@struct.dataclass
class LevelTables:
    """What a loop over the levels before the last needs of each, all of one shape.

    The matrices are those of `resize`, filled up with zeros to the largest level, H by W. So a
    level's tokens stand in the upper left corner, and what fills the other cells does not count.

    Attributes:
      tokens: int32 [K - 1, H, W], where in L each cell's token is; 0 in cells without one.
      up: float32 [K - 1, h, H] and [K - 1, w, W], from the level to the grid.
      down: float32 [K - 1, H, h] and [K - 1, W, w], from the grid to the next level.
    """

    tokens: np.ndarray
    up: tuple[np.ndarray, np.ndarray]
    down: tuple[np.ndarray, np.ndarray]


@functools.cache
def level_tables(pyramid: ScalePyramid, down: str, up: str) -> LevelTables:
    """The tables of a pyramid; down and up are methods of `resize`."""
    count, largest = pyramid.num_levels - 1, np.max(pyramid.shapes, 0)
    sizes = list(zip(pyramid.grid, largest, strict=True))
    tokens = np.zeros((count, *largest), np.int32)
    to_grid = tuple(np.zeros((count, n, m), np.float32) for n, m in sizes)
    to_next = tuple(np.zeros((count, m, n), np.float32) for n, m in sizes)
    for k in range(count):
        shape, following = pyramid.shapes[k : k + 2]
        part = pyramid.level(k)
        tokens[k, : shape[0], : shape[1]] = np.arange(part.start, part.stop).reshape(shape)
        for axis, n in enumerate(pyramid.grid):
            to_grid[axis][k, :, : shape[axis]] = resize_matrix(up, shape[axis], n)
            to_next[axis][k, : following[axis]] = resize_matrix(down, n, following[axis])
    return LevelTables(tokens, to_grid, to_next)


def _identity_kernels(key, shape, dtype=jnp.float32):
    """Convolution kernels [n, 3, 3, C, C] that copy their input."""
    del key
    return jnp.zeros(shape, dtype).at[:, shape[1] // 2, shape[2] // 2].set(jnp.eye(shape[-1]))


class ResidualVQ(nn.Module):
    """Codes of all levels add up to the feature map; one codebook serves all levels.

    Level k holds the nearest codes of the downsampled residual. Its codes, upsampled and passed
    through phi, are added to f_hat and taken from the residual. At the last level, whose shape is
    the feature grid, nothing is resized. All of it is float32.
    phi(h) is (1 - phi_ratio) * h + phi_ratio * conv3x3(h) and starts as the identity.

    Attributes:
      pyramid: level shapes; the last one is the grid of the features.
      vocab_size: V, number of codes.
      code_dim: C, channels of the features and of a code.
      phi_sharing: number of phi convolutions that the levels share (the released weights: 4);
        0 for one for each level.
      phi_ratio: weight of the convolution inside phi; 0 for no phi at all.
      normalize_codes: choose codes by direction. What is looked up and added is the code as it
        stands in the codebook, not its direction, as in the official implementation.
      beta: weight of the commitment term in the loss.
      down, up: how a level is brought from the grid and to it, see `resize`. With 'cosine' for
        both, levels are bands of frequencies: one of n x n tokens holds n x n cosines.
    """

    pyramid: ScalePyramid
    vocab_size: int
    code_dim: int
    phi_sharing: int = 4
    phi_ratio: float = 0.5
    normalize_codes: bool = False
    beta: float = 0.25
    down: str = "area"
    up: str = "bicubic"

    @property
    def feature_dim(self) -> int:
        """Channels of the features."""
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
        """The codes of all levels: they say all that the transformer reads."""
        return Field("tokens", (self.pyramid.length,), num_values=self.vocab_size)

    def setup(self) -> None:
        if self.phi_sharing < 0:
            raise ValueError(f"phi_sharing must be 0 or more, got {self.phi_sharing}.")
        if not 0 <= self.phi_ratio <= 1:
            raise ValueError(f"phi_ratio must be in [0, 1], got {self.phi_ratio}.")
        for method in (self.down, self.up):
            resize_matrix(method, 1, 1)  # Raises for an unknown one.
        self.quantizer = Codebook(self.vocab_size, self.code_dim, self.normalize_codes)
        nn.share_scope(self, self.quantizer)
        self.codebook = self.quantizer.codebook
        if self.phi_ratio:
            # All of them exist even if the levels are too few to use each one.
            n, c = self.phi_sharing or self.pyramid.num_levels, self.code_dim
            self.phi_kernel = self.param(
                "phi_kernel",
                nn.with_logical_partitioning(_identity_kernels, (None,) * 5),
                (n, 3, 3, c, c),
                jnp.float32,
            )
            self.phi_bias = self.param(
                "phi_bias",
                nn.with_logical_partitioning(nn.initializers.zeros, (None, None)),
                (n, c),
                jnp.float32,
            )

    def encode(self, features: jax.Array) -> jax.Array:
        """Features float [B, h, w, C] -> tokens int32 [B, L]."""
        f = checked_features(self, features)
        f_hat, tokens = jnp.zeros_like(f), []
        for k in range(self.pyramid.num_levels):
            _, chosen = self._choose(f - f_hat, k)
            f_hat = f_hat + self._contribution(k, self.codebook[chosen])
            tokens.append(chosen)
        return jnp.concatenate(tokens, 1)

    def nearest(
        self,
        features: jax.Array,
        carry: jax.Array | None,
        level: int,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens int32 [B, n_k] of what is left of the features; see `Codec`."""
        f = checked_features(self, features)
        return self._choose(f if carry is None else f - carry, level, weights)[1]

    def read(self, features: jax.Array) -> jax.Array:
        """Features float [B, h, w, C] -> tokens int32 [B, L]."""
        return self.encode(features)

    def lesson(
        self,
        source: jax.Array,
        pyramid: ScalePyramid | None = None,
        keys: jax.Array | None = None,
    ) -> Lesson:
        """Inputs and targets of tokens int32 [B, L]; nothing is drawn.

        Raises:
          ValueError: the pyramid is no prefix of the codec's own, on whose residuals codes hang.
        """
        length = prefix_of(self, pyramid).length
        return Lesson(self.teacher_inputs(source)[:, :length], source[:, :length])

    def teacher_inputs(self, tokens: jax.Array) -> jax.Array:
        """Tokens int32 [B, L] -> float32 [B, L, C]: for level k the downsampled sum of all levels
        before it; the rows of level 0 are zeros."""
        # `advance`, folded: as a loop, because unrolled it takes TPU's compiler ten times as long.
        pyramid = self.pyramid
        tables = level_tables(pyramid, self.down, self.up)
        phis = np.array(phi_indices(pyramid.num_levels, self.phi_sharing)[:-1], np.int32)
        # What a loop traces can index JAX arrays only.
        tokens, codebook = jnp.asarray(tokens), jnp.asarray(self.codebook)

        def step(f_hat, level):
            table, phi = level
            # [B, L] -> [B, H, W] -> [B, H, W, C]
            codes = codebook[tokens[:, table.tokens]]
            f_hat = f_hat + self._phi(phi, apply_matrices(codes, *table.up))
            return f_hat, apply_matrices(f_hat, *table.down)

        batch = tokens.shape[0]
        start = jnp.zeros((batch, *pyramid.grid, self.code_dim), jnp.float32)
        _, grids = jax.lax.scan(step, start, (tables, phis))
        inputs = [jnp.zeros((batch, pyramid.sizes[0], self.code_dim), jnp.float32)]
        for grid, (h, w) in zip(grids, pyramid.shapes[1:], strict=True):
            # [B, h', w', C] -> [B, n_k, C]
            inputs.append(grid[:, :h, :w].reshape(batch, -1, self.code_dim))
        return jnp.concatenate(inputs, 1)

    def advance(
        self,
        carry: jax.Array | None,
        level: int,
        target: jax.Array,
        pyramid: ScalePyramid | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Adds one level to f_hat.

        Args:
          carry: f_hat float32 [B, h, w, C], or None before level 0.
          level: k in [0, K).
          target: int32 [B, n_k] tokens, or float [B, n_k, V] a distribution over the codes, of
            which the expected code is added.
          pyramid: a prefix of the codec's own.

        Returns:
          The new f_hat, and the next level's input float32 [B, n_{k+1}, C] (None after the last).
        """
        f_hat = self._contribution(level, self.quantizer.look_up(target))
        if carry is not None:
            f_hat = carry + f_hat
        if level + 1 == prefix_of(self, pyramid).num_levels:
            return f_hat, None
        next_input = resize(f_hat, self.pyramid.shapes[level + 1], self.down)
        # [B, h', w', C] -> [B, n_{k+1}, C]
        return f_hat, next_input.reshape(f_hat.shape[0], -1, self.code_dim)

    def finish(self, carry: jax.Array) -> jax.Array:
        """f_hat after any level -> features float32 [B, h, w, C]."""
        return carry

    def decode(self, tokens: jax.Array) -> jax.Array:
        """Tokens int32 [B, L] -> features float32 [B, h, w, C]."""
        return self.features_by_level(tokens)[-1]

    def features_by_level(self, tokens: jax.Array) -> list[jax.Array]:
        """Tokens int32 [B, L] -> K times float32 [B, h, w, C], the sum after each level."""
        carry, sums = None, []
        for k, target in enumerate(self.pyramid.split(tokens)):
            codes = self._contribution(k, self.quantizer.look_up(target))
            carry = codes if carry is None else carry + codes
            sums.append(carry)
        return sums

    def quantize(self, features: jax.Array, exact: bool | jax.Array = False) -> Quantized:
        """Quantises for training: straight-through features and the two-sided loss.

        Args:
          features: float [B, h, w, C].
          exact: bool or bool scalar. Where true, each code is the residual vector itself, as
            if the codebook were infinite: a plain autoencoder whose residuals are those of
            an ideal codebook. The loss is then 0.

        Returns:
          Quantized.
        """
        f = checked_features(self, features)
        fixed = jax.lax.stop_gradient(f)
        f_hat, loss, tokens, residuals = jnp.zeros_like(f), 0.0, [], []
        for k in range(self.pyramid.num_levels):
            wanted, chosen = self._choose(jax.lax.stop_gradient(fixed - f_hat), k)
            codes = jnp.where(exact, wanted, self.codebook[chosen])
            f_hat = f_hat + self._contribution(k, codes)
            loss += self.beta * jnp.mean(jnp.square(f - jax.lax.stop_gradient(f_hat)))
            loss += jnp.mean(jnp.square(f_hat - fixed))
            tokens.append(chosen)
            residuals.append(jax.lax.stop_gradient(wanted))
        loss = jnp.where(exact, 0.0, loss / self.pyramid.num_levels)
        return Quantized(
            features=f + jax.lax.stop_gradient(f_hat - f),
            loss=loss,
            targets=jnp.concatenate(tokens, 1),
            vectors=jnp.concatenate(residuals, 1),
        )

    def _choose(
        self, rest: jax.Array, level: int, weights: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Residual [B, h, w, C] -> its vectors at a level [B, n, C] and their codes [B, n]."""
        shape = self.pyramid.shapes[level]
        if self.down == "area":
            wanted = weighted_mean(rest, weights, shape)
        else:
            # Other methods look beyond a cell: what does not count leaves nothing to add.
            counted = rest if weights is None else rest * weights[..., None]
            wanted = resize(counted, shape, self.down)
        wanted = wanted.reshape(rest.shape[0], -1, self.code_dim)
        return wanted, self.quantizer.choose(wanted)

    def _contribution(self, level: int, codes: jax.Array) -> jax.Array:
        """What codes [B, n, C] of a level add to the feature map: float32 [B, h, w, C]."""
        # [B, n, C] -> [B, h', w', C]
        h = codes.reshape(codes.shape[0], *self.pyramid.shapes[level], self.code_dim)
        i = phi_indices(self.pyramid.num_levels, self.phi_sharing)[level]
        return self._phi(i, resize(h, self.pyramid.grid, self.up))

    def _phi(self, i: int | jax.Array, h: jax.Array) -> jax.Array:
        """Convolution number i: float32 [B, h, w, C] -> the same."""
        if not self.phi_ratio:
            return h
        kernel, bias = jnp.asarray(self.phi_kernel)[i], jnp.asarray(self.phi_bias)[i]
        conv = jax.lax.conv_general_dilated(
            h,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_HIGHEST,
        )
        return (1 - self.phi_ratio) * h + self.phi_ratio * (conv + bias)

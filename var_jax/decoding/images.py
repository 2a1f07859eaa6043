"""From labels and seeds to images: generation and decoding as one compiled program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.decoding.generate import Sampler, generate
from var_jax.parallel import sharding
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR


def sample_keys(seed: int, index: jax.Array) -> jax.Array:
    """One PRNG key a sample from the seed and its global number int [B], so that a sample is
    the same in any batch and on any number of devices."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)


def sampling_params(var: VAR, params: Any) -> Any:
    """The parameters with the blocks' in the type that the blocks compute in.

    A block casts all of them at every use but `log_scale`. Cast once, a bfloat16 model takes half
    the memory, and a level reads half the bytes.

    Args:
      var: the module.
      params: {'transformer': ..., 'head': ...}.
    """

    def cast(path, x):
        return x if "log_scale" in jax.tree_util.keystr(path) else x.astype(var.dtype)

    transformer = params["transformer"]
    blocks = jax.tree_util.tree_map_with_path(cast, transformer["blocks"])
    return {**params, "transformer": {**transformer, "blocks": blocks}}


@flax.struct.dataclass
class Samples:
    """A batch of samples.

    Attributes:
      images: float32 [B, H, W, c] in [-1, 1].
      tokens: int32 [B, L].
      partial: float32 [K, B, H, W, c], what the first 1 .. K levels show; None unless asked for.
    """

    images: jax.Array
    tokens: jax.Array
    partial: jax.Array | None = None


class ImageSampler:
    """Draws images; the same call again compiles nothing.

    Args:
      var, head, tokenizer: modules.
      tokenizer_params: of the tokenizer.
      sampler: settings.
      mesh: batches are spread over its data and fsdp axes; None: the default device alone.
      keep_partial: also decode what each level shows.
    """

    def __init__(
        self,
        var: VAR,
        head: Any,
        tokenizer: VQVAE,
        tokenizer_params: Any,
        sampler: Sampler,
        mesh: jax.sharding.Mesh | None = None,
        keep_partial: bool = False,
    ) -> None:
        self.var, self.sampler = var, sampler
        self._mesh = mesh if mesh is not None else sharding.make_mesh(devices=jax.devices()[:1])
        self._everywhere = sharding.replicated_sharding(self._mesh)
        self._split = sharding.batch_sharding(self._mesh)
        self._frozen = jax.device_put(tokenizer_params, self._everywhere)

        def run(params, frozen, labels, seed, index):
            keys = sample_keys(seed, index)
            codec = tokenizer.codec
            result = generate(
                var, head, codec, params, frozen["codec"], labels, keys, sampler, keep_partial
            )

            def decode(features):
                return tokenizer.apply({"params": frozen}, features, method="decode")

            partial = jnp.stack([decode(f) for f in result.partial]) if keep_partial else None
            return Samples(decode(result.features), result.tokens, partial)

        self._run = jax.jit(
            run,
            out_shardings=self._everywhere,
            compiler_options=sharding.compiler_options(self._mesh),
        )

    def __call__(self, params: Any, labels: Any, seed: int, index: Any) -> Samples:
        """Draws one batch.

        Args:
          params: {'transformer': ..., 'head': ...}; see `sampling_params`.
          labels: int [B] in 0..num_classes; num_classes is 'no class'.
          seed: of the run.
          index: int [B], global numbers of the samples.

        Raises:
          ValueError: a label out of range.
        """
        labels = np.asarray(labels, np.int32)
        if labels.size and not 0 <= labels.min() <= labels.max() <= self.var.num_classes:
            raise ValueError(
                f"Labels must lie in 0..{self.var.num_classes} ({self.var.num_classes} is 'no "
                f"class'), got {labels.min()}..{labels.max()}."
            )
        parts = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        place = self._split if len(labels) % parts == 0 else self._everywhere
        seed = jax.device_put(np.uint32(seed), self._everywhere)
        labels = jax.device_put(labels, place)
        index = jax.device_put(np.asarray(index, np.uint32), place)
        return self._run(params, self._frozen, labels, seed, index)

    def batches(
        self, params: Any, labels: Sequence[int], seed: int, batch_size: int, first: int = 0
    ) -> Iterator[tuple[int, Samples]]:
        """Draws the samples first, first + 1, ... of a long list of labels.

        Yields:
          (number of the batch's first sample, Samples as numpy arrays); the last batch is
          drawn at full size and cut.
        """
        labels = np.asarray(labels, np.int32)
        for start in range(first, len(labels), batch_size):
            part = labels[start : start + batch_size]
            padded = np.resize(part, batch_size)
            index = start + np.arange(batch_size)
            found = jax.tree.map(sharding.to_host, self(params, padded, seed, index))
            count = len(part)
            partial = None if found.partial is None else found.partial[:, :count]
            yield start, Samples(found.images[:count], found.tokens[:count], partial)

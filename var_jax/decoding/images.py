"""From labels and seeds to images: generation and decoding as one compiled program."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.decoding.generate import Sampler, generate
from var_jax.parallel import arrays, sharding
from var_jax.pixels import to_uint8
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
      images: uint8 [B, H, W, c].
      tokens: int32 [B, L].
      partial: uint8 [B, K, H, W, c], what the first 1 .. K levels show; None unless asked for.
    """

    images: Any
    tokens: Any
    partial: Any = None


def jit_sampling(
    var: VAR,
    head: Any,
    tokenizer: VQVAE,
    sampler: Sampler,
    mesh: jax.sharding.Mesh,
    keep_partial: bool = False,
) -> Callable[..., Samples]:
    """Generation and decoding as they run, while training too, and as they are planned.

    Args:
      var, head, tokenizer, sampler, mesh, keep_partial: see `ImageSampler`.

    Returns:
      (params, tokenizer_params, labels int32 [B], seed uint32, index uint32 [B]) -> Samples, cut
      over the batch.
    """

    def run(params, frozen, labels, seed, index):
        keys = sample_keys(seed, index)
        codec = tokenizer.codec
        result = generate(
            var, head, codec, params, frozen["codec"], labels, keys, sampler, keep_partial
        )

        def decode(features):
            return to_uint8(tokenizer.apply({"params": frozen}, features, method="decode"))

        partial = jnp.stack([decode(f) for f in result.partial], 1) if keep_partial else None
        return Samples(decode(result.features), result.tokens, partial)

    return jax.jit(
        run,
        out_shardings=sharding.batch_sharding(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )


class ImageSampler:
    """Draws images; the same call again compiles nothing.

    Args:
      var, head, tokenizer: modules.
      tokenizer_params: of the tokenizer, on the mesh or on the host.
      sampler: settings.
      mesh: batches are spread over its data and fsdp axes; None: one device of this process.
      preset: how activations lie on the mesh: that of the parameters; see `sharding.PRESETS`.
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
        preset: str | sharding.Rules = "replicated",
        keep_partial: bool = False,
    ) -> None:
        self.var, self.sampler = var, sampler
        self.mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        self._preset = preset
        self._frozen = arrays.put_host_arrays(
            tokenizer_params, sharding.replicated_sharding(self.mesh)
        )
        self._run = jit_sampling(var, head, tokenizer, sampler, self.mesh, keep_partial)

    def __call__(self, params: Any, labels: Any, seed: int, index: Any) -> Samples:
        """Draws one batch, whole on every process.

        Args:
          params: {'transformer': ..., 'head': ...} on the mesh; see `sampling_params`.
          labels: int [B] in 0..num_classes; num_classes is 'no class'.
          seed: of the run.
          index: int [B], global numbers of the samples.

        Returns:
          NumPy arrays.

        Raises:
          ValueError: a label out of range.
        """
        found = jax.tree.map(arrays.to_host, self._draw(params, labels, seed, index))
        return jax.tree.map(lambda x: x[: len(labels)], found)

    def batches(
        self,
        params: Any,
        labels: Sequence[int],
        seed: int,
        batch_size: int,
        first: int = 0,
    ) -> Iterator[tuple[np.ndarray, Samples]]:
        """Draws the samples first, first + 1, ... of a long list of labels.

        Args:
          params, seed: as for a call.
          labels: of all samples.
          batch_size: samples at once, rounded up to what the mesh divides.
          first: number of the first sample.

        Yields:
          (int64 [n], numbers of the samples; the samples as NumPy arrays, on every process).
        """
        for numbers, found in self.on_mesh(params, labels, seed, batch_size, first):
            kept = slice(len(numbers))
            yield numbers, jax.tree.map(lambda x, kept=kept: arrays.to_host(x)[kept], found)

    def on_mesh(
        self,
        params: Any,
        labels: Sequence[int],
        seed: int,
        batch_size: int,
        first: int = 0,
    ) -> Iterator[tuple[np.ndarray, Samples]]:
        """`batches` that stay where they were drawn: all rows of the mesh's batch, of which those
        behind the numbers only fill it up."""
        labels = np.asarray(labels, np.int32)
        size = sharding.padded_batch(batch_size, self.mesh)
        waiting: collections.deque = collections.deque()
        for start in range(first, len(labels), size):
            part = labels[start : start + size]
            found = self._draw(params, np.resize(part, size), seed, start + np.arange(size))
            waiting.append((start + np.arange(len(part)), found))
            if len(waiting) > 1:  # One batch is drawn while the one before is used.
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _draw(self, params: Any, labels: Any, seed: int, index: Any) -> Samples:
        labels = np.asarray(labels, np.int32)
        if labels.size and not 0 <= labels.min() <= labels.max() <= self.var.num_classes:
            raise ValueError(
                f"Labels must lie in 0..{self.var.num_classes} ({self.var.num_classes} is 'no "
                f"class'), got {labels.min()}..{labels.max()}."
            )
        size = sharding.padded_batch(len(labels), self.mesh)
        split = sharding.batch_sharding(self.mesh)
        labels, index = (
            arrays.place(np.resize(x, size), split) for x in (labels, np.asarray(index, np.uint32))
        )
        seed = arrays.place(np.uint32(seed), sharding.replicated_sharding(self.mesh))
        with sharding.activate(self.mesh, self._preset):
            return self._run(params, self._frozen, labels, seed, index)

"""From labels and seeds to images: generation and decoding as one compiled program."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.decoding.base import Decoder
from var_jax.network import Network
from var_jax.parallel import arrays, sharding
from var_jax.pixels import to_uint8
from var_jax.tokenizer.vqvae import VQVAE


def sample_keys(seed: int, index: jax.Array) -> jax.Array:
    """One PRNG key a sample from the seed and its global number int [B], so that a sample is
    the same in any batch and on any number of devices."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)


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
    network: Network,
    tokenizer: VQVAE,
    decoder: Decoder,
    mesh: jax.sharding.Mesh,
    keep_partial: bool = False,
) -> Callable[..., Samples]:
    """Generation and decoding as they run, while training too, and as they are planned.

    Args:
      network, tokenizer, decoder, mesh, keep_partial: see `ImageSampler`.

    Returns:
      (params, {'tokenizer': ..., 'decoder': ...}, given [B], seed uint32, index uint32 [B]) ->
      Samples, cut over the batch.
    """

    def run(params, frozen, given, seed, index):
        tokenizer_params = frozen["tokenizer"]

        def decode(features):
            return tokenizer.apply({"params": tokenizer_params}, features, method="decode")

        result = decoder(
            network,
            params,
            tokenizer.codec,
            tokenizer_params.get("codec", {}),
            given,
            sample_keys(seed, index),
            own_params=frozen["decoder"],
            decode=decode,
            keep_partial=keep_partial,
        )
        partial = None
        if keep_partial:
            partial = jnp.stack([to_uint8(decode(f)) for f in result.partial], 1)
        return Samples(to_uint8(decode(result.features)), result.targets, partial)

    return jax.jit(
        run,
        out_shardings=sharding.batch_sharding(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )


class ImageSampler:
    """Draws images; the same call again compiles nothing.

    Args:
      network, tokenizer: modules.
      tokenizer_params: of the tokenizer, on the mesh or on the host.
      decoder: how levels are drawn.
      mesh: batches are spread over its data and fsdp axes; None: one device of this process.
      preset: how activations lie on the mesh: that of the parameters; see `sharding.PRESETS`.
      keep_partial: also decode what each level shows.
      decoder_params: of further networks that the decoder holds, on the mesh or on the host.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: VQVAE,
        tokenizer_params: Any,
        decoder: Decoder,
        mesh: jax.sharding.Mesh | None = None,
        preset: str | sharding.Rules = "replicated",
        keep_partial: bool = False,
        decoder_params: Any = None,
    ) -> None:
        self.network, self.decoder = network, decoder
        self.mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        self._preset = preset
        self._frozen = arrays.put_host_arrays(
            {"tokenizer": tokenizer_params, "decoder": decoder_params},
            sharding.replicated_sharding(self.mesh),
        )
        self._run = jit_sampling(network, tokenizer, decoder, self.mesh, keep_partial)

    def __call__(self, params: Any, given: Any, seed: int, index: Any) -> Samples:
        """Draws one batch, whole on every process.

        Args:
          params: {'transformer': ..., 'head': ...} on the mesh; see `sampling_params`.
          given: what is asked for, see `Conditioner`; such as labels int [B] in 0..num_classes,
            where num_classes is 'no class'.
          seed: of the run.
          index: int [B], global numbers of the samples.

        Returns:
          NumPy arrays.

        Raises:
          ValueError: what cannot be asked for.
        """
        found = jax.tree.map(arrays.to_host, self._draw(params, given, seed, index))
        return jax.tree.map(lambda x: x[: len(index)], found)

    def batches(
        self,
        params: Any,
        given: Any,
        seed: int,
        batch_size: int,
        first: int = 0,
    ) -> Iterator[tuple[np.ndarray, Samples]]:
        """Draws the samples first, first + 1, ... of a long list.

        Args:
          params, seed: as for a call.
          given: of all samples.
          batch_size: samples at once, rounded up to what the mesh divides.
          first: number of the first sample.

        Yields:
          (int64 [n], numbers of the samples; the samples as NumPy arrays, on every process).
        """
        for numbers, found in self.on_mesh(params, given, seed, batch_size, first):
            kept = slice(len(numbers))
            yield numbers, jax.tree.map(lambda x, kept=kept: arrays.to_host(x)[kept], found)

    def on_mesh(
        self,
        params: Any,
        given: Any,
        seed: int,
        batch_size: int,
        first: int = 0,
    ) -> Iterator[tuple[np.ndarray, Samples]]:
        """`batches` that stay where they were drawn: all rows of the mesh's batch, of which those
        behind the numbers only fill it up."""
        given = _on_host(given)
        count = len(jax.tree.leaves(given)[0])
        size = sharding.padded_batch(batch_size, self.mesh)
        waiting: collections.deque = collections.deque()
        for start in range(first, count, size):
            part = jax.tree.map(lambda x, a=start: x[a : a + size], given)
            found = self._draw(params, part, seed, start + np.arange(size))
            waiting.append((np.arange(start, min(start + size, count)), found))
            if len(waiting) > 1:  # One batch is drawn while the one before is used.
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _draw(self, params: Any, given: Any, seed: int, index: Any) -> Samples:
        given = _on_host(given)
        self.network.transformer.conditioning().check(given)
        size = sharding.padded_batch(len(index), self.mesh)
        split = sharding.batch_sharding(self.mesh)
        given, index = jax.tree.map(
            lambda x: arrays.place(np.resize(x, (size, *x.shape[1:])), split),
            (given, np.asarray(index, np.uint32)),
        )
        seed = arrays.place(np.uint32(seed), sharding.replicated_sharding(self.mesh))
        with sharding.activate(self.mesh, self._preset):
            return self._run(params, self._frozen, given, seed, index)


def _on_host(given: Any) -> Any:
    """What is asked for as the program takes it: arrays, integers but bytes as int32."""

    def array(x: Any) -> np.ndarray:
        x = np.asarray(x)
        whole = np.issubdtype(x.dtype, np.integer) and x.dtype != np.uint8
        return x.astype(np.int32) if whole else x

    # A plain list is one of labels, not a tree of scalars.
    return jax.tree.map(array, np.asarray(given) if isinstance(given, list | tuple) else given)

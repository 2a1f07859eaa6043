"""Inception features: of a stream of images, and of images that lie on a mesh."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Num

from var_jax.evaluation.inception.network import FEATURE_SIZES, Inception
from var_jax.evaluation.inception.weights import InceptionWeights
from var_jax.parallel import arrays, sharding

# On CPUs a larger batch is slower: its activations are fresh memory at every step.
CPU_BATCH_SIZE = 8
BATCH_SIZE = 32
SCORE_FEATURES = ("2048", "spatial", "logits_unbiased")


def jit_features(
    features: Sequence[str], images: NamedSharding
) -> Callable[..., dict[str, jax.Array]]:
    """Inception as it runs, while training too, and as it is planned.

    Args:
      features: see `FeatureExtractor`.
      images: how a batch lies on the devices, and the features after it.

    Returns:
      (params, images uint8 [B, H, W, c], c = 1 for grey) -> float32 [B, size] by feature.
    """

    def extract(params, images):
        if images.shape[-1] == 1:
            images = jnp.repeat(images, 3, -1)
        return Inception().apply({"params": params}, images, tuple(features))

    return jax.jit(extract, out_shardings=images)


class MeshExtractor:
    """Features of images where they lie, by the devices that hold them.

    Args:
      weights: of the network.
      mesh: of the images, whose batch its data and fsdp axes cut.
      features: names of the features, see Inception.

    Attributes:
      weights: as given.
      sizes: length of each feature by name.
    """

    def __init__(
        self, weights: InceptionWeights, mesh: Mesh, features: Sequence[str] = SCORE_FEATURES
    ) -> None:
        self.weights, self._mesh = weights, mesh
        self.sizes = {name: FEATURE_SIZES[name] for name in features}
        self._params = arrays.put_host_arrays(
            jax.tree.map(np.asarray, weights.params), sharding.replicated_sharding(mesh)
        )
        self._apply = jit_features(features, sharding.batch_sharding(mesh))

    def __call__(self, images: jax.Array) -> dict[str, np.ndarray]:
        """Features of a batch, whole on every process; every process calls it alike.

        Args:
          images: uint8 [B, H, W, c], cut over the mesh.

        Returns:
          float32 [B, size] for each feature.
        """
        with sharding.activate(self._mesh, "replicated"):
            found = self._apply(self._params, images)
        return {name: arrays.to_host(value) for name, value in found.items()}


class FeatureExtractor:
    """Batches of images in, NumPy features out, on devices of this process.

    The batch axis is spread over the devices; the last batch is padded, so that one image size
    compiles once.

    Attributes:
      weights: the network's parameters and the hash of their file.
      features: names of the features (see Inception); `sizes` has their lengths.
      batch_size: images per step, over all devices; by default 32 per device, on CPUs 8 in all
        (which keeps memory under 2 GB).
    """

    def __init__(
        self,
        weights: InceptionWeights,
        features: Sequence[str] = SCORE_FEATURES,
        *,
        batch_size: int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        if devices is None:
            # Several devices of one of several hosts: some TPU topologies run no such program.
            devices = jax.local_devices()[: 1 if jax.process_count() > 1 else None]
        devices = list(devices)
        if batch_size is None:
            on_cpu = devices[0].platform == "cpu"
            batch_size = CPU_BATCH_SIZE if on_cpu else BATCH_SIZE * len(devices)
        self._mesh = mesh = Mesh(np.array(devices), ("batch",))
        self.weights = weights
        self.features = tuple(features)
        self.sizes = {name: FEATURE_SIZES[name] for name in self.features}
        self.batch_size = max(1, -(-batch_size // len(devices))) * len(devices)
        self._images = NamedSharding(mesh, PartitionSpec("batch"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._params = jax.device_put(weights.params, whole)
        self._apply = jit_features(self.features, self._images)

    def __call__(self, images: Num[np.ndarray, "B H W 3"]) -> dict[str, np.ndarray]:
        """Features of images that are at hand, float32 [N, size] each."""
        parts = list(self.stream([images]))
        if not parts:
            return {name: np.zeros((0, FEATURE_SIZES[name]), np.float32) for name in self.features}
        return {name: np.concatenate([part[name] for part in parts]) for name in self.features}

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Features of a stream of images, a batch at a time and in order.

        Args:
          batches: uint8 [n, H, W, 3], n any; they are cut and joined to batch_size.

        Yields:
          float32 [m, size] for each feature, m at most batch_size.
        """
        waiting: collections.deque = collections.deque()
        for images in _rebatch(batches, self.batch_size):
            padding = self.batch_size - len(images)
            padded = np.pad(images, [(0, padding), (0, 0), (0, 0), (0, 0)]) if padding else images
            # Inside a training loop the mesh in force is that of all hosts.
            with jax.set_mesh(self._mesh):
                out = self._apply(self._params, jax.device_put(padded, self._images))
            waiting.append((len(images), out))
            if len(waiting) > 1:  # one batch is computed while the next is read
                yield _fetch(*waiting.popleft())
        while waiting:
            yield _fetch(*waiting.popleft())


def _fetch(count: int, out: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[:count] for name, value in out.items()}


def _rebatch(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cuts and joins arrays [n, ...] to [size, ...]; the last may be shorter."""
    rest: list[np.ndarray] = []
    held = 0
    for batch in batches:
        _check_images(batch)
        while len(batch):
            part = batch[: size - held]
            rest.append(part)
            held += len(part)
            batch = batch[len(part) :]
            if held == size:
                yield rest[0] if len(rest) == 1 else np.concatenate(rest)
                rest, held = [], 0
    if held:
        yield np.concatenate(rest)


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"Inception takes uint8 images [N, H, W, 3], not {images.dtype} {list(images.shape)}."
        )

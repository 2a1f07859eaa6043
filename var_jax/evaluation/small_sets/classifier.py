"""A small classifier that scores generated images of small data sets.

Where the Inception network says nothing (digits, little pictograms), a classifier trained on the
real training split gives two numbers: how often a generated image is what its label says, and a
Frechet distance in the classifier's features. They compare runs on the same data set only, and
the classifier's accuracy on real held-out images stands beside them.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Float32, Int, Num, PyTree

from var_jax.evaluation.distances.frechet import GaussianStatistics, frechet_distance, statistics
from var_jax.pixels import to_float

FEATURES = 64
_BATCH = 256


class SmallClassifier(nn.Module):
    """Three strided convolutions and one hidden layer; no normalisation, so that it is cheap.

    Attributes:
      num_classes: classes.
      width: channels of the first stage; twice as many in the others.
    """

    num_classes: int
    width: int = 32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W c"]
    ) -> tuple[Float32[Array, "B classes"], Float32[Array, "B features"]]:
        """Logits and features of images in [-1, 1]."""
        x = nn.relu(nn.Conv(self.width, (5, 5), (2, 2), name="conv0")(images))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), (2, 2), name="conv1")(x))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), (2, 2), name="conv2")(x))
        features = nn.relu(nn.Dense(FEATURES, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="classes")(features), features


@struct.dataclass
class Classifier:
    """A trained classifier.

    Attributes:
      params: of `SmallClassifier`.
      num_classes, width: its fields.
    """

    params: PyTree
    num_classes: int = struct.field(pytree_node=False)
    width: int = struct.field(pytree_node=False)

    def predict(
        self, images: Num[np.ndarray, "n H W c"]
    ) -> tuple[Float32[np.ndarray, "n classes"], Float32[np.ndarray, "n features"]]:
        """Logits and features of images (uint8, or floating point in [-1, 1])."""
        logits, features = [], []
        module = SmallClassifier(self.num_classes, self.width)
        for start in range(0, len(images), _BATCH):
            part = to_float(images[start : start + _BATCH])
            padded = np.pad(part, [(0, _BATCH - len(part)), (0, 0), (0, 0), (0, 0)])
            found = jax.device_get(_apply(module, self.params, padded))
            logits.append(found[0][: len(part)])
            features.append(found[1][: len(part)])
        return np.concatenate(logits), np.concatenate(features)

    def accuracy(self, images: Num[np.ndarray, "n H W c"], labels: Int[np.ndarray, " n"]) -> float:
        """Share of images that the classifier takes for their labels."""
        return float(np.mean(self.predict(images)[0].argmax(-1) == np.asarray(labels)))

    def statistics(self, images: Num[np.ndarray, "n H W c"]) -> GaussianStatistics:
        """Mean and covariance of the features of images."""
        return statistics(self.predict(images)[1])

    def frechet_distance(
        self, real: Num[np.ndarray, "n H W c"], fake: Num[np.ndarray, "m H W c"]
    ) -> float:
        """Frechet distance of two sets of images in the classifier's features."""
        return frechet_distance(self.statistics(real), self.statistics(fake))


def train_classifier(
    images: Num[np.ndarray, "n H W c"],
    labels: Int[np.ndarray, " n"],
    *,
    num_classes: int,
    steps: int = 800,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    shift: int = 2,
    width: int = 32,
    seed: int = 0,
) -> Classifier:
    """Trains a classifier with Adam, a cosine schedule and random shifts.

    Args:
      images: uint8, or floating point in [-1, 1]: the training split only.
      labels: in [0, num_classes).
      num_classes: classes.
      steps: updates.
      batch_size: images per update.
      learning_rate: peak.
      shift: largest shift in pixels on either axis; edges repeat.
      width: channels of the first stage.
      seed: of parameters, order and shifts; the same seed gives the same classifier.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"{len(images)} images do not go with {len(labels)} labels.")
    if np.min(labels) < 0 or np.max(labels) >= num_classes:
        raise ValueError(
            f"Labels from {np.min(labels)} to {np.max(labels)} do not fit {num_classes} classes."
        )
    module = SmallClassifier(num_classes, width)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    params = jax.jit(module.init)(jax.random.key(seed), to_float(images[:1]))["params"]
    state = optimizer.init(params)

    def loss(params, batch, labels):
        logits, _ = module.apply({"params": params}, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, batch, labels):
        gradients = jax.grad(loss)(params, batch, labels)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(seed)
    height, width_px = images.shape[1:3]
    edges = [(0, 0), (shift, shift), (shift, shift), (0, 0)]
    for _ in range(steps):
        chosen = rng.integers(0, len(images), batch_size)
        padded = np.pad(to_float(images[chosen]), edges, "edge")
        # [B, 2 shift + 1, 2 shift + 1, C, H, W]: every position of the picture in its border.
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width_px), (1, 2))
        top, left = rng.integers(0, 2 * shift + 1, (2, batch_size))
        batch = windows[np.arange(batch_size), top, left].transpose(0, 2, 3, 1)
        params, state = step(params, state, batch, jnp.asarray(labels[chosen], jnp.int32))
    return Classifier(jax.device_get(params), num_classes, width)


@functools.partial(jax.jit, static_argnums=0)
def _apply(
    module: SmallClassifier, params: PyTree, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    result: tuple[jax.Array, jax.Array] = module.apply({"params": params}, images)
    return result

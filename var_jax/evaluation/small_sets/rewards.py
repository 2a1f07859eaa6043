"""Rewards of a search by the small classifier of a data set, from a file of its weights.

The classifier that rewards must not be the one that scores afterwards: by `launch.train_classifier`
give it another seed than `launch.score_small_set` uses, or both like the same flaws.
"""

from __future__ import annotations

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Int, Num

from var_jax import paths
from var_jax.decoding.rewards import Candidates
from var_jax.evaluation.array_files import array_names, read_array
from var_jax.evaluation.small_sets.classifier import Classifier, SmallClassifier

_MEANS = "feature_means"


def write_classifier(
    path: epath.PathLike,
    classifier: Classifier,
    images: Num[np.ndarray, "n H W c"],
    labels: Int[np.ndarray, " n"],
) -> None:
    """Writes a classifier, and the means of its features over the images of each class, as npz.

    Args:
      path: of the file, local or gs://.
      classifier: trained.
      images, labels: real ones, of every class.
    """
    features = classifier.predict(images)[1]
    means = [features[labels == label].mean(0) for label in range(classifier.num_classes)]
    flat = flax.traverse_util.flatten_dict(classifier.params, sep="/")
    with paths.replacing(path) as file:
        np.savez_compressed(file, **flat, **{_MEANS: np.stack(means)})


def read_classifier(path: epath.PathLike) -> tuple[Classifier, Float[np.ndarray, "classes size"]]:
    """What `write_classifier` wrote.

    Raises:
      ValueError: the file is of something else.
    """
    names = array_names(path)
    if _MEANS not in names:
        raise ValueError(
            f"{path} has no classifier; give a file that launch.train_classifier has written."
        )
    arrays = {name: read_array(path, name) for name in names}
    means = arrays.pop(_MEANS)
    params = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return Classifier(params, len(means), params["conv0"]["bias"].size), means


@dataclasses.dataclass(frozen=True)
class _ByClassifier:
    """A reward that looks at images with a classifier.

    Attributes:
      file: npz, see `write_classifier`.
    """

    file: str

    @functools.cached_property
    def _known(self) -> tuple[Classifier, np.ndarray]:
        return read_classifier(paths.resolve(self.file))

    def __post_init__(self) -> None:
        self._known  # noqa: B018  A file that is not there is told before anything starts.

    def _outputs(self, candidates: Candidates) -> tuple[jax.Array, jax.Array]:
        """Logits and features of the candidates."""
        if candidates.images is None:
            raise ValueError("This reward looks at images, but the decoder was given no `decode`.")
        classifier, _ = self._known
        module = SmallClassifier(classifier.num_classes, classifier.width)
        made: tuple[jax.Array, jax.Array] = module.apply(
            {"params": classifier.params}, candidates.images
        )
        return made


class ClassifierReward(_ByClassifier):
    """The log probability of the label that was asked for; of 'no class', of the likeliest one."""

    def __call__(self, candidates: Candidates) -> Float[jax.Array, " B"]:
        """See `Reward`."""
        log_prob = jax.nn.log_softmax(self._outputs(candidates)[0])
        own, some = _of_label(log_prob, candidates.given)
        return jnp.where(some, own, log_prob.max(1))


class FeatureDistanceReward(_ByClassifier):
    """Minus the squared distance of the classifier's features to the mean of the label's; of 'no
    class', to the nearest mean."""

    def __call__(self, candidates: Candidates) -> Float[jax.Array, " B"]:
        """See `Reward`."""
        means = self._known[1]
        features = self._outputs(candidates)[1]
        near = -jnp.square(features[:, None] - means[None]).sum(-1)
        own, some = _of_label(near, candidates.given)
        return jnp.where(some, own, near.max(1))


def _of_label(values: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The column of each label, and whether there is one: 'no class' has none."""
    count = values.shape[1]
    own = jnp.take_along_axis(values, jnp.minimum(labels, count - 1)[:, None], axis=1)[:, 0]
    return own, labels < count

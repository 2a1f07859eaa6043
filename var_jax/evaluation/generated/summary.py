"""What is kept of a set of images, and the scores of one set against another.

Sources: see fid, kid and precision_recall; sFID: Nash et al. 2021 (arXiv 2103.03841).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import numpy as np
from flax import struct

from var_jax.evaluation.distances.frechet import (
    GaussianAccumulator,
    GaussianStatistics,
    InceptionScoreAccumulator,
    frechet_distance,
)
from var_jax.evaluation.distances.kernel_distance import kernel_distance
from var_jax.evaluation.distances.precision_recall import manifold_scores

STATISTICS = {"2048": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


class Extractor(Protocol):
    """What turns images into features; FeatureExtractor is the one that papers use.

    Attributes:
      sizes: length of each feature by name: '2048', and maybe 'spatial' and 'logits_unbiased'.
      batch_size: images per step.
    """

    sizes: dict[str, int]
    batch_size: int

    def stream(self, batches: Iterable[np.ndarray]) -> Iterable[dict[str, np.ndarray]]:
        """Batches uint8 [n, H, W, 3] -> float32 [m, size] for each feature, in order."""


@struct.dataclass
class Summary:
    """What is kept of a set of images.

    Attributes:
      count: images seen.
      pool: statistics of the 2048 features, or None.
      spatial: statistics of the 2023 spatial features, or None.
      features: the 2048 features themselves, float32 [N, 2048], or None.
      inception: accumulated inception score, or None.
    """

    count: int = struct.field(pytree_node=False)
    pool: GaussianStatistics | None = None
    spatial: GaussianStatistics | None = None
    features: np.ndarray | None = None
    inception: InceptionScoreAccumulator | None = struct.field(pytree_node=False, default=None)


@struct.dataclass
class Scores:
    """Scores of a set of images against a reference; None where the reference does not allow it.

    Attributes:
      fid, sfid: Frechet distances of the pooled and of the spatial features.
      inception_score: of all samples together; does not depend on their order.
      inception_score_chunked, inception_score_chunked_std: mean and deviation over chunks of
        5,000 consecutive samples, ADM's convention.
      precision, recall: with 3 neighbours. density, coverage: with 5.
      kid, kid_std: squared kernel distance over 100 subsets of 1,000.
      num_samples: images scored. num_reference: images of the reference; 0 for statistics alone.
    """

    num_samples: int
    num_reference: int
    fid: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    inception_score_chunked: float | None = None
    inception_score_chunked_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    kid: float | None = None
    kid_std: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


class SummaryBuilder:
    """Reduces features as they come.

    Args:
      sizes: length of each feature by name; see Extractor.
      keep_features: keep the 2048 features too (8 kB per image), for precision, recall and KID.
    """

    def __init__(self, sizes: dict[str, int], keep_features: bool = True) -> None:
        self.count = 0
        self._gaussians = {
            name: GaussianAccumulator(sizes[name]) for name in STATISTICS if name in sizes
        }
        scored = "logits_unbiased" in sizes
        self._inception = InceptionScoreAccumulator(sizes["logits_unbiased"]) if scored else None
        self._keep = keep_features
        self._kept: list[np.ndarray] = []

    def update(self, features: dict[str, np.ndarray]) -> None:
        """Adds the features [n, size] of n images."""
        for name, accumulator in self._gaussians.items():
            accumulator.update(features[name])
        if self._inception is not None:
            self._inception.update(features["logits_unbiased"])
        if self._keep:
            self._kept.append(features["2048"])
        self.count += len(next(iter(features.values())))

    def summary(self) -> Summary:
        """Of everything so far; at least two images."""
        found = {name: a.statistics() for name, a in self._gaussians.items()}
        return Summary(
            count=self.count,
            pool=found.get("2048"),
            spatial=found.get("spatial"),
            features=np.concatenate(self._kept) if self._kept else None,
            inception=self._inception,
        )


def summarise(
    batches: Iterable[np.ndarray],
    extractor: Extractor,
    *,
    keep_features: bool = True,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Features of a stream of images uint8 [n, H, W, 3], reduced as they come; see `reduce`."""
    features = extractor.stream(batches)
    return reduce(features, extractor.sizes, keep_features=keep_features, on_batch=on_batch)


def reduce(
    features: Iterable[dict[str, np.ndarray]],
    sizes: dict[str, int],
    *,
    keep_features: bool = True,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Features, reduced as they come.

    Args:
      features: [n, size] of each name, in parts; see Extractor.stream.
      sizes: length of each feature by name.
      keep_features: see SummaryBuilder.
      on_batch: called with the number of images done.
    """
    builder = SummaryBuilder(sizes, keep_features)
    for part in features:
        builder.update(part)
        on_batch(builder.count)
    return builder.summary()


def compare(
    samples: Summary,
    reference: Summary,
    *,
    neighbours: int = 3,
    density_neighbours: int = 5,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    devices: list[jax.Device] | None = None,
) -> Scores:
    """Scores of one summary against another; what either lacks stays None."""
    scores: dict[str, float] = {}
    if samples.pool is not None and reference.pool is not None:
        scores["fid"] = frechet_distance(samples.pool, reference.pool)
    if samples.spatial is not None and reference.spatial is not None:
        scores["sfid"] = frechet_distance(samples.spatial, reference.spatial)
    if samples.inception is not None:
        mean, std = samples.inception.chunked()
        scores["inception_score"] = samples.inception.score()
        scores["inception_score_chunked"] = mean
        scores["inception_score_chunked_std"] = std
    if samples.features is not None and reference.features is not None:
        real, fake = reference.features, samples.features
        if min(len(real), len(fake)) > max(neighbours, density_neighbours):
            manifold = manifold_scores(
                real, fake, k=neighbours, density_k=density_neighbours, devices=devices
            )
            for name in ("precision", "recall", "density", "coverage"):
                scores[name] = getattr(manifold, name)
        if kid_subsets:
            distance = kernel_distance(real, fake, subsets=kid_subsets, subset_size=kid_subset_size)
            scores["kid"], scores["kid_std"] = distance.mean, distance.std
    return Scores(num_samples=samples.count, num_reference=reference.count, **scores)


def looks_class_sorted(inception: InceptionScoreAccumulator) -> bool:
    """Whether chunks of consecutive samples are far less varied than all samples together."""
    return inception.chunks > 1 and inception.chunked()[0] < 0.75 * inception.score()

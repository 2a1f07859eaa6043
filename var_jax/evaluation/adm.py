"""Scores of files of images, in the manner of ADM's evaluator.

A samples file is an npz of images under `arr_0`. A reference is the same, or one of ADM's files:
images for precision and recall, beside means and covariances of the whole data set (`mu`,
`sigma`, and `mu_s`, `sigma_s` for sFID); statistics without images serve too, for FID alone.

Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), `evaluations/` of guided-diffusion.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import struct

from var_jax.evaluation import kid, npz_images
from var_jax.evaluation.features import FeatureExtractor
from var_jax.evaluation.fid import (
    GaussianAccumulator,
    GaussianStatistics,
    InceptionScoreAccumulator,
    frechet_distance,
)
from var_jax.evaluation.inception import CLASSES, FEATURE_SIZES
from var_jax.evaluation.inception_weights import InceptionWeights, file_sha256, load_inception
from var_jax.evaluation.npz_images import NpzImages
from var_jax.evaluation.precision_recall import manifold_scores

EVALUATOR = "var_jax, Inception 2015-12-05, TensorFlow 1 resize, float32 features"
STATISTICS = {"2048": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
SORTED = (
    "{path} {how}, so the inception score that ADM's evaluator averages over chunks of 5,000 "
    "images comes out far too low; take the score of all samples, or shuffle the file."
)
Progress = Callable[[str, int, int], None]


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


def summarise(
    batches: Iterable[np.ndarray],
    extractor: FeatureExtractor,
    *,
    keep_features: bool = True,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Features of a stream of images, reduced as they come.

    Args:
      batches: uint8 [n, H, W, 3].
      extractor: which computes '2048' and maybe 'spatial' and 'logits_unbiased'.
      keep_features: keep the 2048 features too (8 kB an image), for precision, recall and KID.
      on_batch: called with the number of images done.
    """
    gaussians = {
        name: GaussianAccumulator(FEATURE_SIZES[name])
        for name in STATISTICS
        if name in extractor.features
    }
    scored = "logits_unbiased" in extractor.features
    inception = InceptionScoreAccumulator(CLASSES) if scored else None
    kept: list[np.ndarray] = []
    count = 0
    for features in extractor.stream(batches):
        for name, accumulator in gaussians.items():
            accumulator.update(features[name])
        if inception is not None:
            inception.update(features["logits_unbiased"])
        if keep_features:
            kept.append(features["2048"])
        count += len(next(iter(features.values())))
        on_batch(count)
    found = {name: accumulator.statistics() for name, accumulator in gaussians.items()}
    return Summary(
        count=count,
        pool=found.get("2048"),
        spatial=found.get("spatial"),
        features=np.concatenate(kept) if kept else None,
        inception=inception,
    )


def read_reference(
    path: str,
    extractor: FeatureExtractor,
    *,
    keep_features: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """A reference file: stored statistics where it has them, features of its images.

    Raises:
      FileNotFoundError, ValueError: one sentence.
    """
    names = npz_images.member_names(path)
    stored = _stored_statistics(path, names)
    if npz_images.IMAGES not in names:
        if not stored:
            raise ValueError(
                f"{path} is no reference: it has neither images ({npz_images.IMAGES!r}) nor "
                f"statistics ('mu' and 'sigma'), only {', '.join(names) or 'nothing'}."
            )
        return Summary(count=0, pool=stored["2048"], spatial=stored.get("spatial"))
    if "2048" in stored and not keep_features:
        return Summary(count=0, pool=stored["2048"], spatial=stored.get("spatial"))
    images = NpzImages(path)
    summary = summarise(
        images.batches(extractor.batch_size),
        extractor,
        keep_features=keep_features,
        on_batch=lambda done: progress("reference", done, len(images)),
    )
    return summary.replace(
        pool=stored.get("2048", summary.pool),
        # Statistics of two different sets of images never stand side by side.
        spatial=stored.get("spatial") if stored else summary.spatial,
    )


def _stored_statistics(path: str, names: list[str]) -> dict[str, GaussianStatistics]:
    found = {}
    for feature, (mean_name, covariance_name) in STATISTICS.items():
        if mean_name not in names or covariance_name not in names:
            continue
        mean = npz_images.read_array(path, mean_name).astype(np.float64)
        covariance = npz_images.read_array(path, covariance_name).astype(np.float64)
        size = FEATURE_SIZES[feature]
        if mean.shape != (size,) or covariance.shape != (size, size):
            raise ValueError(
                f"{path} has statistics {mean_name} {list(mean.shape)} and {covariance_name} "
                f"{list(covariance.shape)}; [{size}] and [{size}, {size}] are due."
            )
        found[feature] = GaussianStatistics(0, mean, covariance)
    if "spatial" in found and "2048" not in found:
        raise ValueError(f"{path} has 'mu_s' without 'mu'; it is no complete reference.")
    return found


def write_reference(path: str, summary: Summary, images: Iterable[np.ndarray], count: int) -> None:
    """Writes an ADM reference: the statistics of `summary` beside `count` of the images."""
    if summary.pool is None or summary.spatial is None:
        raise ValueError("A reference needs the pooled and the spatial statistics.")
    npz_images.write_images(
        path,
        images,
        count,
        mu=summary.pool.mean,
        sigma=summary.pool.covariance,
        mu_s=summary.spatial.mean,
        sigma_s=summary.spatial.covariance,
    )


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
            distance = kid.kernel_distance(
                real, fake, subsets=kid_subsets, subset_size=kid_subset_size
            )
            scores["kid"], scores["kid_std"] = distance.mean, distance.std
    return Scores(num_samples=samples.count, num_reference=reference.count, **scores)


def evaluate_npz(
    samples_path: str,
    reference_path: str,
    inception: InceptionWeights | str,
    *,
    batch_size: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Scores:
    """Scores an npz of images against a reference file.

    Args:
      samples_path: npz with `arr_0`, uint8 NHWC (or floating point in [-1, 1]).
      reference_path: the same, or an ADM reference file.
      inception: weights, or the path of their file.
      batch_size: images a step, over all devices; see FeatureExtractor.
      progress: called with 'reference' or 'samples', images done, images in all.

    Raises:
      FileNotFoundError, ValueError: one sentence, before long work starts.
    """
    samples = NpzImages(samples_path)
    npz_images.member_names(reference_path)
    if not isinstance(inception, InceptionWeights):
        inception = load_inception(inception)
    extractor = FeatureExtractor(inception, batch_size=batch_size)
    scores, messages = _evaluate(samples, reference_path, extractor, progress)
    for message in messages:
        warnings.warn(message, stacklevel=2)
    return scores


def _evaluate(
    samples: NpzImages,
    reference_path: str,
    extractor: FeatureExtractor,
    progress: Progress,
) -> tuple[Scores, list[str]]:
    """Scores, and what the reader of the scores must be told."""
    messages = []
    if samples.class_sorted:
        messages.append(SORTED.format(path=samples.path, how="is sorted by class"))
    if samples.value_range != "uint8":
        messages.append(
            f"{samples.path} holds {samples.dtype} images, which were taken to be in "
            f"{samples.value_range} and rounded to 8 bits."
        )
    reference = read_reference(reference_path, extractor, progress=progress)
    summary = summarise(
        samples.batches(extractor.batch_size),
        extractor,
        keep_features=reference.features is not None,
        on_batch=lambda done: progress("samples", done, len(samples)),
    )
    scores = compare(summary, reference)
    if not samples.class_sorted and looks_class_sorted(summary.inception):
        messages.append(SORTED.format(path=samples.path, how="looks sorted by class"))
    return scores, messages


def looks_class_sorted(inception: InceptionScoreAccumulator) -> bool:
    """Whether chunks of consecutive samples are far less varied than all samples together."""
    return inception.chunks > 1 and inception.chunked()[0] < 0.75 * inception.score()


def score_files(
    samples_path: str,
    reference_path: str,
    inception_path: str,
    *,
    inception_sha256: str | None = None,
    inception_cache: str | None = None,
    batch_size: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """`evaluate_npz` with a record of what was compared with what, ready for JSON.

    Args:
      inception_sha256: hash, or its first digits, that the weights must have.
      inception_cache: npz to keep the converted weights in.
      (others as for `evaluate_npz`)

    Returns:
      the scores by name; 'evaluator', 'inception_sha256', 'published_inception',
      'samples', 'samples_sha256', 'samples_range', 'reference', 'reference_sha256',
      'batch_size', 'devices', and 'warnings', a list of sentences.
    """
    samples = NpzImages(samples_path)
    npz_images.member_names(reference_path)
    weights = load_inception(inception_path, sha256=inception_sha256, cache=inception_cache)
    extractor = FeatureExtractor(weights, batch_size=batch_size)
    scores, messages = _evaluate(samples, reference_path, extractor, progress)
    if not weights.published:
        messages.append(
            f"{inception_path} is not the published Inception file, so these scores cannot be "
            "compared with published ones."
        )
    for message in messages:
        warnings.warn(message, stacklevel=2)
    return {
        **scores.as_dict(),
        "evaluator": EVALUATOR,
        "inception_sha256": weights.sha256,
        "published_inception": weights.published,
        "samples": str(samples_path),
        "samples_sha256": file_sha256(samples_path),
        "samples_range": samples.value_range,
        "reference": str(reference_path),
        "reference_sha256": file_sha256(reference_path),
        "batch_size": extractor.batch_size,
        "devices": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "warnings": messages,
    }

"""Scores of files of images, in the manner of ADM's evaluator.

Samples are images in a file or a folder; see image_files. A reference is the same, or one of ADM's
files; see references.

Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), `evaluations/` of guided-diffusion.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from var_jax.evaluation.generated import image_files
from var_jax.evaluation.generated.image_files import Images, open_images
from var_jax.evaluation.generated.npz_images import read_note
from var_jax.evaluation.generated.references import (
    Progress,
    check_comparable,
    check_reference,
    read_reference,
    write_reference,
)
from var_jax.evaluation.generated.summary import (
    Extractor,
    Scores,
    Summary,
    compare,
    looks_class_sorted,
    reduce,
    summarise,
)
from var_jax.evaluation.inception.extractor import FeatureExtractor
from var_jax.evaluation.inception.weights import InceptionWeights, load_inception

__all__ = [
    "EVALUATOR",
    "ReferenceScorer",
    "Scores",
    "Summary",
    "compare",
    "evaluate_npz",
    "looks_class_sorted",
    "read_reference",
    "score_files",
    "summarise",
    "write_reference",
]

EVALUATOR = "var_jax, Inception 2015-12-05, TensorFlow 1 resize, float32 features"
SORTED = (
    "{path} {how}, so the inception score that ADM's evaluator averages over chunks of 5,000 "
    "images comes out far too low; take the score of all samples, or shuffle the file."
)


class ReferenceScorer:
    """Scores files of images against one reference, whose features are computed once.

    Args:
      reference_path: images in a file or folder, or an ADM reference file.
      extractor: of the features.
      allow_mismatched: also compare what cannot be compared; see references.check_comparable.
      value_range: of the reference's images where they are floating point; see open_images.
      progress: called with 'reference' or 'samples', images done, images in all.

    Raises:
      FileNotFoundError, ValueError: the reference is none.
    """

    def __init__(
        self,
        reference_path: str,
        extractor: Extractor,
        *,
        allow_mismatched: bool = False,
        value_range: str | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        check_reference(reference_path, value_range)
        self.reference_path = str(reference_path)
        self.extractor = extractor
        self.allow_mismatched = allow_mismatched
        self._value_range = value_range
        self._progress = progress
        self._reference: Summary | None = None
        self._reference_sha256: str | None = None

    def check(self, image_size: tuple[int, int], note: dict[str, Any], path: str) -> None:
        """Raises ValueError, one sentence, where the images cannot be compared with it."""
        if not self.allow_mismatched:
            check_comparable(image_size, note, self.reference_path, path)

    def identity(self) -> dict[str, Any]:
        """What the scores depend on beside the samples, ready for JSON."""
        if self._reference_sha256 is None:
            self._reference_sha256 = image_files.sha256(self.reference_path)
        weights = getattr(self.extractor, "weights", None)
        return {
            "evaluator": getattr(self.extractor, "evaluator", EVALUATOR),
            "inception_sha256": weights.sha256 if weights else None,
            "published_inception": bool(weights and weights.published),
            "reference": self.reference_path,
            "reference_sha256": self._reference_sha256,
            "reference_note": read_note(self.reference_path),
            "mismatched_reference_allowed": self.allow_mismatched,
        }

    def compare(
        self, samples: Images, features: Iterable[dict[str, np.ndarray]] | None = None
    ) -> tuple[Scores, list[str]]:
        """Scores, and what their reader must be told.

        Args:
          samples: to be scored.
          features: of them in order, in parts; None extracts them here.
        """
        self.check(samples.shape[1:3], read_note(samples.path), samples.path)
        messages = []
        if samples.class_sorted:
            messages.append(SORTED.format(path=samples.path, how="is sorted by class"))
        if samples.value_range != "uint8":
            messages.append(
                f"{samples.path} holds {samples.dtype} images, which were taken to be in "
                f"{samples.value_range} and rounded to 8 bits."
            )
        if self._reference is None:
            self._reference = read_reference(
                self.reference_path,
                self.extractor,
                value_range=self._value_range,
                progress=self._progress,
            )
        if features is None:
            features = self.extractor.stream(samples.batches(self.extractor.batch_size))
        summary = reduce(
            features,
            self.extractor.sizes,
            keep_features=self._reference.features is not None,
            on_batch=lambda done: self._progress("samples", done, len(samples)),
        )
        scores = compare(summary, self._reference)
        unordered = summary.inception is not None and not samples.class_sorted
        if unordered and looks_class_sorted(summary.inception):
            messages.append(SORTED.format(path=samples.path, how="looks sorted by class"))
        return scores, messages

    def score(
        self,
        samples_path: str,
        value_range: str | None = None,
        *,
        features: Iterable[dict[str, np.ndarray]] | None = None,
        sha256: str | None = None,
    ) -> dict[str, Any]:
        """The scores of samples with a record of what was compared with what, ready for JSON.

        Args:
          samples_path: images in a file or a folder.
          value_range: of floating point images; see open_images.
          features: see compare.
          sha256: of the file, where it is known.

        Returns:
          the scores by name; what `identity` says; 'samples', 'samples_sha256', 'samples_range',
          'batch_size', 'devices', and 'warnings', a list of sentences.
        """
        samples = open_images(samples_path, value_range)
        scores, messages = self.compare(samples, features)
        identity = self.identity()
        if not identity["published_inception"]:
            messages.append(
                "The network is not the published Inception file, so these scores cannot be "
                "compared with published ones."
            )
        for message in messages:
            warnings.warn(message, stacklevel=2)
        return {
            **scores.as_dict(),
            **identity,
            "samples": str(samples_path),
            "samples_sha256": sha256 or image_files.sha256(samples_path),
            "samples_range": samples.value_range,
            "batch_size": self.extractor.batch_size,
            "devices": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
            "warnings": messages,
        }


def evaluate_npz(
    samples_path: str,
    reference_path: str,
    inception: InceptionWeights | str,
    *,
    batch_size: int | None = None,
    allow_mismatched: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Scores:
    """Scores images against a reference.

    Args:
      samples_path: images in a file or a folder; see open_images.
      reference_path: the same, or an ADM reference file.
      inception: weights, or the path of their file.
      batch_size: images per step, over all devices; see FeatureExtractor.
      allow_mismatched: see ReferenceScorer.
      progress: called with 'reference' or 'samples', images done, images in all.

    Raises:
      FileNotFoundError, ValueError: one sentence, before long work starts.
    """
    samples = open_images(samples_path)
    check_reference(reference_path)
    if not isinstance(inception, InceptionWeights):
        inception = load_inception(inception)
    extractor = FeatureExtractor(inception, batch_size=batch_size)
    scorer = ReferenceScorer(
        reference_path, extractor, allow_mismatched=allow_mismatched, progress=progress
    )
    scores, messages = scorer.compare(samples)
    for message in messages:
        warnings.warn(message, stacklevel=2)
    return scores


def score_files(
    samples_path: str,
    reference_path: str,
    inception_path: str,
    *,
    inception_sha256: str | None = None,
    inception_cache: str | None = None,
    batch_size: int | None = None,
    allow_mismatched: bool = False,
    value_range: str | None = None,
    reference_value_range: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """`evaluate_npz` with a record of what was compared with what; see `ReferenceScorer.score`.

    Args:
      value_range, reference_value_range: of floating point images; see open_images.
      inception_sha256: hash, or its first digits, that the weights must have.
      inception_cache: npz to keep the converted weights in.
      (others as for `evaluate_npz`)
    """
    # What is wrong with the files is said before the weights are read.
    samples = open_images(samples_path, value_range)
    check_reference(reference_path, reference_value_range)
    if not allow_mismatched:
        check_comparable(samples.shape[1:3], read_note(samples_path), reference_path, samples.path)
    weights = load_inception(inception_path, sha256=inception_sha256, cache=inception_cache)
    scorer = ReferenceScorer(
        reference_path,
        FeatureExtractor(weights, batch_size=batch_size),
        allow_mismatched=allow_mismatched,
        value_range=reference_value_range,
        progress=progress,
    )
    return scorer.score(samples_path, value_range)

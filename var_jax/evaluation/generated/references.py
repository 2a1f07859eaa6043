"""References: reading ADM's files and our own, making them, and refusing those that do not fit.

An ADM reference holds images for precision and recall, beside means and covariances of the whole
data set (`mu`, `sigma`, and `mu_s`, `sigma_s` for sFID); statistics without images serve too, for
FID alone. A reference of ours adds a `note` that says what it was made of.

Scores of reconstructions mean something against the same pictures with the same crop only:
against the statistics of the training set the same tokenizer gets 2.7 where 0.9 is right.

Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), `evaluations/` of guided-diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from var_jax.data.transforms import ImageTransform
from var_jax.evaluation.distances.frechet import GaussianStatistics
from var_jax.evaluation.generated import npz_images
from var_jax.evaluation.generated.npz_images import NpzImages
from var_jax.evaluation.generated.summary import (
    STATISTICS,
    Extractor,
    Summary,
    SummaryBuilder,
    summarise,
)
from var_jax.evaluation.inception.network import FEATURE_SIZES

RECONSTRUCTIONS = "reconstructions"
_ORIGIN = ("source", "split", "crop", "count")
_ALLOW = "or give --allow_mismatched_reference"
Progress = Callable[[str, int, int], None]


def read_reference(
    path: str,
    extractor: Extractor,
    *,
    keep_features: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """A reference file: stored statistics where it has them, features of its images.

    Raises:
      FileNotFoundError, ValueError: one sentence.
    """
    check_reference(path)
    names = npz_images.member_names(path)
    stored = _stored_statistics(path, names, extractor.sizes)
    if npz_images.IMAGES not in names or ("2048" in stored and not keep_features):
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


def check_reference(path: str) -> None:
    """Raises FileNotFoundError or ValueError, one sentence, unless the file is a reference."""
    names = npz_images.member_names(path)
    if npz_images.IMAGES not in names and not {"mu", "sigma"} <= set(names):
        raise ValueError(
            f"{path} is no reference: it has neither images ({npz_images.IMAGES!r}) nor "
            f"statistics ('mu' and 'sigma'), only {', '.join(names) or 'nothing'}."
        )


def check_comparable(
    image_size: tuple[int, int], note: dict[str, Any], reference_path: str, path: str
) -> None:
    """Refuses a reference that the images cannot be compared with.

    Args:
      image_size: height and width of the images.
      note: what is known of them; where `kind` is 'reconstructions' the reference must be made
        of the same source and split with the same crop.
      reference_path: the reference.
      path: of the images, for the sentence.

    Raises:
      ValueError: one sentence.
    """
    size = reference_size(reference_path)
    if size is not None and size != tuple(image_size):
        raise ValueError(
            f"{path} has images of {image_size[0]}x{image_size[1]} px, but the reference "
            f"{reference_path} is of {size[0]}x{size[1]} px; give one of the same size, {_ALLOW}."
        )
    if note.get("kind") != RECONSTRUCTIONS:
        return
    there = npz_images.read_note(reference_path)
    if not there:
        raise ValueError(
            f"{path} holds reconstructions, and {reference_path} does not say what it was made of "
            "(ADM's files are statistics of the training set); compare with identically cropped "
            f"originals, as launch.evaluate_tokenizer does without --reference, {_ALLOW}."
        )
    for name in _ORIGIN:
        if name in note and there.get(name) != note[name]:
            raise ValueError(
                f"{path} holds reconstructions with {name} {note[name]!r}, but "
                f"{reference_path} was made with {name} {there.get(name)!r}; make a reference of "
                f"the same pictures, {_ALLOW}."
            )


def origin(source: str, split: str, transform: ImageTransform) -> dict[str, Any]:
    """Where images come from and how they were cropped, for a note."""
    size = transform.size
    if transform.resize == "pad":
        crop = f"padded to {size}x{size} with {transform.background}"
    else:
        short = round(transform.resize_ratio * size)
        where = "random" if transform.random_crop else "central"
        crop = f"short side to {short} (Lanczos), {where} {size}x{size}"
    if transform.exif_orientation:
        crop = f"upright by EXIF, {crop}"
    return {
        "source": source,
        "split": split,
        "crop": crop,
        "image_size": size,
        "channels": transform.channels,
    }


def reference_size(path: str) -> tuple[int, int] | None:
    """Height and width of a reference's images, or None where it does not say."""
    if npz_images.IMAGES in npz_images.member_names(path):
        return NpzImages(path).shape[1:3]
    size = npz_images.read_note(path).get("image_size")
    return None if size is None else (int(size), int(size))


def write_reference(
    path: str,
    summary: Summary,
    images: Iterable[np.ndarray],
    count: int,
    note: dict[str, Any] | None = None,
) -> None:
    """Writes an ADM reference: the statistics of `summary` beside `count` of the images."""
    if summary.pool is None or summary.spatial is None:
        raise ValueError("A reference needs the pooled and the spatial statistics.")
    npz_images.write_images(path, images, count, **_statistics_arrays(summary, note))


def make_reference(
    path: str,
    batches: Iterable[np.ndarray],
    total: int,
    note: dict[str, Any],
    extractor: Extractor | None,
    *,
    max_images: int = 10_000,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Makes a reference of a data source: statistics of all images, and some images.

    Args:
      path: npz to write; complete or absent, never half written.
      batches: uint8 [n, H, W, c], cropped as for evaluation.
      total: how many images are expected, for the choice of the kept ones and the progress.
      note: `source`, `split`, `crop`, `image_size`, and whatever else is worth knowing.
      extractor: for the statistics; None keeps all images and no statistics.
      max_images: images that are kept beside statistics, evenly spread over the source.

    Returns:
      the note as written, with `count` (images in the statistics) and `images` (kept).

    Raises:
      ValueError: fewer than two images.
    """
    kept = min(total, max_images) if extractor is not None else total
    wanted = np.zeros(total, bool)
    wanted[np.arange(kept) * total // max(kept, 1)] = True
    builder = None if extractor is None else SummaryBuilder(extractor.sizes, keep_features=False)
    with npz_images.ImageSpool(path) as spool:
        count = 0

        def selected() -> Iterable[np.ndarray]:
            nonlocal count
            for batch in batches:
                spool.append(batch[wanted[count : count + len(batch)]])
                count += len(batch)
                progress("reference", count, total)
                yield npz_images.as_rgb(batch)

        if extractor is None:
            for _ in selected():
                pass
        else:
            for features in extractor.stream(selected()):
                builder.update(features)
        note = {**note, "kind": "reference", "count": count, "images": spool.count}
        if count < 2:
            raise ValueError(f"A reference needs at least 2 images, and there are {count}.")
        arrays = _statistics_arrays(builder.summary() if builder else Summary(count=0), note)
        spool.finish(**arrays)
    return note


def _statistics_arrays(summary: Summary, note: dict[str, Any] | None) -> dict[str, np.ndarray]:
    arrays = {}
    for names, found in zip(STATISTICS.values(), (summary.pool, summary.spatial), strict=True):
        if found is not None:
            arrays.update(zip(names, (found.mean, found.covariance), strict=True))
    if note:
        arrays["note"] = npz_images.note_array(note)
    return arrays


def _stored_statistics(
    path: str, names: list[str], sizes: dict[str, int]
) -> dict[str, GaussianStatistics]:
    found = {}
    for feature, (mean_name, covariance_name) in STATISTICS.items():
        if mean_name not in names or covariance_name not in names:
            continue
        mean = npz_images.read_array(path, mean_name).astype(np.float64)
        covariance = npz_images.read_array(path, covariance_name).astype(np.float64)
        size = sizes.get(feature, FEATURE_SIZES[feature])
        if mean.shape != (size,) or covariance.shape != (size, size):
            raise ValueError(
                f"{path} has statistics {mean_name} {list(mean.shape)} and {covariance_name} "
                f"{list(covariance.shape)}; [{size}] and [{size}, {size}] are due."
            )
        found[feature] = GaussianStatistics(0, mean, covariance)
    if "spatial" in found and "2048" not in found:
        raise ValueError(f"{path} has 'mu_s' without 'mu'; it is no complete reference.")
    return found

"""References: reading ADM's files and our own, making them, and refusing those that do not fit.

An ADM reference holds images for precision and recall, beside means and covariances of the whole
data set (`mu`, `sigma`, and `mu_s`, `sigma_s` for sFID); statistics without images serve too, for
FID alone, also under TTUR's names `m` and `s`. A reference of ours adds a `note` that says what it
was made of.

Scores of reconstructions mean something against the same pictures with the same crop only:
against the statistics of the training set the same tokenizer gets 2.7 where 0.9 is right.

Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), `evaluations/` of guided-diffusion.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from etils import epath

from var_jax.data.transforms import ImageTransform
from var_jax.evaluation import array_files
from var_jax.evaluation.distances.frechet import GaussianStatistics
from var_jax.evaluation.generated import image_files, npz_images
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
_TTUR = ("m", "s")
_ALLOW = "or give --allow_mismatched_reference"
Progress = Callable[[str, int, int], None]


def read_reference(
    path: str,
    extractor: Extractor,
    *,
    keep_features: bool = True,
    value_range: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """A reference: stored statistics where it has them, features of its images.

    Raises:
      FileNotFoundError, ValueError: one sentence.
    """
    stored = _stored_statistics(path)
    for feature, found in stored.items():
        size = extractor.sizes.get(feature, FEATURE_SIZES[feature])
        if found.mean.shape != (size,):
            raise ValueError(
                f"{path} has statistics {STATISTICS[feature][0]} [{len(found.mean)}], where "
                f"[{size}] is due."
            )
    if stored and (not _has_images(path) or ("2048" in stored and not keep_features)):
        return Summary(count=0, pool=stored["2048"], spatial=stored.get("spatial"))
    images = _open_images(path, value_range)
    summary = summarise(
        images.batches(extractor.batch_size),
        extractor,
        keep_features=keep_features,
        on_batch=lambda done: progress("reference", done, len(images)),
    )
    return dataclasses.replace(
        summary,
        pool=stored.get("2048", summary.pool),
        # Statistics of two different sets of images never stand side by side.
        spatial=stored.get("spatial") if stored else summary.spatial,
    )


def check_reference(path: str, value_range: str | None = None) -> None:
    """Raises FileNotFoundError or ValueError, one sentence, unless the path is a reference."""
    if not _stored_statistics(path) or _has_images(path):
        _open_images(path, value_range)


def _open_images(path: str, value_range: str | None) -> image_files.Images:
    return image_files.open_images(path, value_range, flag="--reference_value_range")


def _has_images(path: str) -> bool:
    return epath.Path(path).is_dir() or any(
        name in image_files.NAMES for name in array_files.array_names(path)
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


def reference_size(path: str) -> tuple[int, ...] | None:
    """Height and width of a reference's images, or None where it does not say."""
    if epath.Path(path).is_dir():
        return image_files.open_images(path).shape[1:3]
    if _has_images(path):
        with array_files.open_array(path, image_files.image_name(path)) as array:
            return array.shape[1:3]
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


def _stored_statistics(path: str) -> dict[str, GaussianStatistics]:
    """The statistics of a file, none for a folder or a file without any.

    Raises:
      ValueError: they are not whole, or no means and covariances.
    """
    if epath.Path(path).is_dir():
        return {}
    names = array_files.array_names(path)
    if not _has_images(path) and not {*itertools.chain(*STATISTICS.values()), *_TTUR} & set(names):
        raise ValueError(
            f"{path} is no reference: it has neither images ('arr_0' or 'images') nor statistics "
            f"('mu' and 'sigma'), only {', '.join(names) or 'nothing'}."
        )
    found = {}
    for feature, pair in STATISTICS.items():
        if feature == "2048" and not set(pair) & set(names):
            pair = _TTUR
        there = [name for name in pair if name in names]
        if len(there) == 1:
            raise ValueError(
                f"{path} has {there[0]!r} without {(set(pair) - set(there)).pop()!r}; it is no "
                "complete reference."
            )
        if there:
            found[feature] = _read_gaussian(path, *pair)
    if "spatial" in found and "2048" not in found:
        raise ValueError(f"{path} has 'mu_s' without 'mu'; it is no complete reference.")
    return found


def _read_gaussian(path: str, mean_name: str, covariance_name: str) -> GaussianStatistics:
    mean = array_files.read_array(path, mean_name)
    covariance = array_files.read_array(path, covariance_name)
    size = len(mean) if mean.ndim == 1 else 0
    if not size or covariance.shape != (size, size):
        raise ValueError(
            f"{path} has statistics {mean_name} {list(mean.shape)} and {covariance_name} "
            f"{list(covariance.shape)}; [n] and [n, n] are due."
        )
    for name, array in ((mean_name, mean), (covariance_name, covariance)):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ValueError(
                f"{path} has statistics {name} of {array.dtype} with values that are no finite "
                "numbers; make them again."
            )
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    slack = 1e-4 * np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > slack or covariance.diagonal().min() < -slack:
        raise ValueError(
            f"{path} has a {covariance_name} that is no covariance: it is not symmetric, or a "
            "variance is negative; make it again."
        )
    return GaussianStatistics(0, mean, covariance)

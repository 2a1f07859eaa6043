"""Writing a split of pictures as shards, so that an interrupted run goes on where it was."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

from absl import logging
from etils import epath
from PIL import Image

from var_jax.data import reading, shards
from var_jax.data.decode import (
    ORIENTATION,
    UPRIGHT,
    UnreadableImage,
    open_picture,
    orientation,
    to_eight_bits,
)
from var_jax.paths import write_json

#: At most so many shards per split: a reader keeps each one open, and the usual limit is 1,024 open
#: files per process.
MAX_SHARDS = 256

#: (picture, label, name); None for a picture that cannot be read.
Record = tuple[bytes | None, int, str]
#: One shard to write: its number, and a function that yields its records.
Job = tuple[int, Callable[[], Iterator[Record]]]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures of a split, listed but not yet read.

    Attributes:
      class_names: in label order.
      jobs: one per shard.
      identity: of which pictures these are: the same for the same names and labels, and in an
        archive sizes.
    """

    class_names: list[str]
    jobs: list[Job]
    identity: str


def identity(values: Iterable[Any]) -> str:
    """A digest of what can be printed."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode() + b"\n")
    return digest.hexdigest()[:16]


def shard_jobs(parts: Sequence[Callable[[], Iterator[Record]]]) -> list[Job]:
    """Jobs for the parts of a split, such as its classes; many parts share shards."""
    count = min(MAX_SHARDS, len(parts))
    bounds = [n * len(parts) // count for n in range(count + 1)]
    return [
        (n, functools.partial(_chain, tuple(parts[low:high])))
        for n, (low, high) in enumerate(itertools.pairwise(bounds))
    ]


def _chain(parts: Sequence[Callable[[], Iterator[Record]]]) -> Iterator[Record]:
    for read in parts:
        yield from read()


@dataclasses.dataclass(frozen=True)
class Resize:
    """Makes stored pictures smaller: short side to `side` px (Lanczos), JPEG of `quality`.

    Files that are small enough already are kept as they are. An average ImageNet picture of
    500x375 px has 1.7 times the pixels to decode that it has at 288 px (1.125 * 256), but the
    second JPEG compression changes pixels a little, so it is a choice and not the default.
    """

    side: int
    quality: int = 95

    def __call__(self, data: bytes, name: str) -> bytes:
        """The smaller file; a file that cannot be decoded comes back unchanged.

        Its camera's orientation is kept, and so is transparency (as PNG).
        """
        try:
            image = open_picture(data)
            scale = self.side / min(image.size)
            if scale >= 1:
                return data
            turned = orientation(image)
            image = to_eight_bits(image)
            kind = "PNG" if image.has_transparency_data else "JPEG"
            size = tuple(max(self.side, int(n * scale)) for n in image.size)
            image = image.convert("RGBA" if kind == "PNG" else "RGB")
            image = image.resize(size, Image.Resampling.LANCZOS)
            options = {}
            if turned != UPRIGHT:
                options["exif"] = Image.Exif()
                options["exif"][ORIENTATION] = turned
            out = io.BytesIO()
            image.save(out, kind, quality=self.quality, **options)
        except Exception as error:  # Pillow raises many kinds; the pipeline will skip the file.
            reason = str(error) if isinstance(error, UnreadableImage) else repr(error)
            logging.warning("%s is kept as it is, since it cannot be decoded: %s.", name, reason)
            return data
        return out.getvalue()


def write_split(
    directory: epath.PathLike,
    split: str,
    pictures: Pictures,
    class_names: Sequence[str],
    *,
    resize: Resize | None = None,
    num_threads: int = 1,
    report: Callable[[str], None] = logging.info,
) -> dict[str, Any]:
    """Writes one split's shards and its table of contents; finished shards are kept.

    Args:
      directory: the split's directory, local or gs://.
      split: 'train' or 'val'; the shards' prefix.
      pictures: what to write.
      class_names: in label order, for people.
      resize: makes the pictures smaller first.
      num_threads: shards written at the same time.
      report: called with a line of progress after each shard.

    Returns:
      The table of contents.

    Raises:
      ValueError: the directory was begun with something else, or too much cannot be read.
    """
    jobs = pictures.jobs
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "split": split,
        "classes": list(class_names),
        "shards": len(jobs),
        "pictures": pictures.identity,
        "resize": None if resize is None else dataclasses.asdict(resize),
    }
    path = directory / "settings.json"
    if path.exists():
        if shards.read_json(path) != settings:
            raise ValueError(
                f"{directory} was begun with other settings or another data set; delete it or "
                "choose another output directory."
            )
    else:
        write_json(path, settings)
    start = time.perf_counter()
    done = []

    def write(job: Job) -> dict[str, Any]:
        number, read = job
        name = shards.shard_name(split, number, len(jobs))
        entry = shards.finished(directory / name)
        if entry is not None and not entry["skipped"]:
            return entry
        labels: set[int] = set()
        skipped: list[str] = []

        def records() -> Iterator[bytes]:
            for image, label, original in read():
                if image is None:
                    skipped.append(original)
                    continue
                labels.add(int(label))
                image = resize(image, original) if resize else image
                yield shards.pack_image(image, label, original)

        entry = shards.write_shard(directory / name, records(), compress=False)
        entry.update(labels=sorted(labels), skipped=skipped)
        write_json(shards.entry_path(directory / name), entry)
        done.append(entry["records"])
        return entry

    entries = []
    with futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
        for entry in pool.map(write, jobs):
            entries.append(entry)
            seconds = time.perf_counter() - start
            left = seconds / max(1, len(done)) * (len(jobs) - len(entries)) / 60
            rate = sum(done) / seconds
            report(
                f"{split}: {len(entries)} of {len(jobs)} shards, "
                f"{sum(e['records'] for e in entries):,} images, {rate:,.0f} images/s, "
                f"{left:.1f} min left"
            )
    skipped = [name for entry in entries for name in entry["skipped"]]
    check_skipped(skipped, sum(entry["records"] for entry in entries) + len(skipped))
    table = {
        "kind": "images",
        "split": split,
        "class_names": list(class_names),
        "labels": sorted({label for entry in entries for label in entry["labels"]}),
        "skipped": skipped,
        "shards": [{k: entry[k] for k in ("file", "records", "bytes")} for entry in entries],
    }
    write_json(directory / shards.METADATA, table)
    for entry in entries:
        shards.entry_path(directory / entry["file"]).unlink(missing_ok=True)
    return table


def check_skipped(skipped: Sequence[str], total: int) -> None:
    """Raises BrokenData if too many of `total` pictures cannot be read."""
    if len(skipped) > reading.allowed(total):
        raise reading.BrokenData(
            f"{len(skipped)} of {total} pictures cannot be read, the last one {skipped[-1]}; mend "
            "the data set and run the command again (it goes on where it was)."
        )

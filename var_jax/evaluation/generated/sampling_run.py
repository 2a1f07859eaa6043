"""Images drawn for scoring: balanced labels, parts that survive a killed run, one npz at the end.

Sample i depends on the seed, its label and i only. The labels are a seeded permutation of equally
many of each class, so that the file in the order of i is shuffled already: a score over chunks of
consecutive images sees all classes, and writing needs no second pass over 10 GB.

A folder of samples holds `settings.json` (what the images depend on), `parts/` while it grows,
then `samples.npz` with `arr_0` (uint8 NHWC), `labels` and `note`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from var_jax.decoding import guidance
from var_jax.decoding.base import Decoder
from var_jax.decoding.next_scale import NextScale
from var_jax.evaluation.generated import npz_images
from var_jax.evaluation.progress import Progress
from var_jax.heads.categorical import CategoricalSampling
from var_jax.paths import replacing, write_json
from var_jax.pyramid import ScalePyramid

PART_SIZE = 500
ROUNDING = "uint8 = floor(255 (x + 1) / 2 + 0.5), clipped to 0..255, of the decoder's x in [-1, 1]"
#: The published FID protocol of VAR, for all depths (README of FoundationVision/VAR).
PAPER_NUM_SAMPLES = 50_000
PAPER_SAMPLING = {
    "cfg": 1.5,
    "cfg_schedule": "linear",
    "top_k": 900,
    "top_p": 0.96,
    "temperature": 1.0,
    "smooth": False,
}
_MIX = "(1+t) cond - t uncond"
_CONVENTIONS = {
    guidance.LinearGuidance: f"{_MIX}, t = cfg*k/(K-1)",
    guidance.ConstantGuidance: f"{_MIX}, t = cfg",
    guidance.PerLevelGuidance: f"{_MIX}, t given for each level",
}
#: start, stop -> the images start .. stop - 1 in batches, uint8 [n, H, W, c], each with features
#: [n, size] by name, of which there may be none.
DrawPart = Callable[[int, int], Iterable[tuple[np.ndarray, dict[str, np.ndarray]]]]


def balanced_labels(num_samples: int, num_classes: int, seed: int) -> np.ndarray:
    """Labels int32 [num_samples] in 0..num_classes - 1, in an order that the seed shuffles.

    Each class comes num_samples / num_classes times; where that is no whole number, the first
    classes once more than the others.
    """
    # Raw words and a stable sort: the same for every version of NumPy.
    key = np.random.SeedSequence((seed, num_samples)).generate_state(2, np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(num_samples), kind="stable")
    return (np.arange(num_samples) % num_classes).astype(np.int32)[order]


def describe_decoder(
    decoder: Decoder, pyramid: ScalePyramid, fingerprints: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The settings of a decoder at each level, ready for JSON.

    Args:
      decoder: settings, and modules that it holds; it may have a pyramid of its own.
      pyramid: of the transformer.
      fingerprints: of the parameters of those modules, by field.
    """
    pyramid = getattr(decoder, "pyramid", None) or pyramid
    levels = range(pyramid.num_levels)
    by_level = [decoder.sampling.at(k, pyramid) for k in levels]
    rule = decoder.guidance
    found = {
        "guidance_convention": _CONVENTIONS.get(type(rule), _MIX),
        "cfg": getattr(rule, "cfg", None),
        "guidance_by_level": [float(rule.weight(k, pyramid)) for k in levels],
        "level_shapes": [list(shape) for shape in pyramid.shapes],
    }
    if isinstance(rule, guidance.LooksBack):
        found["guidance"] = repr(rule)
    for field in dataclasses.fields(by_level[0]):
        if field.name not in ("level", "pyramid", "processors"):
            values = [getattr(settings, field.name) for settings in by_level]
            found[f"{field.name}_by_level"] = values
    # What the plain decoder has too is said above.
    others = {
        field.name: (fingerprints or {}).get(field.name) or repr(getattr(decoder, field.name))
        for field in dataclasses.fields(decoder)
        if field.name not in ("guidance", "sampling", "pyramid")
        and getattr(decoder, field.name) is not None
    }
    processors = [repr(p) for p in getattr(decoder.sampling, "processors", ())]
    if type(decoder) is not NextScale or others or processors:
        kind = type(decoder).__name__
        found["decoder"] = {"kind": kind, **others, "processors": processors}
    return found


def paper_protocol(pyramid: ScalePyramid) -> dict[str, Any]:
    """What `describe_decoder` says under the published protocol, and its number of samples."""
    values = dict(PAPER_SAMPLING)
    rule = guidance.LinearGuidance(values.pop("cfg"))
    values.pop("cfg_schedule", None)
    decoder = NextScale(rule, CategoricalSampling(**values))
    return {**describe_decoder(decoder, pyramid), "num_samples": PAPER_NUM_SAMPLES}


def changes_of(used: dict[str, Any], protocol: dict[str, Any]) -> dict[str, Any]:
    """Where settings differ from a protocol: name -> {'protocol': value, 'used': value}."""
    return {
        name: {"protocol": value, "used": used[name]}
        for name, value in protocol.items()
        if used[name] != value
    }


def digest(settings: dict[str, Any]) -> str:
    """SHA-256 of settings, whatever the order of their names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class SampleFiles:
    """The samples of one setting in a folder.

    Every process of a run makes one and calls it alike. All of them draw each part together;
    process p of P writes the parts p, p + P, ...

    Args:
      folder: local or gs:// folder, seen by all processes.
      labels: int [N], of all samples.
      settings: everything the images depend on, ready for JSON. They must be those that the
        folder was begun with.
      part_size: images a part; a folder that was begun keeps its own.
      features_of: names what the features of the samples depend on; others are not taken for them.
      process_index, process_count: those of the run by default.

    Raises:
      ValueError: the folder holds samples of other settings.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        labels: np.ndarray,
        settings: dict[str, Any],
        *,
        part_size: int = PART_SIZE,
        features_of: str = "",
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> None:
        self.folder = epath.Path(folder)
        self.labels, self._features_of = np.asarray(labels, np.int32), features_of
        # As JSON gives it back: tuples are lists there.
        self.settings = json.loads(json.dumps(settings))
        self.sha256 = digest(self.settings)
        self._process = jax.process_index() if process_index is None else process_index
        self._processes = jax.process_count() if process_count is None else process_count
        begun = self.folder / "settings.json"
        if not begun.exists() and self._process == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            identity = {"settings_sha256": self.sha256, "part_size": part_size}
            write_json(begun, {**identity, "settings": self.settings})
        self.barrier("settings")
        record = read_json(begun)
        if record.get("settings_sha256") != self.sha256:
            difference = _difference(record.get("settings", {}), self.settings)
            raise ValueError(
                f"{self.folder} holds samples of other settings ({difference}); give another "
                "--output, or delete that folder."
            )
        self.part_size = int(record["part_size"])
        self.path = self.folder / "samples.npz"
        self._parts = self.folder / "parts"

    @property
    def complete(self) -> bool:
        """Whether samples.npz is there."""
        return self.path.exists()

    @property
    def num_parts(self) -> int:
        """Parts of the whole run."""
        return -(-len(self.labels) // self.part_size)

    def missing(self) -> list[int]:
        """The parts that are to be drawn still, as process 0 sees it."""
        there = [self._part(part).exists() for part in range(self.num_parts)]
        if jax.process_count() > 1:
            there = multihost_utils.broadcast_one_to_all(np.array(there, np.int32))
        return [part for part in range(self.num_parts) if not there[part]]

    def draw(
        self, draw_part: DrawPart, should_stop: Callable[[int], bool] = lambda part: False
    ) -> bool:
        """Draws the missing parts, each written whole or not at all.

        Args:
          draw_part: draws the samples start .. stop - 1.
          should_stop: asked after each part, equally often on all processes; then no more are
            drawn.

        Returns:
          whether all parts are there.
        """
        if self.complete:
            return True
        self._parts.mkdir(parents=True, exist_ok=True)
        missing = self.missing()
        total = sum(stop - start for start, stop in map(self.bounds, missing))
        progress = Progress("samples", total, show=self._process == 0)
        for number, part in enumerate(missing):
            images, features = [], []
            for batch, found in draw_part(*self.bounds(part)):
                images.append(batch)
                features.append(found)
                progress.add(len(batch))
            if part % self._processes == self._process:
                names = features[0]
                if names:  # First: a part that is there has its features.
                    joined = {n: np.concatenate([f[n] for f in features]) for n in names}
                    with replacing(self._features(part)) as file:
                        np.savez(file, **joined)
                self._write(part, np.concatenate(images))
            if should_stop(number) and number + 1 < len(missing):
                return False
        self.barrier("drawn")
        return True

    def features(self, sizes: dict[str, int]) -> Iterator[dict[str, np.ndarray]] | None:
        """The features of all samples in order, a part at a time; None unless all are there.

        Args:
          sizes: length of each feature by name.
        """
        paths = [self._features(part) for part in range(self.num_parts)]
        if not all(path.exists() for path in paths):
            return None

        def read() -> Iterator[dict[str, np.ndarray]]:
            for part, path in enumerate(paths):
                start, stop = self.bounds(part)
                try:
                    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                        found = {name: archive[name] for name in sizes}
                except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                    raise ValueError(
                        f"The features {path} cannot be read ({error}); delete them and run again."
                    ) from error
                for name, size in sizes.items():
                    if found[name].shape != (stop - start, size):
                        raise ValueError(
                            f"The features {name} in {path} have the shape "
                            f"{list(found[name].shape)} where {[stop - start, size]} is due; "
                            "delete them and run again."
                        )
                yield found

        return read()

    def finish(self) -> epath.Path:
        """Joins the parts in samples.npz, on process 0.

        Raises:
          ValueError: a part is damaged.
        """
        if self._process == 0 and not self.complete:
            note = {"kind": "samples", "settings_sha256": self.sha256}
            npz_images.write_images(
                self.path,
                self._images(),
                len(self.labels),
                labels=self.labels,
                note=npz_images.note_array(note),
            )
        self.barrier("joined")
        return self.path

    def discard_parts(self) -> None:
        """Removes what samples.npz and the scores were made of; on one process."""
        if self._parts.exists():
            self._parts.rmtree()

    def bounds(self, part: int) -> tuple[int, int]:
        """The numbers of a part's first sample and of the one after its last."""
        start = part * self.part_size
        return start, min(start + self.part_size, len(self.labels))

    def barrier(self, name: str) -> None:
        """Waits for all processes of the run."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{self.folder} {name}")

    def _part(self, part: int) -> epath.Path:
        return self._parts / f"{part:06d}.npy"

    def _features(self, part: int) -> epath.Path:
        return self._parts / f"{part:06d}.features-{self._features_of}.npz"

    def _write(self, part: int, images: np.ndarray) -> None:
        start, stop = self.bounds(part)
        if images.dtype != np.uint8 or len(images) != stop - start:
            raise ValueError(
                f"Part {part} came as {images.dtype} {list(images.shape)}; {stop - start} images "
                "of uint8 are due."
            )
        with replacing(self._part(part)) as file:
            np.save(file, images)

    def _images(self) -> Iterator[np.ndarray]:
        for part in range(self.num_parts):
            start, stop = self.bounds(part)
            path = self._part(part)
            try:
                with path.open("rb") as file:
                    images = np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(
                    f"The part {path} cannot be read ({error}); delete it and run again."
                ) from error
            if len(images) != stop - start:
                raise ValueError(
                    f"The part {path} has {len(images)} images where {stop - start} are due; "
                    "delete it and run again."
                )
            yield images


def read_json(path: epath.Path) -> dict[str, Any]:
    """An object in a JSON file; empty where the file is none."""
    try:
        value = json.loads(path.read_text())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The first setting that differs, in words."""
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name), here.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return f"{name}: {_difference(old, new)}"
        return f"{name} {_short(old)} there, {_short(new)} here"
    return "in a way that this version does not know"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

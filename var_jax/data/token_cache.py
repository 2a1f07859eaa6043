"""Token maps on disk, so that transformer training reads no pixels and runs no tokenizer.

A cache is a directory of ArrayRecord shards: one record for each sample, that is each crop of
each image, of an int32 label and what the tokenizer's codec calls the source of its lessons: L
tokens (uint16 if the vocabulary allows it, else int32), or bits or features; little endian. Behind
them stand all captions of the image, where it has some.
`settings.json` says from the start what the cache is made of; `metadata.json`, written last, makes
it complete. An interrupted writer resumes after the last finished shard, and a cache without its
table is never read.

The augmentation of a cache is fixed: with C crops an image, epoch e of training reads crop
(image + e) mod C, so C epochs see every crop once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from var_jax.data import captions as caption_bytes
from var_jax.data import shards
from var_jax.fields import Field
from var_jax.paths import write_json
from var_jax.pyramid import ScalePyramid

SETTINGS = "settings.json"
_MADE_BY = "python -m launch.cache_tokens"


@dataclasses.dataclass(frozen=True)
class TokenCacheSettings:
    """What a token cache is made of.

    Attributes:
      fingerprint: of the tokenizer's parameters, as checkpoint.fingerprint gives it.
      shapes: (height, width) of each level of the pyramid.
      field: what a sample holds beside its label.
      num_images: images of the source.
      crops: crops of each image, C; sample s is crop s % C of image s // C.
      class_names: in label order.
      source: the data source's name and split, for the reader's information.
      image_size: pixels of a side of the encoded crops.
      seed: seed of the crops.
      extra: anything else worth keeping (JSON), e.g. the transform's settings.
      captions: whether samples hold the captions of their images.
    """

    fingerprint: str
    shapes: tuple[tuple[int, int], ...]
    field: Field
    num_images: int
    crops: int
    class_names: tuple[str, ...]
    source: str
    image_size: int
    seed: int
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    captions: bool = False

    def __post_init__(self) -> None:
        for name in ("num_images", "crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        object.__setattr__(self, "shapes", tuple(tuple(int(n) for n in s) for s in self.shapes))
        object.__setattr__(self, "class_names", tuple(self.class_names))

    @property
    def pyramid(self) -> ScalePyramid:
        """The pyramid that the tokens belong to."""
        return ScalePyramid(self.shapes)

    @property
    def num_samples(self) -> int:
        """Records of the finished cache."""
        return self.num_images * self.crops

    @property
    def dtype(self) -> np.dtype:
        """Type of a number on disk."""
        return self.field.stored_dtype

    def to_json(self) -> dict[str, Any]:
        """The settings with JSON's types only."""
        values, count = dataclasses.asdict(self), self.field.num_values
        if count and self.field == token_field(self.shapes, count):
            # As caches said it when they held nothing but tokens.
            values["vocab_size"] = values.pop("field")["num_values"]
        if not self.captions:  # As caches said it before there were any.
            del values["captions"]
        return json.loads(json.dumps(values))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TokenCacheSettings:
        """The inverse of `to_json`."""
        if "field" in values:
            field = values["field"]
            field = Field(**{**field, "shape": tuple(field["shape"])})
        else:
            field = token_field(values["shapes"], values["vocab_size"])
        rest = {name: values[name] for name in _KEYS}
        return cls(field=field, captions=values.get("captions", False), **rest)


#: What every table of contents says.
_KEYS = [
    f.name for f in dataclasses.fields(TokenCacheSettings) if f.name not in ("field", "captions")
]


class TokenCacheWriter:
    """Writes a token cache shard by shard; after an interruption it goes on where it was.

        writer = TokenCacheWriter(directory, settings)
        pipeline = Pipeline(source, transform, B, train=False, passes=settings.crops, seed=...)
        for batch in pipeline.batches(start_step=writer.next_sample // B):
            writer.write(encode(batch["image"]), batch["label"], batch["index"])
        writer.close()

    Only one process may write; on several hosts, gather the tokens and let process 0 write.

    Args:
      directory: local or gs:// directory; made if it is not there.
      settings: what the cache is made of.
      shard_size: samples of a shard. At most one shard is computed again after an interruption.

    Raises:
      ValueError: the directory holds a cache with other settings.
    """

    def __init__(
        self, directory: epath.PathLike, settings: TokenCacheSettings, shard_size: int = 16384
    ) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}.")
        self.directory = epath.Path(directory)
        self.settings = settings
        self.directory.mkdir(parents=True, exist_ok=True)
        values = {**settings.to_json(), "shard_size": shard_size}
        path = self.directory / SETTINGS
        if path.exists():
            there = shards.read_json(path)
            differing = [k for k in values if there.get(k) != values[k]]
            if differing:
                key = differing[0]
                raise ValueError(
                    f"{self.directory} holds a token cache with another {key} "
                    f"({_short(there.get(key))}, now {_short(values[key])}); delete it or choose "
                    "another directory."
                )
        else:
            write_json(path, values)
        self._shard_size = shard_size
        self._num_shards = -(-settings.num_samples // shard_size)
        self._done: list[dict[str, Any]] = []
        self._buffer: list[bytes] = []
        if self.complete:
            self._next = settings.num_samples
            return
        for number in range(self._num_shards):
            entry = shards.finished(self.directory / self._name(number))
            if entry is None:
                break
            self._done.append(entry)
        self._next = sum(entry["records"] for entry in self._done)

    @property
    def complete(self) -> bool:
        """Whether the whole cache has been written."""
        return (self.directory / shards.METADATA).exists()

    @property
    def next_sample(self) -> int:
        """The first sample that is still to be written."""
        return self._next

    def _name(self, number: int) -> str:
        return shards.shard_name("tokens", number, self._num_shards)

    def write(
        self,
        tokens: np.ndarray,
        labels: np.ndarray,
        index: np.ndarray,
        captions: np.ndarray | None = None,
    ) -> None:
        """Appends a batch; samples that are written already or lie past the end are passed over.

        Args:
          tokens: [b, ...], as the settings' field describes them: integers [b, L] in [0, V).
          labels: integers [b].
          index: int64 [b], the global sample numbers, consecutive.
          captions: uint8 [b, M, T], see `captions`; those that are empty are none. None where the
            settings say so.

        Raises:
          ValueError: wrong shape, a token or label out of range, or a gap in the numbers.
        """
        tokens, labels, index = (np.asarray(x) for x in (tokens, labels, index))
        if not len(tokens) == len(labels) == len(index):
            raise ValueError(
                f"{len(tokens)} samples came with {len(labels)} labels and {len(index)} numbers."
            )
        if (captions is not None) != self.settings.captions:
            raise ValueError("Captions come with every sample of a cache that holds some.")
        self.settings.field.check(tokens)
        classes = len(self.settings.class_names)
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(
                f"Labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}."
            )
        packed = np.ascontiguousarray(tokens.astype(self.settings.dtype))
        heads = labels.astype("<i4")
        none = [b""] * len(index)
        tails = none if captions is None else [caption_bytes.pack(x) for x in captions]
        for row, head, sample, tail in zip(packed, heads, index, tails, strict=True):
            if sample < self._next or sample >= self.settings.num_samples:
                continue
            if sample != self._next:
                raise ValueError(
                    f"Sample {sample} came where sample {self._next} was due; write the samples in "
                    "order."
                )
            self._buffer.append(head.tobytes() + row.tobytes() + tail)
            self._next += 1
            full = len(self._buffer) == self._shard_size
            if full or self._next == self.settings.num_samples:
                self._flush()

    def _flush(self) -> None:
        name = self._name(len(self._done))
        entry = shards.write_shard(self.directory / name, self._buffer, compress=True)
        labels = np.frombuffer(b"".join(r[:4] for r in self._buffer), "<i4")
        entry["labels"] = np.unique(labels).tolist()
        write_json(shards.entry_path(self.directory / name), entry)
        self._done.append(entry)
        self._buffer = []

    def close(self) -> None:
        """Writes the table of contents, which makes the cache complete.

        Raises:
          ValueError: samples are missing.
        """
        if self.complete:
            return
        if self._next != self.settings.num_samples:
            raise ValueError(
                f"The cache holds {self._next} of {self.settings.num_samples} samples; write "
                "the others before closing it."
            )
        write_json(
            self.directory / shards.METADATA,
            {
                "kind": "tokens",
                **self.settings.to_json(),
                "labels": sorted({label for entry in self._done for label in entry["labels"]}),
                "shards": [
                    {k: entry[k] for k in ("file", "records", "bytes")} for entry in self._done
                ],
            },
        )
        for number in range(self._num_shards):
            shards.entry_path(self.directory / self._name(number)).unlink(missing_ok=True)


class TokenCache:
    """A finished token cache as a source of {"tokens": uint16 or int32 [L], "label"}, or whatever
    its field is called, and "captions".

    Args:
      directory: local or gs:// directory (then copied to the cache directory once).
      fingerprint: of the tokenizer that will decode the samples; None skips the check.

    Raises:
      FileNotFoundError: no cache, or an unfinished one.
      ValueError: made with another tokenizer, or an incomplete copy.
    """

    channels = 0

    def __init__(self, directory: epath.PathLike, fingerprint: str | None = None) -> None:
        self.directory = os.fspath(directory)
        table = shards.read_table(directory, "tokens", _MADE_BY, _KEYS)
        self.settings = TokenCacheSettings.from_json(table)
        if fingerprint is not None and fingerprint != self.settings.fingerprint:
            raise ValueError(
                f"The token cache {self.directory} was made with the tokenizer "
                f"{self.settings.fingerprint[:12]}, not with this one ({fingerprint[:12]}); cache "
                f"the tokens again with {_MADE_BY}."
            )
        self._data = shards.open_shards(directory, table)
        self._count = math.prod(self.settings.field.shape)
        if len(self._data) != self.settings.num_samples:
            raise ValueError(
                f"The token cache {self.directory} lists {len(self._data)} samples, but "
                f"{self.settings.num_images} images with {self.settings.crops} crops were "
                "announced; make it again."
            )

    @property
    def captioned(self) -> bool:
        """Whether records have captions."""
        return self.settings.captions

    @property
    def variants(self) -> int:
        """Crops an image."""
        return self.settings.crops

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order."""
        return self.settings.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.settings.class_names)

    def __len__(self) -> int:
        return len(self._data)

    def _unpack(self, record: bytes) -> dict[str, Any]:
        field = self.settings.field
        size = 4 + self._count * self.settings.dtype.itemsize
        if len(record) < size or (len(record) > size and not self.captioned):
            raise ValueError(f"a record of {len(record)} bytes is not {self._count} {field.name}")
        label = int.from_bytes(record[:4], "little", signed=True)
        values = np.frombuffer(record, self.settings.dtype, self._count, offset=4)
        found: dict[str, Any] = {field.name: values.reshape(field.shape), "label": label}
        if self.captioned:
            found["captions"] = caption_bytes.unpack(record[size:])
        return found

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._unpack(self._data[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Records of several indices, read together."""
        return [self._unpack(record) for record in self._data.__getitems__(indices)]

    def name(self, index: int) -> str:
        """E.g. 'runs/tokens/train[12]'."""
        return f"{self.directory}[{index}]"


def token_cache(split: str, path: epath.PathLike, fingerprint: str | None = None) -> TokenCache:
    """The cache path/<split>, or `path` itself if it is a cache."""
    root = epath.Path(path)
    directory = root if (root / SETTINGS).exists() else root / split
    return TokenCache(directory, fingerprint)


def token_field(shapes: Sequence[Sequence[int]], vocab_size: int) -> Field:
    """One token in [0, vocab_size) for each cell of the levels."""
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}.")
    return Field("tokens", (sum(h * w for h, w in shapes),), num_values=vocab_size)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."

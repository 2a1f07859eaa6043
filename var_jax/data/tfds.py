"""Any tensorflow-datasets builder as a source, without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from var_jax.data import shards
from var_jax.data.captions import clean


class TfdsSource:
    """A prepared tensorflow-datasets data set, read as encoded bytes through its data source.

    The data set must be stored as ArrayRecord, the random-access format: prepare it once with
    `tfds build imagenet2012 --file_format=array_record`, or with launch.prepare_imagenet.

    Args:
      split: 'train', 'val' (the builder's 'validation' or 'test' if it has no 'val'), or an
        expression such as 'train[:10%]'.
      builder: 'imagenet2012:5.1.0', 'imagenet_resized/64x64', or the directory of a prepared
        builder, such as '/data/imagenet2012/5.1.0'.
      data_dir: where prepared data sets lie; by default $TFDS_DATA_DIR or tfds' own.
      image_key: feature that holds the picture.
      label_key: feature that holds the class, or None for one class 'all'.
      caption_key: feature that holds the captions, a text or a sequence of them; a slash goes into
        a feature, as 'captions/text' of COCO. None reads none.

    Raises:
      FileNotFoundError: nothing prepared there, or not all of it.
      ValueError: an unknown split or feature, or files of another format.
    """

    def __init__(
        self,
        split: str,
        builder: str,
        data_dir: epath.PathLike | None = None,
        image_key: str = "image",
        label_key: str | None = "label",
        caption_key: str | None = None,
    ) -> None:
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ImportError(
                "The source tfds needs the package tensorflow-datasets: pip install "
                "'tensorflow-datasets'."
            ) from error
        name = os.fspath(builder)
        if data_dir is None:
            data_dir = os.environ.get("TFDS_DATA_DIR")
        try:
            if epath.Path(name).is_dir():
                prepared = tfds.builder_from_directory(name)
            else:
                prepared = tfds.builder(name, data_dir=data_dir)
        except (ValueError, OSError, tfds.core.DatasetNotFoundError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"There is no tensorflow-datasets builder {name} (data_dir {data_dir}): {reason}"
            ) from error
        if not prepared.info.splits:
            raise FileNotFoundError(
                f"The data set {name} is not prepared in {prepared.data_dir}; run `tfds build "
                f"{name.split(':')[0]} --file_format=array_record` first."
            )
        file_format = prepared.info.file_format
        if file_format is not None and file_format.value != "array_record":
            raise ValueError(
                f"The data set {name} is stored as {file_format.value}, which has no random "
                "access; prepare it again with --file_format=array_record."
            )
        splits = prepared.info.splits
        if split == "val" and split not in splits:
            split = next((s for s in ("validation", "test") if s in splits), split)
        features = prepared.info.features
        for key in (image_key, label_key):
            if key is not None and key not in features:
                raise ValueError(
                    f"The data set {name} has no feature {key!r}; it has "
                    f"{', '.join(sorted(features))}."
                )
        self._caption_path = tuple(caption_key.split("/")) if caption_key else ()
        self.captioned = caption_key is not None
        if caption_key is not None:
            _check_text(features, self._caption_path, name)
        shape = getattr(features[image_key], "shape", None) or (None, None, 3)
        self.channels = 1 if shape[-1] == 1 else 3
        if label_key is None:
            self.class_names: tuple[str, ...] = ("all",)
        elif getattr(features[label_key], "num_classes", None) is None:
            raise ValueError(
                f"Feature {label_key!r} of {name} has no class table; choose a ClassLabel "
                "feature, or label_key=None for a data set without classes."
            )
        else:
            self.class_names = tuple(features[label_key].names)
        try:
            self._data = prepared.as_data_source(
                split=split, decoders={image_key: tfds.decode.SkipDecoding()}
            )
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"The data set {name} has no split {split!r}; it has {', '.join(splits)}."
            ) from error
        files = splits[split].filepaths
        absent = [file for file in files if not file.exists()]
        if absent:
            raise FileNotFoundError(
                f"{len(absent)} of the {len(files)} files of {name}, split {split!r}, are missing, "
                f"the first one {absent[0]}; copy or prepare the data set again."
            )
        shards.allow_open_files(len(files), name)
        self._image_key = image_key
        self._label_key = label_key
        self._title = f"{prepared.info.full_name}/{split}"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._data)

    def _record(self, example: dict[str, Any]) -> dict[str, Any]:
        image = example[self._image_key]
        label = 0 if self._label_key is None else int(example[self._label_key])
        image = image if isinstance(image, np.ndarray) else bytes(image)
        record: dict[str, Any] = {"image": image, "label": label}
        if self.captioned:
            record["captions"] = _texts(example, self._caption_path, self._title)
        return record

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._record(self._data[index])

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Records of several indices, read together."""
        return [self._record(example) for example in self._data.__getitems__(indices)]

    def name(self, index: int) -> str:
        """E.g. 'imagenet2012/5.1.0/train[12]'."""
        return f"{self._title}[{index}]"


def _check_text(features: Any, path: Sequence[str], name: str) -> None:
    """Raises ValueError if a data set has no texts there."""
    found: Any = features
    for part in path:
        inner = getattr(found, "feature", found)  # Of a sequence.
        keys = list(inner) if hasattr(inner, "keys") else []
        if part not in keys:
            raise ValueError(
                f"The data set {name} has no feature {'/'.join(path)!r}; at {part!r} it has "
                f"{', '.join(sorted(keys)) or 'none'}."
            )
        found = inner[part]
    inner = getattr(found, "feature", found)
    if hasattr(inner, "keys") or not np.issubdtype(inner.np_dtype, np.object_):
        raise ValueError(f"Feature {'/'.join(path)!r} of {name} is no text; choose another.")


def _texts(example: Any, path: Sequence[str], where: str) -> tuple[str, ...]:
    """The texts at a path of an example, empty ones left out."""
    for part in path:
        example = [e[part] for e in example] if isinstance(example, list) else example[part]
    texts = [example] if isinstance(example, str | bytes) else list(example)
    decoded = (text.decode() if isinstance(text, bytes) else str(text) for text in texts)
    return tuple(filter(None, (clean(text, f"A caption of {where}") for text in decoded)))

"""Images and tokens, and batches of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import jax
from ml_collections import ConfigDict

from var_jax.build.modules import held_networks
from var_jax.build.sections import (
    ConfigError,
    Section,
    call,
    opened,
    read,
    read_section,
    tuples,
)
from var_jax.data import captions, sources, transforms
from var_jax.data import pipeline as data_pipeline
from var_jax.data.after_known import AfterKnown
from var_jax.data.token_cache import TokenCacheSettings
from var_jax.fields import Field
from var_jax.parallel import arrays, sharding
from var_jax.paths import resolve
from var_jax.settings import Changeable
from var_jax.text_encoders.encoder import WrittenTokens
from var_jax.transformer.text_features import TextFeatures

#: Options of data sources that name places in a file system.
_PATH_OPTIONS = ("path", "data_dir", "val_labels")
_NOT_OF_IMAGES = (*_PATH_OPTIONS, "captions", "caption_key")
#: All keys that do, beside the networks that a decoder holds.
_PATHS = (
    "tokenizer_checkpoint",
    "token_cache",
    "sample_cache",
    *(f"data.options.{option}" for option in _PATH_OPTIONS),
    "model.conditioner.encoder",
    "train.initial_checkpoint",
    "train.objective.teacher",
    "tokenizer_train.lpips_vgg",
    "tokenizer_train.lpips_linear",
    "evaluation.rfid",
    "evaluation.fid.inception",
    "evaluation.fid.reference",
)


def resolve_paths(config: ConfigDict) -> None:
    """Makes all paths of a config absolute, in the ways that `paths.resolve` knows; '' stays.

    So a run's config means the same when another command reads it from another directory.

    Raises:
      ValueError: one of them is no path.
    """
    held = (f"sampling.decoder.{field}" for field in held_networks(config))
    for name in (*_PATHS, *held):
        *sections, key = name.split(".")
        section = config
        for part in sections:
            section = section.get(part)
            if not isinstance(section, ConfigDict):  # None, or a kind alone.
                section = ConfigDict()
        if section.get(key):
            try:
                section[key] = str(resolve(section[key]))
            except ValueError as error:
                raise ValueError(f"config.{name}: {error}") from None


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """config.data, without the sections options and transform.

    Attributes:
      image_size, channels: of the images that the tokenizer reads.
      source: name of the data source, see `sources.make_source`; '' where a model was converted.
      caption_length: T, bytes of a caption; longer ones are cut. 0 reads none.
      num_workers, num_threads, prefetch: see `Pipeline`.
    """

    image_size: int
    channels: int
    source: str = ""
    caption_length: int = 0
    num_workers: Changeable[int] = 0
    num_threads: Changeable[int] = 4
    prefetch: Changeable[int] = 4


def _options(data: Mapping[str, Any]) -> Section:
    """config.data.options: what the source takes. A data set may move between two runs."""
    try:
        builder = sources.source_builder(data.get("source", ""))
    except ValueError as error:
        raise ConfigError(f"config.data.source: {error}") from None
    return Section((builder,), given=("split",), changeable=_PATH_OPTIONS)


TRANSFORM = Section(
    (transforms.ImageTransform,),
    given=("size", "channels", "random_crop"),
    sections={"affine": Section((transforms.RandomAffine,))},
)
DATA = Section((DataSettings,), sections={"options": _options, "transform": TRANSFORM})


def data_settings(config: ConfigDict) -> DataSettings:
    """The values of config.data."""
    return call(DataSettings, "config.data", read_section(config, "data", DATA))


def source(config: ConfigDict, split: str) -> sources.Source:
    """The images of config.data."""
    data = read_section(config, "data", DATA)
    settings = data_settings(config)
    records = sources.make_source(settings.source, split, **data.get("options", {}))
    if settings.caption_length and not captioned(records):
        raise ConfigError(
            f"config.data.caption_length is {settings.caption_length}, but the pictures of "
            f"{settings.source!r} have no captions; set it to 0, or give a source with captions "
            "(a folder: config.data.options.captions=True)."
        )
    return records


def captioned(records: sources.Source) -> bool:
    """Whether records have captions, see `sources.Source`."""
    return getattr(records, "captioned", False)


def training_source(
    config: ConfigDict, split: str, fingerprint: str, field: Field | None = None
) -> sources.Source:
    """The token cache of config.token_cache if there is one, else the images; their labels after
    those of config.train.known_classes.

    Args:
      config: reads data, token_cache and train.known_classes.
      split: 'train' or 'val'.
      fingerprint: of the tokenizer.
      field: what the codec's lessons start from; None does not ask.

    Raises:
      ValueError: the cache was made by another tokenizer than `fingerprint`, of another split, of
        other images than those of config.data, or holds something else than `field`.
    """
    known = config.get("train", {}).get("known_classes", 0)
    cached = bool(config.get("token_cache", ""))
    records = _cache(config, split, fingerprint, field) if cached else source(config, split)
    return AfterKnown(records, known) if known else records


def _cache(config: ConfigDict, split: str, fingerprint: str, field: Field | None) -> sources.Source:
    """See `training_source`."""
    cache = sources.make_source("tokens", split, path=config.token_cache, fingerprint=fingerprint)
    _check_cache(cache.settings, config, split)
    if data_settings(config).caption_length and not captioned(cache):
        raise ConfigError(
            f"config.data.caption_length is {config.data.caption_length}, but {config.token_cache} "
            "holds no captions; cache the tokens of captioned pictures (python -m "
            "launch.cache_tokens)."
        )
    if field is not None and cache.settings.field != field:
        there = cache.settings.field
        raise ConfigError(
            f"{config.token_cache} holds {there.name} {list(there.shape)} of {there.dtype}, but "
            f"config.tokenizer.codec teaches from {field.name} {list(field.shape)} of "
            f"{field.dtype}; cache the tokens again (python -m launch.cache_tokens)."
        )
    return cache


def cached_from(config: ConfigDict) -> dict[str, Any]:
    """What a token cache says about its images beside their source, as JSON; places and captions
    left out.

    The transform is that of training; whether its random part was at work, the crops say.
    """
    options = read_section(config, "data", DATA).get("options", {})
    return {
        "options": {k: v for k, v in options.items() if k not in _NOT_OF_IMAGES},
        "transform": dataclasses.asdict(transform(config, train=True)),
    }


def _check_cache(settings: TokenCacheSettings, config: ConfigDict, split: str) -> None:
    """Raises ConfigError if a token cache is of other images than config.data describes."""
    there = {"source": settings.source, "image_size": settings.image_size, **settings.extra}
    here = {
        "source": f"{config.data.source}:{split}",
        "image_size": config.data.image_size,
        **cached_from(config),
    }
    here = json.loads(json.dumps(here))
    found = []
    for name in there.keys() & here.keys():
        a, b = there[name], here[name]
        if isinstance(a, dict) and isinstance(b, dict):
            keys = sorted(k for k in {**a, **b} if a.get(k) != b.get(k))
            found += [f"{name}.{k} is {a.get(k)!r} there and {b.get(k)!r} here" for k in keys]
        elif a != b:
            found.append(f"{name} is {a!r} there and {b!r} here")
    if found:
        raise ConfigError(
            f"The tokens in {config.token_cache} are not those of config.data: "
            f"{'; '.join(sorted(found))}; give a cache of this data (python -m "
            "launch.cache_tokens), or the config.data that it was made from."
        )


def data_paths(config: ConfigDict, *, cached: bool) -> list[str]:
    """What of the file system a run reads, so that every host can be asked whether it can.

    Args:
      config: reads data, token_cache, sample_cache, tokenizer_checkpoint, the objective's teacher
        and sampling.decoder.
      cached: a transformer's run, which reads config.token_cache in place of the images, if there
        is one, and draws samples.
    """
    places = [config.data.options.get(key) for key in _PATH_OPTIONS]
    if cached:
        places = [config.token_cache] if config.token_cache else places
        chosen = opened(tuples(config.get("train", {})).get("objective")) or {}
        places += [
            config.get("sample_cache", ""),
            chosen.get("teacher", ""),
            config.tokenizer_checkpoint,
            *held_networks(config).values(),
        ]
    return [place for place in places if place]


def set_num_classes(config: ConfigDict, num_classes: int) -> None:
    """Fills in config.model.num_classes = 0 from the data.

    Raises:
      ValueError: the config has fewer classes than the data.
    """
    if not config.model.num_classes:
        config.model.num_classes = num_classes
    if config.model.num_classes < num_classes:
        raise ValueError(
            f"config.model.num_classes is {config.model.num_classes}, but the data has "
            f"{num_classes} classes; set it to {num_classes}, or 0 to take it from the data."
        )


def transform(config: ConfigDict, train: bool) -> transforms.ImageTransform:
    """Preprocessing of config.data.transform; crops and augmentation at random to train."""
    data = data_settings(config)
    values = read(config.data.get("transform", {}), "config.data.transform", TRANSFORM)
    affine = values.pop("affine", None)
    if not train:
        values["flip"] = False
    return call(
        transforms.ImageTransform,
        "config.data.transform",
        values,
        size=data.image_size,
        channels=data.channels,
        random_crop=train,
        affine=transforms.RandomAffine(**affine) if affine and train else None,
    )


def pipeline(
    config: ConfigDict,
    records: sources.Source,
    batch_size: int,
    *,
    train: bool,
    mesh: jax.sharding.Mesh | None = None,
    augment: bool | None = None,
    passes: int = 1,
    caption: Literal["one", "all", "none"] = "one",
) -> data_pipeline.Pipeline:
    """Batches of images or of cached tokens for this process.

    Args:
      config: reads data and seed.
      records: a source of images, or a token cache.
      batch_size: over all processes.
      train: endless shuffled epochs, or one pass in order.
      mesh: the batches go to: this process makes the rows that its devices hold. None: all of
        them.
      augment: random crops and augmentation; by default as `train`.
      passes: see `Pipeline`.
      caption: of captioned images: 'one' as the model reads it, 'all' for a token cache (see
        `AllCaptions`), or 'none' where no model of them is asked.
    """
    augment = train if augment is None else augment
    rows = mesh and arrays.process_rows(sharding.batch_sharding(mesh), batch_size)
    data = data_settings(config)
    prepare: captions.Transform | None = transform(config, augment) if records.channels else None
    if captioned(records):
        if caption == "all":
            prepare = captions.AllCaptions(prepare)
        elif caption == "none":
            prepare = captions.OneCaption(prepare, 0, drawn=False)
        else:
            write = _written(config)
            prepare = captions.OneCaption(prepare, data.caption_length, drawn=train, write=write)
    elif caption == "one" and _written(config):
        raise ConfigError(
            "config.model.conditioner reads captions, but the pictures have none; give a source "
            "with captions (a folder: config.data.options.captions=True), or a token cache of one."
        )
    return data_pipeline.Pipeline(
        records,
        prepare,
        batch_size,
        seed=config.seed,
        train=train,
        rows=rows,
        num_workers=data.num_workers,
        num_threads=data.num_threads,
        prefetch=data.prefetch,
        passes=passes,
    )


def _written(config: ConfigDict) -> WrittenTokens | None:
    """What a model of text features reads of a caption; None for any other model."""
    asked = opened(tuples(config.get("model", {})).get("conditioner")) or {}
    if asked.get("kind") != "text_features":
        return None
    if not asked.get("encoder"):
        raise ConfigError(
            "config.model.conditioner.encoder is empty, but captions are to be read; give the "
            "folder of a T5 encoder, such as a download of google/flan-t5-xl."
        )
    return WrittenTokens(asked["encoder"], asked.get("max_length", TextFeatures.max_length))


def data_facts(records: sources.Source) -> dict[str, Any]:
    """What gives a training's batches their meaning beside the config, as JSON.

    A checkpoint says it, so that a run that goes on or is scored can tell other data.

    Args:
      records: of the training, images or a token cache.

    Returns:
      class_names, images (how many, whatever the crops), crops (0 where images are read) and,
      of a token cache, the seed of its crops.
    """
    cache = getattr(records, "settings", None)
    variants = getattr(records, "variants", 1)
    return {
        "class_names": list(records.class_names),
        "images": len(records) // variants,
        "crops": 0 if cache is None else cache.crops,
        "crops_seed": None if cache is None else cache.seed,
    }


def check_same_classes(saved: Mapping[str, Any], records: sources.Source, what: str) -> None:
    """Compares the classes of data with those that a checkpoint was trained on, if it says them.

    Args:
      saved: a checkpoint's metadata.
      records: the data.
      what: names the checkpoint in the error.

    Raises:
      ValueError: the names differ.
    """
    names = saved.get("data", {}).get("class_names")
    if names is None or list(names) == list(records.class_names):
        return
    pairs = zip(names, records.class_names, strict=False)
    label = next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(names), len(records.class_names))
    )
    a, b = (repr(n[label]) if label < len(n) else "no class" for n in (names, records.class_names))
    raise ValueError(
        f"{what} was trained on {len(names)} classes, the data has {len(records.class_names)}, "
        f"and label {label} was {a} and is {b}; give data with the same classes in the same order."
    )

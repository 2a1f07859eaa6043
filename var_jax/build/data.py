"""Images and tokens, and batches of them."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from var_jax.build.sections import call, tuples
from var_jax.data import pipeline as data_pipeline
from var_jax.data import sources, transforms
from var_jax.parallel import arrays, sharding
from var_jax.paths import resolve

#: Options of data sources that name places in a file system.
_PATH_OPTIONS = ("path", "data_dir")
#: All keys that do.
_PATHS = (
    "tokenizer_checkpoint",
    "token_cache",
    *(f"data.options.{option}" for option in _PATH_OPTIONS),
    "train.initial_checkpoint",
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
    for name in _PATHS:
        *sections, key = name.split(".")
        section = config
        for part in sections:
            section = section.get(part) or ConfigDict()
        if section.get(key):
            try:
                section[key] = str(resolve(section[key]))
            except ValueError as error:
                raise ValueError(f"config.{name}: {error}") from None


def source(config: ConfigDict, split: str) -> sources.Source:
    """The images of config.data."""
    return sources.make_source(config.data.source, split, **tuples(config.data.options))


def training_source(config: ConfigDict, split: str, fingerprint: str) -> sources.Source:
    """The token cache of config.token_cache if there is one, else the images.

    Raises:
      ValueError: the cache was made by another tokenizer than `fingerprint`.
    """
    if config.token_cache:
        return sources.make_source(
            "tokens", split, path=config.token_cache, fingerprint=fingerprint
        )
    return source(config, split)


def data_paths(config: ConfigDict, *, cached: bool) -> list[str]:
    """What of the file system a run reads, so that every host can be asked whether it can.

    Args:
      config: reads data, token_cache and tokenizer_checkpoint.
      cached: the run reads config.token_cache in place of the images, if there is one.
    """
    if not cached:
        places = [config.data.options.get(key) for key in _PATH_OPTIONS]
    elif config.token_cache:
        places = [config.token_cache, config.tokenizer_checkpoint]
    else:
        places = [*data_paths(config, cached=False), config.tokenizer_checkpoint]
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
    values = tuples(config.data.transform)
    affine = values.pop("affine", None)
    if not train:
        values["flip"] = False
    return call(
        transforms.ImageTransform,
        "data.transform",
        values,
        size=config.data.image_size,
        channels=config.data.channels,
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
    """
    augment = train if augment is None else augment
    rows = mesh and arrays.process_rows(sharding.batch_sharding(mesh), batch_size)
    return data_pipeline.Pipeline(
        records,
        transform(config, augment) if records.channels else None,
        batch_size,
        seed=config.seed,
        train=train,
        rows=rows,
        num_workers=config.data.get("num_workers", 0),
        num_threads=config.data.get("num_threads", 4),
        prefetch=config.data.get("prefetch", 4),
        passes=passes,
    )

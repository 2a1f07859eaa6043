"""Samples of a transformer as tokens: drawn once, and put beside the examples of a training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from var_jax import checkpoint
from var_jax.build.loading import load_decoder, load_params, load_transformer
from var_jax.build.sections import ConfigError
from var_jax.build.token_caching import jit_read
from var_jax.data.sources import Source
from var_jax.data.token_cache import TokenCache, TokenCacheSettings, TokenCacheWriter
from var_jax.data.with_samples import WithSamples
from var_jax.decoding.asking import check_asks_for_classes
from var_jax.decoding.images import ImageSampler
from var_jax.evaluation.progress import Progress
from var_jax.fields import Field
from var_jax.objectives.base import NetworkObjective
from var_jax.objectives.discriminative import SAMPLES
from var_jax.parallel import arrays, sharding


def cache_samples(
    path: epath.PathLike,
    output: epath.PathLike,
    tokenizer_path: epath.PathLike | None = None,
    *,
    samples_per_class: int,
    seed: int = 0,
    batch_size: int = 256,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Draws samples and encodes them as a token cache; every process calls it alike.

    They are what the model says, without guidance and filters. Pixels lie between the tokens that
    are drawn and those that are kept, as with the tokens of pictures, so that nothing tells the two
    apart but what they show. Called again, it goes on where it was.

    Args:
      path, tokenizer_path: of a transformer, see `load_transformer`.
      output: local or gs:// directory of the cache; sample n has the label n modulo the classes.
      samples_per_class: of each.
      seed: of the samples.
      batch_size: samples at once, over all devices.
      settings: keys of config.sampling that are to be otherwise than said above.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: `output` holds a cache with other settings, or the model is asked in words.
    """
    mesh = sharding.make_mesh()
    identity = checkpoint.fingerprint(load_params(path, "transformer", None)[0])
    loaded = load_transformer(path, tokenizer_path, mesh=mesh, for_sampling=True)
    tokenizer, network = loaded.tokenizer, loaded.network
    check_asks_for_classes(network.transformer)
    config = loaded.config.copy_and_resolve_references()
    filters = {f.name for f in dataclasses.fields(network.head.sampling)} & {"top_k", "top_p"}
    plain = {"cfg": 0.0, **{name: 0 for name in filters}, **(settings or {})}
    with config.unlocked(), config.ignore_type():
        config.sampling = ConfigDict(plain)
    sampling = load_decoder(config, tokenizer.fingerprint)
    classes = network.transformer.num_classes
    names = loaded.metadata.get("data", {}).get("class_names", [])
    cached = TokenCacheSettings(
        fingerprint=tokenizer.fingerprint,
        shapes=tokenizer.module.codec.pyramid.shapes,
        field=tokenizer.module.codec.source,
        num_images=classes * samples_per_class,
        crops=1,
        class_names=(*names, *map(str, range(len(names), classes))),
        source=SAMPLES,
        image_size=tokenizer.module.image_shape[0],
        seed=seed,
        extra={"model": identity, "sampling": plain},
    )
    writer = TokenCacheWriter(output, cached) if jax.process_index() == 0 else None
    first = arrays.from_process_0(writer.next_sample if writer else 0)
    sampler = ImageSampler(
        network,
        tokenizer.module,
        tokenizer.params,
        sampling.decoder,
        mesh,
        decoder_params=sampling.params,
    )
    encode = jit_read(tokenizer.module, mesh)
    labels = np.arange(cached.num_samples, dtype=np.int32) % classes
    progress = Progress("samples", cached.num_samples, show=writer is not None)
    for numbers, found in sampler.on_mesh(loaded.params, labels, seed, batch_size, first):
        tokens = np.asarray(encode(tokenizer.params, found.images))[: len(numbers)]
        if writer:
            writer.write(tokens, labels[numbers], numbers)
        progress.at(int(numbers[-1]) + 1)
    if writer:
        writer.close()
    logging.info("%d samples in %s.", cached.num_samples, output)


def with_samples(
    config: ConfigDict,
    records: Source,
    objective: NetworkObjective,
    field: Field,
    model: str,
) -> tuple[Source, dict[str, Any]]:
    """A training's examples, beside samples where the objective reads some.

    Args:
      config: reads sample_cache.
      records: the examples.
      objective: of the training.
      field: what the codec's lessons start from.
      model: fingerprint of the model that the run starts from, which the samples must be of.

    Returns:
      The source, and what gives the samples their meaning, as JSON; see `data_facts`.

    Raises:
      ConfigError: there are no samples, or none are read; or they are of another model.
    """
    path = config.get("sample_cache", "")
    reads = any(f.name == SAMPLES for f in objective.fields)
    if not reads:
        if path:
            raise ConfigError(
                f"config.sample_cache is {path}, but config.train.objective reads no samples; "
                "leave it out."
            )
        return records, {}
    if not path or not isinstance(records, TokenCache):
        raise ConfigError(
            "config.train.objective compares cached tokens with cached samples; give "
            "--config.token_cache (launch.cache_tokens) and --config.sample_cache "
            "(launch.cache_samples)."
        )
    samples = TokenCache(path, records.settings.fingerprint)
    there = samples.settings
    of = there.extra.get("model")
    if of is None or there.field != field:
        raise ConfigError(
            f"config.sample_cache is {path}, which launch.cache_samples did not write for this "
            "codec; draw samples with it."
        )
    if of != model:
        raise ConfigError(
            f"The samples in {path} are of the transformer {of[:12]}, but the run starts from "
            f"{model[:12]}; draw samples of that one (launch.cache_samples)."
        )
    return WithSamples(records, samples, SAMPLES), {
        "samples": len(samples),
        "samples_seed": there.seed,
    }

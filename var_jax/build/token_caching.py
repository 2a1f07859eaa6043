"""A tokenizer's data, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from var_jax.build.data import cached_from, captioned, pipeline, source
from var_jax.build.loading import load_tokenizer
from var_jax.data.prefetch import prefetch_to_device
from var_jax.data.token_cache import TokenCacheSettings, TokenCacheWriter
from var_jax.evaluation.progress import Progress
from var_jax.parallel import arrays, sharding
from var_jax.pixels import to_float
from var_jax.tokenizer.vqvae import VQVAE


def jit_read(tokenizer: VQVAE, mesh: Mesh) -> Callable[[Any, jax.Array], jax.Array]:
    """(params, uint8 [B, H, W, c]) -> what a token cache holds of them, whole on every device."""

    def read(params, images):
        return tokenizer.apply({"params": params}, to_float(images), method="read")

    return jax.jit(read, out_shardings=sharding.replicated_sharding(mesh))


def cache_tokens(
    tokenizer: epath.PathLike,
    output: epath.PathLike,
    *,
    crops: int = 1,
    batch_size: int = 256,
    splits: Sequence[str] = ("train", "val"),
) -> None:
    """Encodes the data that a tokenizer was trained on; every process calls it alike.

    Called again, it goes on where it was.

    Args:
      tokenizer: its workdir, local or gs://.
      output: local or gs:// directory; gets a token cache for each split.
      crops: random crops (and augmentations) of each training image; 1 is the central crop, as
        in the other splits.
      batch_size: images encoded at once, over all devices.
      splits: of the data.

    Raises:
      FileNotFoundError: there is no tokenizer.
      ValueError: `output` holds a cache with other settings.
    """
    mesh = sharding.make_mesh()
    loaded = load_tokenizer(tokenizer).on(mesh)
    config = loaded.config
    batch_size = sharding.padded_batch(batch_size, mesh)
    encode = jit_read(loaded.module, mesh)
    for split in splits:
        records = source(config, split)
        copies = crops if split == "train" else 1
        images = pipeline(
            config,
            records,
            batch_size,
            train=False,
            mesh=mesh,
            augment=split == "train" and copies > 1,
            passes=copies,
            caption="all",
        )
        settings = TokenCacheSettings(
            fingerprint=loaded.fingerprint,
            shapes=loaded.module.codec.pyramid.shapes,
            field=loaded.module.codec.source,
            num_images=len(records),
            crops=copies,
            class_names=tuple(records.class_names),
            source=f"{config.data.source}:{split}",
            image_size=config.data.image_size,
            seed=config.seed,
            extra=cached_from(config),
            captions=captioned(records),
        )
        writer = None
        if jax.process_index() == 0:
            writer = TokenCacheWriter(epath.Path(output) / split, settings)
        start = arrays.from_process_0(writer.next_sample if writer else 0)
        if start >= settings.num_samples:
            logging.info("%s: %d samples are there already.", split, settings.num_samples)
            if writer:
                writer.close()
            continue
        progress = Progress(split, settings.num_samples, show=writer is not None)
        host_batches = images.batches(start_step=start // batch_size)
        batches = prefetch_to_device(host_batches, sharding.batch_sharding(mesh), batch_size)
        for batch, _ in batches:
            tokens = np.asarray(encode(loaded.params, batch["image"]))
            labels, index = (arrays.to_host(batch[k]) for k in ("label", "index"))
            captions = arrays.to_host(batch["captions"]) if settings.captions else None
            if writer:
                writer.write(tokens, labels, index, captions)
            progress.at(int(index[-1]) + 1)
        if writer:
            writer.close()
        if images.skipped:
            logging.warning("%s: %d unreadable images.", split, len(images.skipped))
        logging.info("%s: %d samples in %s.", split, settings.num_samples, output)

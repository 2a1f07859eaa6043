"""Encodes a data set once, so that training reads tokens and the step holds no tokenizer.

python -m launch.cache_tokens --tokenizer runs/mnist/tokenizer --output runs/mnist/tokens \
    --crops 4

Writes OUTPUT/train (`crops` random crops an image) and OUTPUT/val (the central crop). An
interrupted run goes on where it was. A tokenizer with dtype 'float32' encodes in float32 on every
backend, at six passes of a TPU's matrix unit, unless its config sets encoder_precision.
"""

from __future__ import annotations

import time

from absl import flags, logging

from launch import cli

_TOKENIZER = cli.define_path("tokenizer", None, "Workdir of the tokenizer.")
_OUTPUT = cli.define_path("output", None, "Local or gs:// directory of the cache.")
_CROPS = flags.DEFINE_integer("crops", 1, "Random crops (and augmentations) an image.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images encoded at once, over all devices.", 1)
_SPLITS = flags.DEFINE_list("splits", ["train", "val"], "Splits to encode.")
flags.mark_flags_as_required(["tokenizer", "output"])


def main() -> None:
    import jax
    import numpy as np
    from etils import epath

    from var_jax import build
    from var_jax.data.prefetch import prefetch_to_device
    from var_jax.data.token_cache import TokenCacheSettings, TokenCacheWriter
    from var_jax.parallel import arrays, sharding
    from var_jax.pixels import to_float

    with cli.session(_OUTPUT.value):
        mesh = sharding.make_mesh()
        everywhere = sharding.replicated_sharding(mesh)
        loaded = build.load_tokenizer(_TOKENIZER.value).on(mesh)
        config = loaded.config
        batch_size = sharding.padded_batch(_BATCH.value, mesh)

        def encode(params, images):
            return loaded.module.apply({"params": params}, to_float(images), method="read")

        encode = jax.jit(encode, out_shardings=everywhere)
        for split in _SPLITS.value:
            source = build.source(config, split)
            crops = _CROPS.value if split == "train" else 1
            images = build.pipeline(
                config,
                source,
                batch_size,
                train=False,
                mesh=mesh,
                augment=split == "train" and crops > 1,
                passes=crops,
            )
            settings = TokenCacheSettings(
                fingerprint=loaded.fingerprint,
                shapes=loaded.module.codec.pyramid.shapes,
                field=loaded.module.codec.source,
                num_images=len(source),
                crops=crops,
                class_names=tuple(source.class_names),
                source=f"{config.data.source}:{split}",
                image_size=config.data.image_size,
                seed=config.seed,
                extra=build.cached_from(config),
            )
            writer = None
            if jax.process_index() == 0:
                writer = TokenCacheWriter(epath.Path(_OUTPUT.value) / split, settings)
            start = arrays.from_process_0(writer.next_sample if writer else 0)
            if start >= settings.num_samples:
                logging.info("%s: %d samples are there already.", split, settings.num_samples)
                if writer:
                    writer.close()
                continue
            shown = began = time.monotonic()
            host_batches = images.batches(start_step=start // batch_size)
            batches = prefetch_to_device(host_batches, sharding.batch_sharding(mesh), batch_size)
            for batch, _ in batches:
                tokens = np.asarray(encode(loaded.params, batch["image"]))
                labels, index = (arrays.to_host(batch[k]) for k in ("label", "index"))
                if writer:
                    writer.write(tokens, labels, index)
                if writer and time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    speed = (int(index[-1]) + 1 - start) / (shown - began)
                    logging.info(
                        "%s %d/%d  %.4g images/s  to go %d s",
                        split,
                        index[-1] + 1,
                        settings.num_samples,
                        speed,
                        (settings.num_samples - index[-1] - 1) / speed,
                    )
            if writer:
                writer.close()
            if images.skipped:
                logging.warning("%s: %d unreadable images.", split, len(images.skipped))
            logging.info("%s: %d samples in %s.", split, settings.num_samples, _OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)

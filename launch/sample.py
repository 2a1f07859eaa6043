"""Draws images from a checkpoint.

python -m launch.sample --checkpoint runs/quickstart/transformer --labels 3,1 --cfg 1.5 \
    --seed 0 --output out.npz

A model of text draws what a file says, one prompt per line, an empty one without any:

python -m launch.sample --checkpoint runs/text/transformer --prompts prompts.txt --output out.png

The npz holds `images` (uint8 NHWC), `labels` or `prompts`, and `tokens` (int32 [B, L]); a .png
output is a grid. Sample i depends on the seed, its label and i only, not on the batch size.
"""

from __future__ import annotations

from absl import flags, logging

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_LABELS = flags.DEFINE_list("labels", None, "Class of each sample, such as 3,1; -1 is 'no class'.")
_PROMPTS = cli.define_path("prompts", None, "Text file of prompts, one per line, for --labels.")
_NEGATIVE = flags.DEFINE_string("negative", None, "Text that guidance steers away from.")
_NUM = flags.DEFINE_integer("num_per_label", 1, "Samples of each label or prompt.", 1)
_OUTPUT = cli.define_path("output", None, "File to write, .npz or .png; local or gs://.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.", 0)
_BATCH = flags.DEFINE_integer("batch_size", 0, "Samples at once; 0 is all, 64 at most.", 0)
_SHOW_LEVELS = flags.DEFINE_bool("show_levels", False, "Also `levels`: what 1 .. K levels show.")
cli.define_sampling_flags()
flags.mark_flags_as_required(["checkpoint", "output"])


def main() -> None:
    import jax
    import numpy as np
    from etils import epath

    from var_jax import build
    from var_jax.data.captions import read_prompts
    from var_jax.decoding.asking import request
    from var_jax.decoding.images import ImageSampler
    from var_jax.evaluation.pictures import make_grid
    from var_jax.parallel import sharding
    from var_jax.paths import check_writable, replacing, write_bytes
    from var_jax.pixels import encode_png

    output = epath.Path(_OUTPUT.value)
    if output.suffix not in (".npz", ".png"):
        raise ValueError(f"--output must end in .npz or .png, got {output}.")
    if (_LABELS.value is None) == (_PROMPTS.value is None):
        raise ValueError("Give either --labels or --prompts: what is to be drawn.")
    check_writable(output)
    with cli.session(str(output.parent)):
        mesh = sharding.make_mesh()
        loaded = build.load_transformer(
            _CHECKPOINT.value, _TOKENIZER.value, mesh=mesh, for_sampling=True
        )
        transformer = loaded.network.transformer
        if _PROMPTS.value is not None:
            name, asked = "prompts", np.array(read_prompts(_PROMPTS.value))
        else:
            name, asked = "labels", cli.parse_labels(_LABELS.value, transformer.num_classes)
        asked = np.repeat(asked, _NUM.value)
        given = request(transformer, asked.tolist(), negative=_NEGATIVE.value).given
        sampling = cli.decoder(loaded.config, loaded.tokenizer.fingerprint)
        sampler = ImageSampler(
            loaded.network,
            loaded.tokenizer.module,
            loaded.tokenizer.params,
            sampling.decoder,
            mesh,
            keep_partial=_SHOW_LEVELS.value,
            decoder_params=sampling.params,
        )
        batch = _BATCH.value or min(len(asked), 64)
        images, tokens, levels = [], [], []
        for numbers, found in sampler.batches(loaded.params, given, _SEED.value, batch):
            images.append(found.images)
            tokens.append(found.tokens)
            if found.partial is not None:
                levels.append(found.partial)
            logging.info("%d/%d samples", numbers[-1] + 1, len(asked))
        if jax.process_index():
            return
        images = np.concatenate(images)
        if output.suffix == ".png":
            columns = _NUM.value if _NUM.value > 1 else len(images)
            write_bytes(output, encode_png(make_grid(images, columns)))
        else:
            arrays = {"images": images, name: asked, "tokens": np.concatenate(tokens)}
            if levels:
                arrays["levels"] = np.concatenate(levels).swapaxes(0, 1)
            with replacing(output) as file:
                np.savez(file, **arrays)
        logging.info("Wrote %s.", output)


if __name__ == "__main__":
    cli.run(main)

"""Scores images.

On a small data set, by a classifier trained on its real images (a minute on a CPU):

python -m launch.evaluate --checkpoint runs/quickstart/transformer --classifier \
    --output runs/quickstart/scores

Any npz of images against another one, or against an ADM reference, by Inception features:

python -m launch.evaluate --samples a.npz --reference b.npz --inception weights.pth --json out.json
"""

from __future__ import annotations

import json

from absl import flags, logging

from launch import cli

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Its tokenizer; beside it by default.")
_CLASSIFIER = flags.DEFINE_bool("classifier", False, "Score by a classifier of the data set.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.json and the images.")
_SAMPLES = flags.DEFINE_string("samples", None, "npz of images, uint8 NHWC under arr_0.")
_REFERENCE = flags.DEFINE_string("reference", None, "npz of images, or an ADM reference.")
_INCEPTION = flags.DEFINE_string("inception", None, "pt_inception weights (.pth).")
_JSON = flags.DEFINE_string("json", None, "File for the scores.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1000, "Generated images.", 1)
_CLASSIFIER_STEPS = flags.DEFINE_integer("classifier_steps", 600, "Updates of --classifier.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 100, "Images at once.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.", 0)
cli.define_sampling_flags()


def main() -> None:
    if _SAMPLES.value:
        _need("--samples", reference=_REFERENCE, inception=_INCEPTION)
        _score_files()
    elif _CLASSIFIER.value:
        _need("--classifier", checkpoint=_CHECKPOINT, output=_OUTPUT)
        _score_small_set()
    else:
        raise ValueError("Give --samples, or --checkpoint with --classifier; see --help.")


def _need(mode: str, **given) -> None:
    for name, flag in given.items():
        if not flag.value:
            raise ValueError(f"{mode} needs --{name}.")


def _score_files() -> None:
    from var_jax.evaluation.adm import score_files

    scores = score_files(
        _SAMPLES.value, _REFERENCE.value, _INCEPTION.value, batch_size=_BATCH.value
    )
    text = json.dumps(scores, indent=2)
    if _JSON.value:
        from etils import epath

        epath.Path(_JSON.value).write_text(text + "\n")
    print(text)


def _score_small_set() -> None:
    import jax
    import numpy as np
    from etils import epath

    from var_jax import build, sharding
    from var_jax.evaluation import small_set
    from var_jax.evaluation.classifier import train_classifier
    from var_jax.evaluation.pictures import to_uint8
    from var_jax.sampling.images import ImageSampler

    loaded = build.load_transformer(_CHECKPOINT.value, _TOKENIZER.value)
    config, tokenizer = loaded.config, loaded.tokenizer
    output = epath.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)

    def real(split, settings=config, augment=False):
        source = build.source(settings, split)
        pipeline = build.pipeline(settings, source, 100, train=False, augment=augment)
        batches = [{k: v[b["mask"]] for k, v in b.items()} for b in pipeline.batches()]
        return small_set.LabelledImages(
            np.concatenate([b["image"] for b in batches]),
            np.concatenate([b["label"] for b in batches]),
        )

    train, held_out = real("train"), real("val")
    num_classes = loaded.var.num_classes
    logging.info("Training the classifier on %d real images.", len(train.images))
    # Resampled copies beside the images as they are: a classifier that has seen sharp pictures
    # only takes the softness of a decoder for a difference in kind.
    always = config.copy_and_resolve_references()
    if always.data.transform.get("affine"):
        always.data.transform.affine.probability = 1.0
    resampled = real("train", always, augment=True)
    classifier = train_classifier(
        np.concatenate([train.images, resampled.images]),
        np.concatenate([train.labels, resampled.labels]),
        num_classes=num_classes,
        steps=_CLASSIFIER_STEPS.value,
    )

    model = (loaded.var, loaded.head, tokenizer.module, tokenizer.params, cli.sampler(config))
    sampler = ImageSampler(*model)
    labels = np.arange(_NUM_SAMPLES.value) % num_classes

    def draw(params):
        found = [s for _, s in sampler.batches(params, labels, _SEED.value, _BATCH.value)]
        images = to_uint8(np.concatenate([s.images for s in found]))
        return small_set.LabelledImages(images, labels)

    logging.info("Drawing %d samples.", len(labels))
    generated = draw(loaded.params)
    # The first sample of each class again, with what each of its levels shows.
    growing = ImageSampler(*model, keep_partial=True)
    first = np.arange(min(num_classes, len(labels)))
    levels = to_uint8(growing(loaded.params, labels[first], _SEED.value, first).partial)
    objective, _ = build.likelihood(config, tokenizer, cached=True)
    untrained = jax.jit(lambda key: sharding.unbox(objective(0).init_params(key)))
    untrained = draw(untrained(jax.random.key(config.seed)))
    rebuilt = {
        name: small_set.reconstruct(tokenizer.module, tokenizer.params, data.images, _BATCH.value)
        for name, data in (("train", train), ("held_out", held_out))
    }
    scores = small_set.score(
        classifier=classifier,
        train=train,
        held_out=held_out,
        generated=generated,
        untrained=untrained,
        reconstructed_train=rebuilt["train"][0],
        reconstructed_held_out=rebuilt["held_out"][0],
        train_tokens=rebuilt["train"][1],
        pyramid=tokenizer.module.codec.pyramid,
        vocab_size=tokenizer.module.codec.vocab_size,
    ).to_json()
    shown = 20
    with (output / "images.npz").open("wb") as file:
        np.savez_compressed(
            file,
            generated=generated.images,
            generated_labels=generated.labels,
            levels=levels,
            held_out=held_out.images[:: len(held_out.images) // shown][:shown],
            reconstructed=rebuilt["held_out"][0][:: len(held_out.images) // shown][:shown],
        )
    # Last, so that its presence says that the scores are complete.
    (output / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    cli.run(main)

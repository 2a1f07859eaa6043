"""Scores a run on a small data set by a classifier of its images: trained, drawn, written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from var_jax import build, paths
from var_jax.decoding.asking import check_asks_for_classes
from var_jax.decoding.images import ImageSampler
from var_jax.evaluation.small_sets import small_set
from var_jax.evaluation.small_sets.classifier import Classifier, train_classifier
from var_jax.parallel import sharding


def real_images(config: ConfigDict, split: str, augment: bool = False) -> small_set.LabelledImages:
    """All images of a split of the config's data, as the model reads them."""
    pipeline = build.pipeline(
        config, build.source(config, split), 100, train=False, augment=augment
    )
    batches = [{k: v[b["mask"]] for k, v in b.items()} for b in pipeline.batches()]
    return small_set.LabelledImages(
        np.concatenate([b["image"] for b in batches]),
        np.concatenate([b["label"] for b in batches]),
    )


def classifier_of(
    config: ConfigDict,
    train: small_set.LabelledImages,
    num_classes: int,
    steps: int,
    seed: int = 0,
) -> Classifier:
    """The classifier that scores, of the training split and, where the config has an affine map,
    of augmented copies."""
    logging.info("Training the classifier on %d real images.", len(train.images))
    # Augmented copies beside the images as they are make a better classifier, and one that does
    # not take the softness of a decoder for a difference in kind.
    known = [train]
    if config.data.transform.get("affine"):
        for copy in range(4):
            settings = config.copy_and_resolve_references()
            settings.seed = copy
            known.append(real_images(settings, "train", augment=True))
    return train_classifier(
        np.concatenate([data.images for data in known]),
        np.concatenate([data.labels for data in known]),
        num_classes=num_classes,
        steps=steps,
        seed=seed,
    )


def score_small_set(
    checkpoint: str,
    tokenizer_path: str | None,
    output_path: str,
    *,
    num_samples: int,
    classifier_steps: int,
    batch_size: int,
    seed: int,
    decoder_of: Callable[[ConfigDict, str], build.LoadedDecoder] = build.load_decoder,
) -> dict[str, Any]:
    """Trains the classifier, draws, scores, and writes scores.json and images.npz.

    Args:
      checkpoint: workdir of a transformer.
      tokenizer_path: of its tokenizer; beside it by default.
      output_path: folder of what is written.
      num_samples: images drawn, the classes in turn.
      classifier_steps: updates of the classifier.
      batch_size: images at once.
      seed: of the samples.
      decoder_of: the config of the run, its tokenizer's fingerprint -> how samples are drawn.

    Returns:
      the scores.
    """
    loaded = build.load_transformer(checkpoint, tokenizer_path)
    config, tokenizer = loaded.config, loaded.tokenizer
    output = epath.Path(output_path)
    output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        known = build.source(config, split)
        build.check_same_classes(loaded.metadata, known, f"The transformer in {checkpoint}")
    train, held_out = real_images(config, "train"), real_images(config, "val")
    check_asks_for_classes(loaded.network.transformer)
    num_classes = loaded.network.transformer.num_classes
    classifier = classifier_of(config, train, num_classes, classifier_steps)

    sampling = decoder_of(config, tokenizer.fingerprint)
    model = (loaded.network, tokenizer.module, tokenizer.params, sampling.decoder)
    sampler = ImageSampler(*model, decoder_params=sampling.params)
    labels = np.arange(num_samples) % num_classes

    def draw(params):
        found = [s for _, s in sampler.batches(params, labels, seed, batch_size)]
        return small_set.LabelledImages(np.concatenate([s.images for s in found]), labels)

    logging.info("Drawing %d samples.", len(labels))
    generated = draw(loaded.params)
    # The first sample of each class again, with what each of its levels shows.
    growing = ImageSampler(*model, keep_partial=True, decoder_params=sampling.params)
    first = np.arange(min(num_classes, len(labels)))
    levels = growing(loaded.params, labels[first], seed, first).partial.swapaxes(0, 1)
    untrained = jax.jit(lambda key: sharding.unbox(loaded.network.init_params(key)))
    untrained = draw(untrained(jax.random.key(config.seed)))
    rebuilt = {
        name: small_set.reconstruct(tokenizer.module, tokenizer.params, data.images, batch_size)
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
        vocab_size=tokenizer.module.codec.target.num_values,
    ).to_json()
    shown = 20
    with paths.replacing(output / "images.npz") as file:
        np.savez_compressed(
            file,
            generated=generated.images,
            generated_labels=generated.labels,
            levels=levels,
            held_out=held_out.images[:: len(held_out.images) // shown][:shown],
            reconstructed=rebuilt["held_out"][0][:: len(held_out.images) // shown][:shown],
        )
    # Last, so that its presence says that the scores are complete.
    paths.write_json(output / "scores.json", scores)
    return scores

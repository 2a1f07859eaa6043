"""Scores of a run on a small data set: a classifier's accuracy, Frechet distance, diversity.

The classifier is trained on the real training split and its own accuracy on real held-out
images is part of the result. The numbers compare runs on one data set, nothing else.
"""

from __future__ import annotations

from typing import Any

import flax
import jax
import numpy as np
from jaxtyping import Int

from var_jax.evaluation.distances.frechet import frechet_distance
from var_jax.evaluation.reconstructed.image_scores import psnr, ssim
from var_jax.evaluation.small_sets.classifier import Classifier
from var_jax.pixels import to_float, to_uint8
from var_jax.pyramid import ScalePyramid


@flax.struct.dataclass
class SmallSetScores:
    """Scores of generated images and of reconstructions.

    Attributes:
      label_accuracy: share of generated images that the classifier takes for their label.
      classifier_accuracy_real: share of real held-out images that it gets right.
      frechet_distance: generated against real held-out images, in the classifier's features.
      frechet_distance_untrained: the same for the transformer at initialisation.
      frechet_distance_reconstructed: for reconstructed training images, which is what a
        perfect transformer would reach.
      frechet_distance_real: for real training images.
      diversity: pixel standard deviation within a class, mean over pixels and classes, of
        generated over that of real training images; 1 is as varied as the real ones.
      reconstruction_psnr, reconstruction_ssim: of held-out images; PSNR in dB.
      code_usage: share of the codebook that each level uses on the training images, K values.
      code_perplexity: exp(entropy) of the codes of each level, K values.
    """

    label_accuracy: float
    classifier_accuracy_real: float
    frechet_distance: float
    frechet_distance_untrained: float
    frechet_distance_reconstructed: float
    frechet_distance_real: float
    diversity: float
    reconstruction_psnr: float
    reconstruction_ssim: float
    code_usage: tuple[float, ...]
    code_perplexity: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers by name."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}


@flax.struct.dataclass
class LabelledImages:
    """Images uint8 [N, H, W, c] and their labels int [N]."""

    images: np.ndarray
    labels: np.ndarray


def within_class_deviation(data: LabelledImages) -> float:
    """Standard deviation of a pixel (in [0, 1]) over the images of a class, averaged."""
    images = data.images.astype(np.float32) / 255
    deviations = [images[data.labels == c].std(0).mean() for c in np.unique(data.labels)]
    return float(np.mean(deviations))


def code_statistics(
    tokens: np.ndarray, pyramid: ScalePyramid, vocab_size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Usage and perplexity of each level.

    Args:
      tokens: [n, L, ...], integers in [0, V).
      pyramid: of the tokens.
      vocab_size: V; 0 where nothing is quantised.

    Returns:
      K shares of the V codes that occur, and K perplexities in [1, V]; zeros without codes.
    """
    if not vocab_size:
        return (0.0,) * pyramid.num_levels, (0.0,) * pyramid.num_levels
    levels = pyramid.split(tokens)
    return level_statistics(
        np.stack([np.bincount(level.reshape(-1), minlength=vocab_size) for level in levels])
    )


def level_statistics(counts: Int[np.ndarray, "K V"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The same from how often each level uses each code."""
    usage, perplexity = [], []
    for level in counts:
        if not level.sum():
            usage.append(0.0)
            perplexity.append(0.0)
            continue
        shares = level[level > 0] / level.sum()
        usage.append(float((level > 0).mean()))
        perplexity.append(float(np.exp(-(shares * np.log(shares)).sum())))
    return tuple(usage), tuple(perplexity)


def score(
    *,
    classifier: Classifier,
    train: LabelledImages,
    held_out: LabelledImages,
    generated: LabelledImages,
    untrained: LabelledImages,
    reconstructed_train: np.ndarray,
    reconstructed_held_out: np.ndarray,
    train_tokens: np.ndarray,
    pyramid: ScalePyramid,
    vocab_size: int,
) -> SmallSetScores:
    """All scores from images; see `SmallSetScores`.

    Args:
      classifier: trained on `train`.
      train, held_out: real images.
      generated, untrained: samples of the trained and of the untrained transformer.
      reconstructed_train, reconstructed_held_out: uint8, what the tokenizer makes of them.
      train_tokens: [N, L, ...], what the training images are encoded to.
      pyramid, vocab_size: of the tokens.
    """
    real = classifier.statistics(held_out.images)

    def distance(images):
        return float(frechet_distance(classifier.statistics(images), real))

    count = len(generated.images)
    chosen = np.random.default_rng(0).permutation(len(train.images))[:count]
    usage, perplexity = code_statistics(train_tokens, pyramid, vocab_size)
    return SmallSetScores(
        label_accuracy=classifier.accuracy(generated.images, generated.labels),
        classifier_accuracy_real=classifier.accuracy(held_out.images, held_out.labels),
        frechet_distance=distance(generated.images),
        frechet_distance_untrained=distance(untrained.images),
        frechet_distance_reconstructed=distance(reconstructed_train[chosen]),
        frechet_distance_real=distance(train.images[chosen]),
        diversity=within_class_deviation(generated) / within_class_deviation(train),
        reconstruction_psnr=float(psnr(held_out.images, reconstructed_held_out).mean()),
        reconstruction_ssim=float(ssim(held_out.images, reconstructed_held_out).mean()),
        code_usage=usage,
        code_perplexity=perplexity,
    )


def reconstruct(tokenizer, params, images: np.ndarray, batch_size: int = 100):
    """Images uint8 [N, H, W, c] -> reconstructions uint8 of the same shape, tokens [N, L]."""

    @jax.jit
    def run(params, images):
        tokens = tokenizer.apply({"params": params}, images, method="encode")
        return tokens, tokenizer.apply({"params": params}, tokens, method="decode_tokens")

    outputs, tokens = [], []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        padded = to_float(np.resize(part, (batch_size, *part.shape[1:])))
        found = jax.device_get(run(params, padded))
        tokens.append(found[0][: len(part)])
        outputs.append(to_uint8(found[1][: len(part)]))
    return np.concatenate(outputs), np.concatenate(tokens)

"""What one run of a comparison came to: how it trained, what it draws, what that costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from var_jax import build
from var_jax.decoding.images import ImageSampler
from var_jax.evaluation.distances.frechet import frechet_distance
from var_jax.evaluation.reconstructed.image_scores import psnr
from var_jax.evaluation.small_sets import small_set
from var_jax.plan import flops
from var_jax.studies.comparison_costs import drawing_costs
from var_jax.studies.small_set_run import classifier_of, real_images
from var_jax.train.metrics import read_metrics


def passed_over(config: ConfigDict) -> Iterator[tuple[int, float]]:
    """For each step of a training, from the first on and without an end: the tokens that it passes
    over, and its operations by the model's formula, both of a whole batch."""
    tokenizer = build.LoadedTokenizer(build.tokenizer(config), None, "", config)
    objective = build.objective(config, tokenizer, from_images=False)
    step = 0
    while True:
        now = objective.at(step)
        pyramid, levels = now.network.transformer.pyramid, None
        if now.trained is not None:
            pyramid, levels = now.trained.pyramid, now.trained.levels
        tokens = pyramid.length if levels is None else pyramid.part(levels).length
        yield config.train.batch_size * tokens, config.train.batch_size * flops.training_flops(now)
        step += 1


class Scorer:
    """Scores runs on one data set by one classifier of its pictures.

    Args:
      config: of any of the runs: reads data and seed.
      settings: of the comparison.
    """

    def __init__(self, config: ConfigDict, settings: build.ComparisonSettings) -> None:
        self._settings = settings
        self._train, self._held_out = real_images(config, "train"), real_images(config, "val")
        self._num_classes = int(config.model.num_classes)
        self._classifier = classifier_of(
            config, self._train, self._num_classes, settings.classifier_steps
        )
        self._real = self._classifier.statistics(self._held_out.images)

    def _distance(self, images: np.ndarray) -> float:
        found = self._classifier.statistics(images)
        return float(frechet_distance(found, self._real))

    def real(self) -> dict[str, float]:
        """What no model can better: the classifier's accuracy on real held-out pictures, and the
        Frechet distance of real training pictures."""
        held_out = self._held_out
        return {
            "label_accuracy": self._classifier.accuracy(held_out.images, held_out.labels),
            "frechet_distance": self._distance(self._some(self._train.images)),
        }

    def tokenizer(self, checkpoint: epath.PathLike) -> dict[str, float]:
        """Of a tokenizer: PSNR in dB of held-out pictures, and the Frechet distance of training
        pictures as it reconstructs them, which a perfect transformer would reach."""
        loaded, size = build.load_tokenizer(checkpoint), self._settings.sample_batch

        def rebuilt(images: np.ndarray) -> np.ndarray:
            return small_set.reconstruct(loaded.module, loaded.params, images, size)[0]

        held_out = self._held_out.images
        return {
            "parameters": flops.num_parameters(loaded.params),
            "psnr": float(psnr(held_out, rebuilt(held_out)).mean()),
            "frechet_distance": self._distance(rebuilt(self._some(self._train.images))),
        }

    def _some(self, images: np.ndarray) -> np.ndarray:
        """As many of the pictures as are drawn of a run."""
        order = np.random.default_rng(0).permutation(len(images))
        return images[order[: self._settings.num_samples]]

    def draw(
        self, checkpoint: epath.PathLike, config: ConfigDict, seed: int
    ) -> tuple[dict[str, Any], small_set.LabelledImages]:
        """Draws from a run and scores it.

        Args:
          checkpoint: workdir of the transformer.
          config: says how it is drawn from.
          seed: of the samples.

        Returns:
          scores by name; the pictures.
        """
        loaded = build.load_transformer(checkpoint)
        sampling = build.load_decoder(config, loaded.tokenizer.fingerprint)
        model = loaded.network, loaded.tokenizer.module, loaded.tokenizer.params, sampling.decoder
        sampler = ImageSampler(*model, decoder_params=sampling.params)
        labels = np.arange(self._settings.num_samples) % self._num_classes
        size = self._settings.sample_batch
        # Once in advance: it compiles.
        sampler(loaded.params, labels[:size], seed, np.arange(size))
        images, seconds = [], []
        for start in range(0, len(labels), size):
            numbers = np.arange(start, min(start + size, len(labels)))
            began = time.perf_counter()
            images.append(sampler(loaded.params, labels[numbers], seed, numbers).images)
            seconds.append((time.perf_counter() - began) / len(numbers))
        drawn = small_set.LabelledImages(np.concatenate(images), labels)
        network, tokenizer, tokenizer_params, decoder = model
        costs = drawing_costs(
            network,
            loaded.params,
            tokenizer,
            tokenizer_params,
            decoder,
            sampling.params,
            labels[:1],
        )
        spread = small_set.within_class_deviation
        return {
            "parameters": flops.num_parameters((loaded.params, sampling.params)),
            "label_accuracy": self._classifier.accuracy(drawn.images, labels),
            "frechet_distance": self._distance(drawn.images),
            "diversity": spread(drawn) / spread(self._train),
            "sample_seconds": statistics.median(seconds),
            "sample_flops": costs.flops,
            "passes": costs.passes,
            "cache_bytes": costs.cache_bytes,
        }, drawn


def trained(checkpoint: epath.PathLike, config: ConfigDict) -> dict[str, Any]:
    """How a run trained, from its log.

    Args:
      checkpoint: workdir of the transformer.
      config: of its training.

    Returns:
      scores by name; 'curve' are (tokens seen, held-out loss) of its evaluations.
    """
    steps = config.train.num_steps
    per_step = passed_over(config)
    tokens, operations = np.cumsum([next(per_step) for _ in range(steps)], axis=0).T
    lines = read_metrics(checkpoint)
    seconds = [line["step_seconds"] for line in lines if "step_seconds" in line]
    losses = [
        (float(tokens[line["step"]]), line["eval/loss_mean"])
        for line in lines
        if line.get("eval/loss_mean") is not None
    ]
    return {
        "steps": steps,
        "images_seen": steps * config.train.batch_size,
        "tokens_seen": float(tokens[-1]),
        "held_out_loss": losses[-1][1],
        # Of the last half: the first steps compile.
        "step_seconds": statistics.median(seconds[len(seconds) // 2 :]),
        "step_flops": float(operations[-1]) / steps,
        "curve": losses,
    }

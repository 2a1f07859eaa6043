"""Evaluators that run inside the training loop, on every process alike."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from var_jax.data.pipeline import Pipeline
from var_jax.data.prefetch import prefetch_to_device
from var_jax.decoding.images import ImageSampler
from var_jax.evaluation.distances.frechet import GaussianStatistics, frechet_distance, statistics
from var_jax.evaluation.generated.npz_images import as_rgb
from var_jax.evaluation.inception.extractor import FeatureExtractor
from var_jax.evaluation.pictures import grid
from var_jax.evaluation.token_likelihood import TokenLikelihood
from var_jax.objectives.likelihood import Likelihood, summarise
from var_jax.parallel import sharding
from var_jax.pixels import to_float, to_uint8
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train.loop import Evaluation, Evaluator
from var_jax.train.state import TrainState


class ValidationLoss:
    """Negative log likelihood and accuracy on held-out data, each example once.

    Args:
      objective, frozen, pipeline, mesh: see `TokenLikelihood`.
    """

    def __init__(self, objective: Likelihood, frozen: Any, pipeline: Pipeline, mesh: Mesh) -> None:
        self._measure = TokenLikelihood(objective, frozen, pipeline, mesh)

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        scores = self._measure(state.evaluation_params())
        return Evaluation(summarise(scores.pyramid, scores.nll, scores.correct))


class SampleGrid:
    """A grid of samples from the same path that inference takes; one column a class.

    Args:
      sampler: draws the images.
      labels: int [n].
      seed: of the samples; the same ones at each evaluation, to watch them improve.
      columns: of the picture.
    """

    def __init__(self, sampler: ImageSampler, labels: np.ndarray, seed: int, columns: int) -> None:
        self._sampler, self._labels, self._seed = sampler, labels, seed
        self._columns = columns

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        index = np.arange(len(self._labels))
        found = self._sampler(state.evaluation_params(), self._labels, self._seed, index)
        picture = grid(to_uint8(sharding.to_host(found.images)), self._columns)
        return Evaluation(images={"samples": picture})


class Reconstruction:
    """PSNR and rFID of held-out reconstructions and a picture: originals above reconstructions.

    Args:
      tokenizer: module.
      pipeline: images, one pass in order.
      mesh: of the training.
      shown: pairs in the picture, spread evenly over the split: many data sets are sorted by
        class; 0 is no picture.
      params: of a tokenizer that does not train; None: those of the state.
      extractor: Inception, on this process's devices of the mesh; gives '2048'. None: no rFID.
    """

    def __init__(
        self,
        tokenizer: VQVAE,
        pipeline: Pipeline,
        mesh: Mesh,
        shown: int = 16,
        params: Any = None,
        extractor: FeatureExtractor | None = None,
    ) -> None:
        self._pipeline, self._mesh, self._extractor = pipeline, mesh, extractor
        self._originals: GaussianStatistics | None = None
        everywhere = sharding.replicated_sharding(mesh)
        self._params = None if params is None else jax.device_put(params, everywhere)
        count = min(shown, pipeline.num_samples)
        self._shown = (2 * np.arange(count) + 1) * pipeline.num_samples // (2 * count)

        def run(params, images):
            images = to_float(images)
            output = tokenizer.apply({"params": params}, images, method="reconstruct")
            mse = jnp.square((output - images) / 2).mean((1, 2, 3))
            return output, -10 * jnp.log10(jnp.maximum(mse, 1e-10))

        self._run = jax.jit(run, out_shardings=everywhere)

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        params = self._params
        if params is None:
            params = state.evaluation_params()["tokenizer"]
        psnr, before, after, features, originals = [], [], [], [], []
        batches = prefetch_to_device(self._pipeline.batches(), sharding.batch_sharding(self._mesh))
        for batch, _ in batches:
            output, values = self._run(params, batch["image"])
            mask = sharding.to_host(batch["mask"])
            psnr.append(sharding.to_host(values)[mask])
            chosen = mask & np.isin(sharding.to_host(batch["index"]), self._shown)
            if chosen.any():
                before.append(sharding.to_host(batch["image"])[chosen])
                after.append(to_uint8(sharding.to_host(output)[chosen]))
            if self._extractor is not None:
                made = to_uint8(sharding.to_host(output)[mask])
                features.append(self._extractor(_share(made))["2048"])
                if self._originals is None:
                    images = sharding.to_host(batch["image"])[mask]
                    originals.append(self._extractor(_share(images))["2048"])
        metrics, pictures = {"psnr": np.concatenate(psnr).mean()}, {}
        if self._extractor is not None:
            if self._originals is None:
                self._originals = _joint_statistics(originals)
            metrics["rfid"] = frechet_distance(_joint_statistics(features), self._originals)
        if before:
            pairs = np.concatenate(before + after)
            pictures["reconstructions"] = grid(pairs, columns=len(pairs) // 2)
        return Evaluation(metrics, pictures)


class SmallFID:
    """Frechet Inception distance of samples to a reference, small enough to watch a training.

    It falls with the number of samples, so it compares steps and runs that share that number,
    not papers. Samples are drawn on the mesh of the training; every process extracts the features
    of its share on its own devices.

    Args:
      sampler: draws the images.
      extractor: Inception, on this process's devices of the mesh; gives '2048'.
      reference: statistics of the 2048 features of real images.
      num_samples: at each evaluation, class-balanced; always the same labels and seeds.
      batch_size: images at once, over all devices.
      seed: of the samples.
    """

    def __init__(
        self,
        sampler: ImageSampler,
        extractor: FeatureExtractor,
        reference: GaussianStatistics,
        num_samples: int,
        batch_size: int,
        seed: int,
    ) -> None:
        if num_samples < 2:
            raise ValueError(f"A Frechet distance needs at least 2 samples, got {num_samples}.")
        self._sampler, self._extractor, self._reference = sampler, extractor, reference
        self._labels = np.arange(num_samples) % sampler.var.num_classes
        self._batch_size, self._seed = min(batch_size, num_samples), seed

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        began = time.perf_counter()
        batches = self._sampler.batches(
            state.evaluation_params(), self._labels, self._seed, self._batch_size
        )
        features = self._extractor.stream(
            _share(to_uint8(samples.images)) for _, samples in batches
        )
        found = _joint_statistics([part["2048"] for part in features])
        value = frechet_distance(found, self._reference)
        return Evaluation({"fid": value, "fid_seconds": time.perf_counter() - began})


def _share(images: np.ndarray) -> np.ndarray:
    """This process's part of a batch uint8 that all of them hold, as Inception reads it."""
    return as_rgb(np.array_split(images, jax.process_count())[jax.process_index()])


def _joint_statistics(features: list[np.ndarray]) -> GaussianStatistics:
    """Of the features of all processes; kept, not reduced, they join to the bit."""
    found = np.concatenate(features)
    return statistics(_gather(found) if jax.process_count() > 1 else found)


def _gather(rows: np.ndarray) -> np.ndarray:
    """Rows of all processes, which may hold different numbers of them."""
    counts = multihost_utils.process_allgather(np.array(len(rows)))
    padded = np.pad(rows, [(0, counts.max() - len(rows)), (0, 0)])
    parts = multihost_utils.process_allgather(padded)
    return np.concatenate([part[:n] for part, n in zip(parts, counts, strict=True)])


class Every:
    """Runs an evaluator at fewer steps than the others.

    Args:
      evaluator: what runs.
      every: at the multiples of this many steps, and at the last; 0: at the last only.
      num_steps: of the training.
    """

    def __init__(self, evaluator: Evaluator, every: int, num_steps: int) -> None:
        self._evaluator, self._every, self._num_steps = evaluator, every, num_steps

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        due = self._every > 0 and step % self._every == 0
        return self._evaluator(state, step) if due or step == self._num_steps else Evaluation()

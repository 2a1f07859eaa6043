"""Evaluators that run inside the training loop, on every process alike.

They run wherever the step fits: batches are filled up to what the mesh divides, parameters stay
as the training lays them, and features are extracted by the devices that hold the pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from var_jax.data.pipeline import Pipeline
from var_jax.data.prefetch import prefetch_to_device
from var_jax.decoding.images import ImageSampler
from var_jax.evaluation.distances.frechet import GaussianStatistics, frechet_distance, statistics
from var_jax.evaluation.inception.extractor import MeshExtractor
from var_jax.evaluation.pictures import make_grid
from var_jax.evaluation.token_likelihood import TokenLikelihood
from var_jax.objectives.likelihood import summarise
from var_jax.parallel import arrays, sharding
from var_jax.pixels import to_float, to_uint8
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train.experiment import Evaluation, Evaluator
from var_jax.train.state import TrainState


class ValidationLoss:
    """Negative log likelihood and accuracy on held-out data, each example once.

    Args:
      measure: of the held-out data.
    """

    def __init__(self, measure: TokenLikelihood) -> None:
        self._measure = measure

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        scores = self._measure(state.evaluation_params())
        return Evaluation(summarise(scores.pyramid, scores.means))


class SampleGrid:
    """A grid of samples from the same path that inference takes; one column a class or prompt.

    Args:
      sampler: draws the images.
      given: what is asked for, see `Conditioner`.
      seed: of the samples; the same ones at each evaluation, to watch them improve.
      columns: of the picture.
    """

    def __init__(self, sampler: ImageSampler, given: Any, seed: int, columns: int) -> None:
        self._sampler, self._given, self._seed = sampler, given, seed
        self._columns = columns

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        index = np.arange(len(jax.tree.leaves(self._given)[0]))
        found = self._sampler(state.evaluation_params(), self._given, self._seed, index)
        return Evaluation(images={"samples": make_grid(found.images, self._columns)})


def jit_reconstruction(tokenizer: VQVAE, mesh: Mesh) -> Callable[..., Any]:
    """What `Reconstruction` runs on each batch, and what is planned.

    Returns:
      (params, images uint8 [B, H, W, c]) -> reconstructions uint8, PSNR float32 [B] in dB; both cut
      over the batch.
    """

    def run(params, images):
        images = to_float(images)
        output = tokenizer.apply({"params": params}, images, method="reconstruct")
        mse = jnp.square((output - images) / 2).mean((1, 2, 3))
        return to_uint8(output), -10 * jnp.log10(jnp.maximum(mse, 1e-10))

    return jax.jit(
        run,
        out_shardings=sharding.batch_sharding(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )


class Reconstruction:
    """PSNR and rFID of held-out reconstructions and a picture: originals above reconstructions.

    Args:
      tokenizer: module.
      pipeline: images, one pass in order; its batch size is what the mesh divides.
      mesh: of the training.
      preset: how the training lays parameters and activations on it.
      shown: pairs in the picture, spread evenly over the split: many data sets are sorted by
        class; 0 is no picture.
      params: of a tokenizer that does not train, on the mesh; None: those of the state.
      extractor: Inception, on the mesh; gives '2048'. None: no rFID.
    """

    def __init__(
        self,
        tokenizer: VQVAE,
        pipeline: Pipeline,
        mesh: Mesh,
        preset: str | sharding.Rules = "replicated",
        shown: int = 16,
        params: Any = None,
        extractor: MeshExtractor | None = None,
    ) -> None:
        self._pipeline, self._mesh, self._preset = pipeline, mesh, preset
        self._extractor, self._params = extractor, params
        self._originals: GaussianStatistics | None = None
        count = min(shown, pipeline.num_samples)
        self._shown = (2 * np.arange(count) + 1) * pipeline.num_samples // (2 * count)
        self._run = jit_reconstruction(tokenizer, mesh)

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        params = self._params
        if params is None:
            params = state.evaluation_params()["tokenizer"]
        psnr, made, originals = [], [], []
        # Of each picture shown: its number, the original, the reconstruction.
        pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        batches = prefetch_to_device(
            self._pipeline.batches(),
            sharding.batch_sharding(self._mesh),
            self._pipeline.batch_size,
        )
        for batch, _ in batches:
            with sharding.activate(self._mesh, self._preset):
                found = self._run(params, batch["image"])
            mask = arrays.to_host(batch["mask"])
            psnr.append(arrays.to_host(found[1])[mask])
            # Of the pictures shown each process fetches those that its own devices hold.
            own = (batch["index"], batch["mask"], batch["image"], found[0])
            index, counts, before, after = (arrays.own_rows(x)[1] for x in own)
            shown = counts & np.isin(index, self._shown)
            pairs.append((index[shown], before[shown], after[shown]))
            if self._extractor is not None:
                made.append(self._extractor(found[0])["2048"][mask])
                if self._originals is None:
                    originals.append(self._extractor(batch["image"])["2048"][mask])
        metrics, pictures = {"psnr": np.concatenate(psnr).mean()}, {}
        if self._extractor is not None:
            if self._originals is None:
                self._originals = statistics(np.concatenate(originals))
            found = statistics(np.concatenate(made))
            metrics["rfid"] = frechet_distance(found, self._originals)
        if len(self._shown):
            index, before, after = (np.concatenate(part) for part in zip(*pairs, strict=True))
            rows = [arrays.gather_rows(index, part) for part in (before, after)]
            pictures["reconstructions"] = make_grid(np.concatenate(rows), columns=len(rows[0]))
        return Evaluation(metrics, pictures)


class SmallFID:
    """Frechet Inception distance of samples to a reference, small enough to watch a training.

    It falls with the number of samples, so it compares steps and runs that share that number,
    not papers. Samples are drawn on the mesh of the training.

    Args:
      sampler: draws the images.
      extractor: Inception, on the mesh; gives '2048'.
      reference: statistics of the 2048 features of real images.
      num_samples: at each evaluation, class-balanced; always the same labels and seeds.
      batch_size: images at once, over all devices.
      seed: of the samples.
    """

    def __init__(
        self,
        sampler: ImageSampler,
        extractor: MeshExtractor,
        reference: GaussianStatistics,
        num_samples: int,
        batch_size: int,
        seed: int,
    ) -> None:
        if num_samples < 2:
            raise ValueError(f"A Frechet distance needs at least 2 samples, got {num_samples}.")
        self._sampler, self._extractor, self._reference = sampler, extractor, reference
        self._labels = np.arange(num_samples) % sampler.network.transformer.num_classes
        self._batch_size, self._seed = min(batch_size, num_samples), seed

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        began = time.perf_counter()
        batches = self._sampler.on_mesh(
            state.evaluation_params(), self._labels, self._seed, self._batch_size
        )
        features = [
            self._extractor(samples.images)["2048"][: len(numbers)] for numbers, samples in batches
        ]
        found = statistics(np.concatenate(features))
        value = frechet_distance(found, self._reference)
        return Evaluation({"fid": value, "fid_seconds": time.perf_counter() - began})


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

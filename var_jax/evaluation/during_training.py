"""Evaluators that run inside the training loop, on every process alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from var_jax import sharding
from var_jax.data.pipeline import Pipeline
from var_jax.data.prefetch import prefetch_to_device
from var_jax.evaluation.pictures import grid, to_uint8
from var_jax.objectives.likelihood import Likelihood, summarise
from var_jax.sampling.images import ImageSampler
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train.loop import Evaluation
from var_jax.train.state import TrainState


class ValidationLoss:
    """Negative log likelihood and accuracy on held-out data, each example once.

    Args:
      objective: without label smoothing or ramps: what matters is the likelihood.
      frozen: the objective's frozen parameters.
      pipeline: one pass in order (train=False).
      mesh: of the training.
    """

    def __init__(self, objective: Likelihood, frozen: Any, pipeline: Pipeline, mesh) -> None:
        self._pyramid = objective.var.pyramid
        self._pipeline, self._mesh = pipeline, mesh
        self._frozen = jax.device_put(frozen, sharding.replicated_sharding(mesh))

        def sums(params, frozen, batch):
            _, nll, correct = objective.per_token(params, frozen, batch)
            mask = batch["mask"].astype(jnp.float32)[:, None]
            return (nll * mask).sum(0), (correct * mask).sum(0), mask.sum()

        self._sums = jax.jit(sums, out_shardings=sharding.replicated_sharding(mesh))

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        total = None
        batches = prefetch_to_device(self._pipeline.batches(), sharding.batch_sharding(self._mesh))
        for batch, _ in batches:
            part = self._sums(state.evaluation_params(), self._frozen, batch)
            part = jax.tree.map(lambda x: np.asarray(jax.device_get(x), np.float64), part)
            total = part if total is None else jax.tree.map(np.add, total, part)
        nll, correct, count = total
        return Evaluation(summarise(self._pyramid, nll / count, correct / count))


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
    """PSNR of held-out reconstructions and a picture: originals above reconstructions.

    Args:
      tokenizer: module.
      pipeline: images, one pass in order.
      mesh: of the training.
      shown: pairs in the picture.
    """

    def __init__(self, tokenizer: VQVAE, pipeline: Pipeline, mesh, shown: int = 16) -> None:
        self._pipeline, self._mesh, self._shown = pipeline, mesh, shown

        def run(params, images):
            images = images.astype(jnp.float32) / 127.5 - 1
            output = tokenizer.apply({"params": params}, images, method="reconstruct")
            mse = jnp.square((output - images) / 2).mean((1, 2, 3))
            return output, -10 * jnp.log10(jnp.maximum(mse, 1e-10))

        self._run = jax.jit(run, out_shardings=sharding.replicated_sharding(mesh))

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        params = state.evaluation_params()["tokenizer"]
        psnr, picture = [], None
        batches = prefetch_to_device(self._pipeline.batches(), sharding.batch_sharding(self._mesh))
        for batch, _ in batches:
            output, values = self._run(params, batch["image"])
            psnr.append(sharding.to_host(values)[sharding.to_host(batch["mask"])])
            if picture is None:
                before = sharding.to_host(batch["image"])[: self._shown]
                after = to_uint8(sharding.to_host(output))[: self._shown]
                picture = grid(np.concatenate([before, after]), columns=len(before))
        return Evaluation({"psnr": np.concatenate(psnr).mean()}, {"reconstructions": picture})

"""Negative log likelihood of the token maps of a split, level by level.

What is measured is -log p(tokens | label) of each example's token map, as the tokenizer makes it:
the sum over all tokens of the cross entropy given the coarser levels and the label. It is the
cost of writing the token map down. The pixels cost more, since what the tokenizer loses is not
counted; so the numbers compare transformers that share a tokenizer, and none of them is a
likelihood of images. "Bits a dimension" is the total over ln 2 and over the number of tokens; the
same bits over the H W c numbers of the image are given beside it, as the rate of the code only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from var_jax.data.pipeline import Pipeline
from var_jax.data.prefetch import prefetch_to_device
from var_jax.objectives.likelihood import Likelihood
from var_jax.parallel import arrays, sharding
from var_jax.pyramid import ScalePyramid


@struct.dataclass
class TokenScores:
    """Means over the examples of a split.

    Attributes:
      pyramid: of the tokens.
      count: examples.
      nll: float64 [L], nats at each position.
      correct: float64 [L], share of right predictions (the most likely token).
      deviation: standard deviation over examples of an example's nats a token.
    """

    pyramid: ScalePyramid = struct.field(pytree_node=False)
    count: int = struct.field(pytree_node=False)
    nll: np.ndarray
    correct: np.ndarray
    deviation: float

    @property
    def standard_error(self) -> float:
        """Of the mean nats a token, over the choice of examples."""
        return self.deviation / math.sqrt(self.count)

    def as_dict(self, image_shape: Sequence[int]) -> dict[str, Any]:
        """The scores by name, ready for JSON.

        Args:
          image_shape: (H, W, c) that a token map stands for.
        """

        def part(nll, correct):
            return {
                "tokens": len(nll),
                "nats": float(nll.sum()),
                "nats_per_token": float(nll.mean()),
                "bits_per_token": float(nll.mean() / math.log(2)),
                "accuracy": float(correct.mean()),
            }

        whole = part(self.nll, self.correct)
        levels = zip(
            self.pyramid.shapes,
            self.pyramid.split(self.nll, axis=0),
            self.pyramid.split(self.correct, axis=0),
            strict=True,
        )
        return {
            "num_examples": self.count,
            **whole,
            "nats_per_token_standard_error": float(self.standard_error),
            "bits_per_pixel_channel": whole["nats"] / math.log(2) / math.prod(image_shape),
            "levels": [{"shape": list(shape), **part(*rest)} for shape, *rest in levels],
        }


def jit_token_sums(objective: Likelihood, mesh: Mesh) -> Callable[..., Any]:
    """The scores of a batch as they are taken, while training too, and as they are planned.

    Args:
      objective, mesh: see `TokenLikelihood`.

    Returns:
      (params, frozen, batch) -> sums over the batch's examples of nll and of hits, each [L]; each
      example's nats per token and whether it counts, each [B]; all of them whole on every device.
    """

    def sums(params, frozen, batch):
        _, nll, correct = objective.per_token(params, frozen, batch)
        mask = batch["mask"].astype(jnp.float32)[:, None]
        return (nll * mask).sum(0), (correct * mask).sum(0), nll.mean(1), batch["mask"]

    return jax.jit(
        sums,
        out_shardings=sharding.replicated_sharding(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )


class TokenLikelihood:
    """Scores every example of a split once, on any mesh; compiled at the first call.

    Args:
      objective: without label smoothing or ramps: what matters is the likelihood.
      frozen: the objective's frozen parameters, on the mesh or on the host.
      pipeline: images or tokens, one pass in order (train=False); its batch size is what the
        mesh divides.
      mesh: batches are spread over its data and fsdp axes.
      preset: how activations lie on the mesh: that of the parameters.
    """

    def __init__(
        self,
        objective: Likelihood,
        frozen: Any,
        pipeline: Pipeline,
        mesh: Mesh,
        preset: str | sharding.Rules = "replicated",
    ) -> None:
        self._pyramid = objective.var.pyramid
        self._pipeline, self._mesh, self._preset = pipeline, mesh, preset
        self._frozen = arrays.put_host_arrays(frozen, sharding.replicated_sharding(mesh))
        self._sums = jit_token_sums(objective, mesh)

    def __call__(
        self, params: Any, progress: Callable[[int], None] = lambda done: None
    ) -> TokenScores:
        """Scores parameters, laid out in any way on the mesh.

        Args:
          params: {'transformer': ..., 'head': ...}.
          progress: called with the number of examples done.

        Raises:
          ValueError: no example of the split could be read.
        """
        length = self._pyramid.length
        nll, correct, examples = np.zeros(length), np.zeros(length), []
        batches = prefetch_to_device(
            self._pipeline.batches(),
            sharding.batch_sharding(self._mesh),
            self._pipeline.batch_size,
        )
        for batch, _ in batches:
            with sharding.activate(self._mesh, self._preset):
                part = self._sums(params, self._frozen, batch)
            nll_sum, correct_sum, by_example, mask = map(np.asarray, part)
            # Sums of a batch fit float32; those of a split do not.
            nll += nll_sum.astype(np.float64)
            correct += correct_sum.astype(np.float64)
            examples.append(by_example[mask].astype(np.float64))
            progress(sum(map(len, examples)))
        examples = np.concatenate(examples) if examples else np.zeros(0)
        count = len(examples)
        if not count:
            raise ValueError("The split has no example that can be read.")
        return TokenScores(self._pyramid, count, nll / count, correct / count, examples.std())


def table(values: dict[str, Any]) -> str:
    """`TokenScores.as_dict` as lines of text: one row a level, one for all of them."""
    columns = ("tokens", "nats", "nats_per_token", "bits_per_token", "accuracy")
    rows = [("level", "tokens", "nats", "nats a token", "bits a token", "accuracy")]
    parts = [("x".join(map(str, level["shape"])), level) for level in values["levels"]]
    for name, part in [*parts, ("all", values)]:
        numbers = [part[c] for c in columns]
        rows.append((name, str(numbers[0]), *(f"{n:.4f}" for n in numbers[1:])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )

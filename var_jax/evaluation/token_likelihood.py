"""Negative log likelihood of the token maps of a split, level by level.

What is measured is -log p(tokens | label) of each example's token map, as the tokenizer makes it:
the sum over all tokens of the cross entropy given the coarser levels and the label. It is the
cost of writing the token map down. The pixels cost more, since what the tokenizer loses is not
counted; so the numbers compare transformers that share a tokenizer, and none of them is a
likelihood of images. "Bits per dimension" is the total over ln 2 and over the number of tokens; the
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
from var_jax.objectives.base import NetworkObjective
from var_jax.parallel import arrays, sharding
from var_jax.pyramid import ScalePyramid


@struct.dataclass
class TokenScores:
    """Means over the examples of a split.

    Attributes:
      pyramid: of the tokens.
      count: examples.
      means: float64 [L] by name: 'loss', the head's loss at each position, nats where the head
        has a likelihood; and what else it reports, such as 'accuracy'.
      deviation: standard deviation over examples of an example's mean loss.
    """

    pyramid: ScalePyramid = struct.field(pytree_node=False)
    count: int = struct.field(pytree_node=False)
    means: dict[str, np.ndarray]
    deviation: float

    @property
    def standard_error(self) -> float:
        """Of the mean nats per token, over the choice of examples."""
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

        nll, correct = self.means["loss"], self.means["accuracy"]
        whole = part(nll, correct)
        levels = zip(
            self.pyramid.shapes,
            self.pyramid.split(nll, axis=0),
            self.pyramid.split(correct, axis=0),
            strict=True,
        )
        return {
            "num_examples": self.count,
            **whole,
            "nats_per_token_standard_error": float(self.standard_error),
            "bits_per_pixel_channel": whole["nats"] / math.log(2) / math.prod(image_shape),
            "levels": [{"shape": list(shape), **part(*rest)} for shape, *rest in levels],
        }


def jit_token_sums(objective: NetworkObjective, mesh: Mesh) -> Callable[..., Any]:
    """The scores of a batch as they are taken, while training too, and as they are planned.

    Args:
      objective, mesh: see `TokenLikelihood`.

    Returns:
      (params, frozen, batch) -> sums over the batch's examples of what the head reports, [L] by
      name; each example's mean loss and whether it counts, each [B]; all of them whole on every
      device.
    """
    plain = objective.held_out

    def sums(params, frozen, batch):
        _, found = plain.per_token(params, frozen, batch)
        mask = batch["mask"].astype(jnp.float32)[:, None]
        totals = {name: (x * mask).sum(0) for name, x in found.items()}
        return totals, found["loss"].mean(1), batch["mask"]

    return jax.jit(
        sums,
        out_shardings=sharding.replicated_sharding(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )


class TokenLikelihood:
    """Scores every example of a split once, on any mesh; compiled at the first call.

    Args:
      objective: what trains the network.
      frozen: the objective's frozen parameters, on the mesh or on the host.
      pipeline: images or tokens, one pass in order (train=False); its batch size is what the
        mesh divides.
      mesh: batches are spread over its data and fsdp axes.
      preset: how activations lie on the mesh: that of the parameters.
    """

    def __init__(
        self,
        objective: NetworkObjective,
        frozen: Any,
        pipeline: Pipeline,
        mesh: Mesh,
        preset: str | sharding.Rules = "replicated",
    ) -> None:
        self._pyramid = objective.network.transformer.pyramid
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
        totals: dict[str, np.ndarray] = {}
        examples: list[np.ndarray] = []
        batches = prefetch_to_device(
            self._pipeline.batches(),
            sharding.batch_sharding(self._mesh),
            self._pipeline.batch_size,
        )
        for batch, _ in batches:
            with sharding.activate(self._mesh, self._preset):
                part = self._sums(params, self._frozen, batch)
            sums, by_example, mask = jax.tree.map(np.asarray, part)
            # Sums of a batch fit float32; those of a split do not.
            for name, total in sums.items():
                totals[name] = totals.get(name, 0.0) + total.astype(np.float64)
            examples.append(by_example[mask].astype(np.float64))
            progress(sum(map(len, examples)))
        found = np.concatenate(examples) if examples else np.zeros(0)
        count = len(found)
        if not count:
            raise ValueError("The split has no example that can be read.")
        means = {name: total / count for name, total in totals.items()}
        return TokenScores(self._pyramid, count, means, float(found.std()))


def table(values: dict[str, Any]) -> str:
    """`TokenScores.as_dict` as lines of text: one row for each level, one for all of them."""
    columns = ("tokens", "nats", "nats_per_token", "bits_per_token", "accuracy")
    rows = [("level", "tokens", "nats", "nats/token", "bits/token", "accuracy")]
    parts = [("x".join(map(str, level["shape"])), level) for level in values["levels"]]
    for name, part in [*parts, ("all", values)]:
        numbers = [part[c] for c in columns]
        rows.append((name, str(numbers[0]), *(f"{n:.4f}" for n in numbers[1:])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )

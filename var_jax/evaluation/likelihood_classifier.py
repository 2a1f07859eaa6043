"""A generative model as a classifier: the label under which an image is the likeliest (A-VARC).

The score of a label is log p(tokens of the first levels | label), without guidance. Block-causal
passes make it cheap: a few coarse levels, which are a seventh of the tokens, leave few labels to
judge by all levels, and these may be judged on several noisy copies of the image, whose tokens
differ where the quantizer is undecided (arXiv 2510.12060).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from var_jax.codecs.base import Lesson
from var_jax.data.pipeline import Pipeline
from var_jax.data.prefetch import prefetch_to_device
from var_jax.decoding.asking import check_asks_for_classes
from var_jax.network import Network
from var_jax.parallel import arrays, sharding
from var_jax.pixels import to_float
from var_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Stages, each of which judges the labels that the one before kept; the first judges all.

    Attributes:
      levels: so many levels are scored, for each stage.
      kept: labels that go on, the last number being those that are ranked.
      copies: the image and copies - 1 noisy ones, of which the mean is taken; None is 1 for all.
      noise: standard deviation of the copies' noise on the encoder's features.
    """

    levels: tuple[int, ...]
    kept: tuple[int, ...] = (1,)
    copies: tuple[int, ...] | None = None
    noise: float = 0.1

    def stages(self, num_levels: int, num_classes: int) -> list[tuple[int, int, int]]:
        """(levels, kept, copies) of each stage.

        Raises:
          ValueError: they do not suit each other or the model.
        """
        copies = (1,) * len(self.levels) if self.copies is None else self.copies
        stages = list(zip(self.levels, self.kept, copies, strict=False))
        before = (num_classes, *self.kept)
        if not len(self.levels) == len(self.kept) == len(copies) > 0:
            raise ValueError(
                f"A cascade needs as many levels as kept labels and copies, got {self.levels}, "
                f"{self.kept} and {copies}."
            )
        for i, (levels, kept, number) in enumerate(stages):
            if not (1 <= levels <= num_levels and 1 <= kept <= before[i] and number >= 1):
                raise ValueError(
                    f"Stage {i} of the cascade scores {levels} levels and {number} copies and "
                    f"keeps {kept} of {before[i]} labels; the model has {num_levels} levels."
                )
        if self.noise < 0:
            raise ValueError(f"The noise of the cascade's copies is {self.noise}; give 0 or more.")
        return stages


@flax.struct.dataclass
class Ranking:
    """Labels of each image, the likeliest first.

    Attributes:
      labels: int32 [B, n].
      scores: float32 [B, n], log p(tokens of the scored levels | label) in nats.
    """

    labels: jax.Array
    scores: jax.Array


def label_scores(
    network: Network, params: Any, lesson: Lesson, labels: Int[jax.Array, "B m"], levels: int
) -> Float[jax.Array, "B m"]:
    """log p(tokens of the first levels | label) of each of m labels, in nats.

    Args:
      network, params: of a model of class labels.
      lesson: of the images' tokens, of all levels.
      labels: of each image.
      levels: how many.
    """
    pyramid = network.transformer.pyramid
    scored = range(levels)
    tokens, part = pyramid.tokens(scored), pyramid.part(scored)

    def score(column: jax.Array) -> jax.Array:
        given = network.transformer.conditioning().read({"label": column})
        hidden, _ = network.hidden(
            params, lesson.inputs[:, tokens], given, pyramid=pyramid, levels=scored
        )
        _, found = network.loss(params, hidden, lesson.targets[:, tokens], None, part)
        return -found["loss"].sum(1)

    return jax.lax.map(score, labels.T).T


def classify(
    network: Network,
    params: Any,
    tokenizer: VQVAE,
    tokenizer_params: Any,
    images: Float[jax.Array, "B H W c"],
    keys: jax.Array,
    cascade: Cascade,
) -> Ranking:
    """Ranks the labels of images.

    Args:
      network, params: of a model of class labels whose head has a likelihood.
      tokenizer, tokenizer_params: of the same tokens.
      images: in [-1, 1].
      keys: one PRNG key for each image [B], for the noise of copies.
      cascade: how.

    Raises:
      ValueError: the head has no likelihood, or the cascade does not suit the model.
    """
    check_asks_for_classes(network.transformer)
    if not network.head.has_likelihood:
        raise ValueError("This model's head draws, but has no likelihood to classify by.")
    transformer = network.transformer
    stages = cascade.stages(transformer.pyramid.num_levels, transformer.num_classes)
    codec: Any = tokenizer.codec
    features: Any = tokenizer.apply({"params": tokenizer_params}, images, method="features")

    def lesson(number: int) -> Lesson:
        """Of a copy; number 0 is the image itself."""
        noisy = features
        if number:
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            noise = jax.vmap(lambda key: jax.random.normal(key, features.shape[1:]))(own)
            noisy = features + cascade.noise * noise
        variables = {"params": tokenizer_params.get("codec", {})}
        source = codec.apply(variables, noisy, method="read")
        found: Lesson = codec.apply(variables, source, transformer.pyramid, method="lesson")
        return found

    lessons = [lesson(number) for number in range(max(copies for _, _, copies in stages))]
    labels = jnp.arange(transformer.num_classes, dtype=jnp.int32)
    labels = jnp.broadcast_to(labels, (len(images), transformer.num_classes))
    for levels, kept, copies in stages:
        found = [label_scores(network, params, x, labels, levels) for x in lessons[:copies]]
        scores, best = jax.lax.top_k(sum(found) / copies, kept)
        labels = jnp.take_along_axis(labels, best, axis=1)
    return Ranking(labels, scores)


def jit_classification(
    network: Network, tokenizer: VQVAE, cascade: Cascade, mesh: jax.sharding.Mesh
) -> Callable[..., Ranking]:
    """`classify` as it runs on a mesh.

    Returns:
      (params, the tokenizer's, images uint8 [B, H, W, c], seed uint32, index uint32 [B]) ->
      Ranking, whole on every device; an image's noise hangs on the seed and its index alone.
    """

    def run(params, tokenizer_params, images, seed, index):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
        pictures = to_float(images)
        return classify(network, params, tokenizer, tokenizer_params, pictures, keys, cascade)

    return jax.jit(
        run,
        out_shardings=sharding.replicated_sharding(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )


def accuracy(
    run: Callable[..., Ranking],
    params: Any,
    tokenizer_params: Any,
    pipeline: Pipeline,
    mesh: jax.sharding.Mesh,
    num_examples: int | None = None,
    seed: int = 0,
) -> tuple[float, int]:
    """The share of a split's images whose own label comes first.

    Args:
      run: of `jit_classification`.
      params, tokenizer_params: on the mesh.
      pipeline: images, one pass in order (train=False).
      mesh: of `run`.
      num_examples: the first of them; all by default.
      seed: of the noise.

    Returns:
      The share, and of how many images it is.

    Raises:
      ValueError: no image could be read.
    """
    right = count = 0
    split = sharding.batch_sharding(mesh)
    for batch, _ in prefetch_to_device(pipeline.batches(), split, pipeline.batch_size):
        with sharding.activate(mesh, "replicated"):
            found = run(params, tokenizer_params, batch["image"], np.uint32(seed), batch["index"])
        labels, mask = arrays.to_host(batch["label"]), arrays.to_host(batch["mask"])
        left = len(labels) if num_examples is None else num_examples - count
        mask = mask & (np.cumsum(mask) <= left)
        right += int((np.asarray(found.labels)[:, 0] == labels)[mask].sum())
        count += int(mask.sum())
        if num_examples is not None and count >= num_examples:
            break
    if not count:
        raise ValueError("The split has no example that can be read.")
    return right / count, count

"""Scores of a tokenizer: reconstructions against the very pictures that went in.

rFID, PSNR, SSIM, LPIPS, what happens to edges and fine detail, how many codes are used, and how
much each level adds. Everything is streamed; reconstructions are rounded to 8 bits first, since
that is what a file of them would hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from var_jax.evaluation.distances.frechet import frechet_distance
from var_jax.evaluation.generated.npz_images import as_rgb
from var_jax.evaluation.generated.summary import Extractor, Summary, SummaryBuilder
from var_jax.evaluation.reconstructed.image_scores import WINDOW, image_scores, psnr
from var_jax.evaluation.reconstructed.perturbed_scores import PerturbedScores
from var_jax.evaluation.reconstructed.text_preservation import MAX_PSNR
from var_jax.evaluation.small_sets.small_set import level_statistics
from var_jax.parallel import arrays, sharding
from var_jax.pixels import to_float, to_uint8
from var_jax.tokenizer.lpips import LPIPS, MIN_SIZE
from var_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass(frozen=True)
class TokenizerScores:
    """Means over the images; None where a score was not asked for or has no meaning.

    Attributes:
      num_images: scored.
      psnr: dB; an exact copy counts as 100. ssim: at most 1. lpips: VGG, 0 is best.
      edge_error, high_frequency_error, high_frequency_ratio: see image_scores.
      rfid, rsfid: Frechet distances to the originals (or to the reference that was given).
      inception_score: of the reconstructions. inception_score_original: of the originals.
      perturbed: what perturbed codes decode to.
      code_usage: share of the codebook that each level uses, K values; 0 without codes.
      code_perplexity: exp(entropy) of the codes of each level, K values.
      codebook_usage: share of the codebook that any level uses.
      psnr_by_levels: dB with the first 1 .. K levels, K values, of num_level_images images.
    """

    num_images: int
    psnr: float
    code_usage: tuple[float, ...]
    code_perplexity: tuple[float, ...]
    codebook_usage: float
    psnr_by_levels: tuple[float, ...]
    num_level_images: int
    ssim: float | None = None
    lpips: float | None = None
    edge_error: float | None = None
    high_frequency_error: float | None = None
    high_frequency_ratio: float | None = None
    rfid: float | None = None
    rsfid: float | None = None
    inception_score: float | None = None
    inception_score_original: float | None = None
    perturbed: PerturbedScores | None = None


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pictures for a report, uint8.

    Attributes:
      originals, reconstructions: [n, H, W, c].
      levels: [K, n, H, W, c], what the first 1 .. K levels show.
    """

    originals: np.ndarray
    reconstructions: np.ndarray
    levels: np.ndarray


class TokenizerRunner:
    """A tokenizer as functions of uint8 images; batches of any size, one compiled size.

    Args:
      tokenizer: module.
      params: its parameters.
      batch_size: images at once, over all devices of the mesh; must divide by them.
      lpips_params: of LPIPS, or None for no LPIPS.
      mesh: the default device alone by default.
    """

    def __init__(
        self,
        tokenizer: VQVAE,
        params: PyTree,
        batch_size: int,
        lpips_params: PyTree = None,
        mesh: jax.sharding.Mesh | None = None,
    ) -> None:
        mesh = mesh if mesh is not None else sharding.make_mesh(devices=jax.local_devices()[:1])
        everywhere = sharding.replicated_sharding(mesh)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._split = sharding.batch_sharding(mesh)
        self._params = arrays.place({"tokenizer": params, "lpips": lpips_params}, everywhere)
        side = min(tokenizer.image_shape[:2])
        if lpips_params is not None and side < MIN_SIZE:
            raise ValueError(f"LPIPS needs images of at least {MIN_SIZE} px, not {side}.")

        def apply(params, x, method):
            return tokenizer.apply({"params": params["tokenizer"]}, x, method=method)

        def run(params, images):
            tokens = apply(params, to_float(images), "encode")
            made = to_uint8(apply(params, tokens, "decode_tokens"))
            if side >= WINDOW:
                scores = dict(vars(image_scores(images, made)))
            else:
                scores = {"psnr": psnr(images, made)}
            if lpips_params is not None:
                pair = [_three_channels(to_float(x)) for x in (images, made)]
                scores["lpips"] = LPIPS().apply({"params": params["lpips"]}, *pair)
            return made, tokens, scores

        def levels(params, images, tokens):
            made = to_uint8(apply(params, tokens, "decode_levels"))  # [K, B, H, W, c]
            return made, jax.vmap(psnr, (None, 0))(images, made)

        self._run = jax.jit(run)
        self._levels = jax.jit(levels)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """uint8 [n, H, W, c] -> reconstructions uint8, tokens int32 [n, L], scores by name [n]."""
        found = [
            jax.tree.map(lambda x, n=count: arrays.to_host(x)[:n], self._run(self._params, part))
            for count, part in self._parts(images)
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def by_levels(self, images: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 [K, n, H, W, c] and PSNR [K, n] of the first 1 .. K levels."""
        parts = zip(self._parts(images), self._parts(tokens), strict=True)
        found = [
            jax.tree.map(
                lambda x, n=count: arrays.to_host(x)[:, :n], self._levels(self._params, x, t)
            )
            for (count, x), (_, t) in parts
        ]
        return jax.tree.map(lambda *levels: np.concatenate(levels, 1), *found)

    def _parts(self, rows: np.ndarray) -> Iterable[tuple[int, jax.Array]]:
        """Rows cut to batches, the last one filled up; with the number that count."""
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            filled = np.resize(part, (self.batch_size, *part.shape[1:]))
            yield len(part), jax.device_put(filled, self._split)


def score_tokenizer(
    runner: TokenizerRunner,
    batches: Iterable[np.ndarray],
    extractor: Extractor | None = None,
    reference: Summary | None = None,
    *,
    num_level_images: int = 256,
    num_examples: int = 12,
    on_batch: Callable[[np.ndarray, np.ndarray], None] = lambda images, made: None,
) -> tuple[TokenizerScores, Examples]:
    """All scores in one pass.

    Args:
      runner: the tokenizer.
      batches: uint8 [n, H, W, c], cropped as the tokenizer's own evaluation wants them.
      extractor: for rFID; None for none.
      reference: to take the distance to; None takes the originals that went in.
      num_level_images: so many are decoded level by level too (K decodings per image).
      num_examples: pictures for the report, of the first batches.
      on_batch: called with each batch and its reconstructions.

    Returns:
      scores, and pictures.

    Raises:
      ValueError: fewer than two images.
    """
    codec = runner.tokenizer.codec
    # Bits are codes of two values; what is not quantised has none.
    num_codes = codec.target.num_values
    counts = np.zeros((codec.pyramid.num_levels, max(num_codes, 1)), np.int64)
    sums: dict[str, float] = {}
    num_images = 0
    level_psnr: list[np.ndarray] = []
    shown: list[tuple[np.ndarray, ...]] = []
    sides = ("original", "made")
    builders = (
        None if extractor is None else {s: SummaryBuilder(extractor.sizes, False) for s in sides}
    )
    for images in batches:
        made, tokens, scores = runner(images)
        scores["psnr"] = np.minimum(scores["psnr"], MAX_PSNR)
        for name, values in scores.items():
            sums[name] = sums.get(name, 0.0) + float(values.sum(dtype=np.float64))
        for level, part in enumerate(codec.pyramid.split(tokens) if num_codes else ()):
            counts[level] += np.bincount(part.reshape(-1), minlength=num_codes)
        wanted = min(len(images), num_level_images - sum(p.shape[1] for p in level_psnr))
        if wanted > 0:
            pictures, values = runner.by_levels(images[:wanted], tokens[:wanted])
            level_psnr.append(np.minimum(values, MAX_PSNR))
            more = num_examples - sum(len(s[0]) for s in shown)
            if more > 0:
                shown.append((images[:wanted][:more], made[:wanted][:more], pictures[:, :more]))
        if builders is not None:
            for side, pixels in zip(sides, (images, made), strict=True):
                if side == "original" and reference is not None:
                    continue
                for features in extractor.stream([as_rgb(pixels)]):
                    builders[side].update(features)
        num_images += len(images)
        on_batch(images, made)
    if num_images < 2:
        raise ValueError(
            f"Scores of a tokenizer need at least 2 images, and there are {num_images}."
        )
    usage, perplexity = level_statistics(counts)
    by_levels = np.concatenate(level_psnr, 1)
    result = TokenizerScores(
        num_images=num_images,
        code_usage=usage,
        code_perplexity=perplexity,
        codebook_usage=float((counts.sum(0) > 0).mean()),
        psnr_by_levels=tuple(float(v) for v in by_levels.mean(1, dtype=np.float64)),
        num_level_images=by_levels.shape[1],
        **{name: total / num_images for name, total in sums.items()},
        **(_distances(builders, reference) if builders is not None else {}),
    )
    examples = Examples(
        *(np.concatenate([s[i] for s in shown], axis) for i, axis in enumerate((0, 0, 1)))
    )
    return result, examples


def _distances(builders: dict[str, SummaryBuilder], reference: Summary | None) -> dict[str, float]:
    made = builders["made"].summary()
    original = reference if reference is not None else builders["original"].summary()
    found = {}
    for name, attribute in (("rfid", "pool"), ("rsfid", "spatial")):
        a, b = getattr(made, attribute), getattr(original, attribute)
        if a is not None and b is not None:
            found[name] = frechet_distance(a, b)
    for name, summary in (("inception_score", made), ("inception_score_original", original)):
        if summary.inception is not None:
            found[name] = summary.inception.score()
    return found


def _three_channels(images: jax.Array) -> jax.Array:
    return jnp.repeat(images, 3, -1) if images.shape[-1] == 1 else images

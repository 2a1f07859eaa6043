"""pFID: how well a decoder puts up with codes that are nearly right (RobusTok, arXiv 2503.08354).

The codes of pictures are perturbed at several rates and strengths and decoded; pFID is the mean of
the Frechet distances of the results to the originals. The paper finds that it foretells the scores
of a generator where rFID, of codes that are all right, does not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PyTree, UInt8

from var_jax.evaluation.distances.frechet import GaussianStatistics, frechet_distance
from var_jax.evaluation.generated.npz_images import as_rgb
from var_jax.evaluation.generated.summary import Extractor, SummaryBuilder
from var_jax.parallel import arrays, sharding
from var_jax.pixels import to_float, to_uint8
from var_jax.quantizers.perturbation import Perturbation
from var_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass(frozen=True)
class PerturbedScores:
    """What perturbed codes decode to, against the originals.

    Attributes:
      pfid: mean of the distances.
      distances: Frechet distance of each (token_rate, num_nearest), in the order given.
      strengths: these pairs.
    """

    pfid: float
    distances: tuple[float, ...]
    strengths: tuple[tuple[float, int], ...]


class PerturbedFID:
    """Streams pictures, each of which is perturbed at every strength.

    All examples are perturbed, each with codes near to the vectors that its own were chosen for.

    Args:
      tokenizer: module, whose codec has a codebook.
      params: its parameters.
      extractor: gives '2048'.
      token_rates: see `Perturbation`.
      num_nearest: each is tried with each rate.
      batch_size: images at once, over all devices of the mesh; must divide by them.
      mesh: the default device alone by default.
      seed: of the perturbations; those of a picture hang on its number.

    Raises:
      ValueError: the codec has no codebook, or not that many codes; or a rate is out of range.
    """

    def __init__(
        self,
        tokenizer: VQVAE,
        params: PyTree,
        extractor: Extractor,
        token_rates: Sequence[float],
        num_nearest: Sequence[int],
        batch_size: int,
        mesh: jax.sharding.Mesh | None = None,
        seed: int = 0,
    ) -> None:
        codec = tokenizer.codec
        if max(num_nearest) > codec.codebook_size:
            raise ValueError(
                f"pFID takes one of the {max(num_nearest)} nearest codes, but the tokenizer's "
                f"codebook has {codec.codebook_size}; give fewer, or another tokenizer."
            )
        mesh = mesh if mesh is not None else sharding.make_mesh(devices=jax.local_devices()[:1])
        self._strengths = tuple((rate, count) for rate in token_rates for count in num_nearest)
        self._params = arrays.place(params, sharding.replicated_sharding(mesh))
        self._split, self._batch_size = sharding.batch_sharding(mesh), batch_size
        self._extractor, self._count = extractor, 0
        # The originals, then what each strength gives.
        builders = range(1 + len(self._strengths))
        sizes = {"2048": extractor.sizes["2048"]}
        self._builders = [SummaryBuilder(sizes, False) for _ in builders]

        def vectors(params, images):
            def chosen_for(tokenizer, images):
                return tokenizer.codec.quantize(tokenizer.features(images)).vectors

            return tokenizer.apply({"params": params}, to_float(images), method=chosen_for)

        def replaced(params, vectors, index, perturbation):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
            drawn = perturbation.draw(keys, codec.pyramid.length)
            book = params["codec"]["codebook"]
            return perturbation.codes(vectors, book, drawn, codec.normalize_codes)

        def decode(params, tokens):
            return to_uint8(tokenizer.apply({"params": params}, tokens, method="decode_tokens"))

        self._vectors, self._decode = jax.jit(vectors), jax.jit(decode)
        self._replaced = [
            jax.jit(functools.partial(replaced, perturbation=Perturbation(1.0, *strength)))
            for strength in self._strengths
        ]

    def add(self, images: UInt8[np.ndarray, "n H W c"]) -> None:
        """Adds pictures of the tokenizer's shape."""
        for start in range(0, len(images), self._batch_size):
            part = images[start : start + self._batch_size]
            filled = np.resize(part, (self._batch_size, *part.shape[1:]))
            index = np.arange(self._count, self._count + self._batch_size, dtype=np.uint32)
            filled, index = jax.device_put((filled, index), self._split)
            vectors = self._vectors(self._params, filled)
            self._count += len(part)
            self._update(0, part)
            for i, replace in enumerate(self._replaced, 1):
                made = self._decode(self._params, replace(self._params, vectors, index))
                self._update(i, arrays.to_host(made)[: len(part)])

    def scores(self, reference: GaussianStatistics | None = None) -> PerturbedScores:
        """Of all pictures so far.

        Args:
          reference: to take the distances to; the originals by default.
        """
        pools = [builder.summary().pool for builder in self._builders]
        reference = pools[0] if reference is None else reference
        found = tuple(float(frechet_distance(pool, reference)) for pool in pools[1:])
        return PerturbedScores(float(np.mean(found)), found, self._strengths)

    def _update(self, i: int, images: np.ndarray) -> None:
        for features in self._extractor.stream([as_rgb(images)]):
            self._builders[i].update(features)

"""A trained model in three lines: `var_jax.load(path)`, then sample, encode, decode, score.

    import var_jax

    model = var_jax.load("runs/quickstart/transformer")
    images = model.sample([3, 1], seed=0, cfg=1.5)  # uint8 [2, H, W, c]

On several hosts every process calls everything alike and gets everything.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from var_jax import build, checkpoint
from var_jax.convert import config as convert_config
from var_jax.convert import official
from var_jax.decoding.images import ImageSampler
from var_jax.network import sampling_params
from var_jax.objectives.likelihood import Likelihood
from var_jax.parallel import arrays, sharding
from var_jax.paths import resolve
from var_jax.pixels import to_float, to_uint8

#: Endings of official files; anything else is a checkpoint's folder.
FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
#: Samples of one seed and label before numbers repeat.
_MOST_PER_LABEL = 2**20


def load(
    path: epath.PathLike,
    tokenizer: epath.PathLike | None = None,
    *,
    patch_nums: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> Model:
    """Loads a model onto the devices that are there.

    Args:
      path: workdir of a transformer or of a tokenizer, local or gs://; or an official PyTorch file
        (.pth or safetensors) of either.
      tokenizer: its tokenizer, a workdir or an official file; beside a workdir by default.
      patch_nums: side lengths of the levels of an official file that has no published pyramid.
      mesh: over which batches are spread, whole parameters on each device; all devices by default.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it cannot be read, or the tokenizer does not belong to it.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    path, tokenizer = resolve(path), tokenizer and resolve(tokenizer)
    if str(path).endswith(FILES):
        return _load_official(str(path), tokenizer and str(tokenizer), patch_nums, mesh)
    if checkpoint.inspect(path).metadata.get("kind") == "tokenizer":
        return Model(build.load_tokenizer(path).on(mesh), None, mesh)
    loaded = build.load_transformer(path, tokenizer, mesh=mesh, for_sampling=True)
    return Model(loaded.tokenizer, loaded, mesh)


def _load_official(
    path: str, tokenizer: str | None, patch_nums: Sequence[int] | None, mesh: Mesh
) -> Model:
    everywhere = sharding.replicated_sharding(mesh)
    if tokenizer is None:
        module, params = official.read_tokenizer(path, patch_nums)
        return Model(_tokenizer(module, params).on(mesh), None, mesh)
    shape = official.describe_transformer(path, patch_nums)
    if tokenizer.endswith(FILES):
        loaded = _tokenizer(*official.read_tokenizer(tokenizer, shape.patch_nums))
    else:
        loaded = build.load_tokenizer(tokenizer)
    official.check_match(loaded.module, shape, tokenizer, path)
    network, params = official.read_network(path, shape.patch_nums, shape.num_heads)
    params = arrays.place(sampling_params(network, params), everywhere)
    config = convert_config.transformer_config(loaded.module, network.transformer)
    loaded = loaded.on(mesh)
    transformer = build.LoadedTransformer(
        network=network,
        params=params,
        tokenizer=loaded,
        config=ConfigDict(config),
        step=0,
        metadata={},
        mesh=mesh,
        preset="replicated",
    )
    return Model(loaded, transformer, mesh)


def _tokenizer(module: Any, params: Any) -> build.LoadedTokenizer:
    config = ConfigDict(convert_config.tokenizer_config(module))
    return build.LoadedTokenizer(module, params, checkpoint.fingerprint(params), config)


class Model:
    """A tokenizer, and maybe a transformer over its tokens, ready to use; see `load`.

    Attributes:
      tokenizer: with its parameters on the mesh.
      transformer: with its parameters on the mesh; None for a tokenizer alone.
      mesh: the devices.
    """

    def __init__(
        self,
        tokenizer: build.LoadedTokenizer,
        transformer: build.LoadedTransformer | None,
        mesh: Mesh,
    ) -> None:
        self.tokenizer, self.transformer, self.mesh = tokenizer, transformer, mesh
        self._samplers: dict[str, ImageSampler] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, c) of the images."""
        return self.tokenizer.module.image_shape

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1; num_classes is 'no class'."""
        return self._need_transformer().network.transformer.num_classes

    def sample(
        self, labels: Sequence[int], *, seed: int = 0, batch_size: int = 64, **settings: Any
    ) -> np.ndarray:
        """Draws an image for each label.

        The n-th image of a label depends on the seed, the label and n only: not on the other
        labels, the batch size or the devices.

        Args:
          labels: int [N] in 0..num_classes; num_classes is 'no class'.
          seed: another one gives other images.
          batch_size: images at once.
          **settings: cfg, cfg_schedule, top_k, top_p, temperature, smooth; one value or one for
            each level. Or patch_nums, other levels than the model's. Those of the training's config
            by default.

        Returns:
          uint8 [N, H, W, c].

        Raises:
          ValueError: a label or a setting out of range.
        """
        labels = np.asarray(labels, np.int64).reshape(-1)
        number = _occurrences(labels) + _MOST_PER_LABEL * labels
        params, sampler = self._need_transformer().params, self._sampler(settings)
        size = min(batch_size, max(len(labels), 1))
        images = []
        for part in _batches(len(labels), size):
            # Filled up, so that one program draws all.
            filled = (np.resize(x[part], size) for x in (labels, number))
            found = sampler(params, next(filled), seed, next(filled))
            images.append(found.images[: part.stop - part.start])
        return np.concatenate(images) if images else np.zeros((0, *self.image_shape), np.uint8)

    def encode(self, images: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """Images uint8 [N, H, W, c] -> tokens int32 [N, L], the levels one after the other.

        Of codecs without tokens, what stands for them: bits, or latents [N, L, C].

        Raises:
          ValueError: the images have another shape or type.
        """
        images, codec = self._images(images), self.tokenizer.module.codec
        shape = (0, codec.pyramid.length, *codec.target.shape)
        return self._map(self._encode, [images], batch_size, np.zeros(shape, codec.target.dtype))

    def _read(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """What likelihoods start from: `Codec.source`."""
        images, source = self._images(images), self.tokenizer.module.codec.source
        none = np.zeros((0, *source.shape), source.dtype)
        return self._map(self._source, [images], batch_size, none)

    def _images(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise ValueError(
                f"This model reads images uint8 [N, {', '.join(map(str, self.image_shape))}], got "
                f"{images.dtype} {list(images.shape)}; crop, resize or convert them first."
            )
        return images

    def decode(self, tokens: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """Tokens int [N, L] -> images uint8 [N, H, W, c].

        Raises:
          ValueError: the tokens have another shape, or there are no such codes.
        """
        codec = self.tokenizer.module.codec
        target, tokens = codec.target, np.asarray(tokens)
        shape = (codec.pyramid.length, *target.shape)
        dataclasses.replace(target, shape=shape).check(tokens)
        none = np.zeros((0, *self.image_shape), np.uint8)
        return self._map(self._decode, [tokens.astype(target.dtype)], batch_size, none)

    def log_likelihood(
        self, images: np.ndarray, labels: Sequence[int], *, batch_size: int = 64
    ) -> np.ndarray:
        """log p(tokens of the image | label) of each image in nats, float64 [N].

        It is a likelihood of token maps, not of pixels, and compares labels or models that share a
        tokenizer. With all labels in turn it classifies (A-VARC).

        Args:
          images: uint8 [N, H, W, c].
          labels: int [N] in 0..num_classes; num_classes is 'no class'.
          batch_size: images at once.

        Raises:
          ValueError: as for `encode`, or a label out of range.
        """
        network = self._need_transformer().network
        if not network.head.has_likelihood:
            raise ValueError("This model's head draws, but has no likelihood to score with.")
        labels = np.asarray(labels, np.int32).reshape(-1)
        network.transformer.conditioning().check(labels)
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images came with {len(labels)} labels.")
        source = self._read(images, batch_size)
        return self._map(self._score, [source, labels], batch_size, np.zeros(0)).astype(np.float64)

    def _need_transformer(self) -> build.LoadedTransformer:
        if self.transformer is None:
            raise ValueError(
                "This is a tokenizer alone, which encodes and decodes; load a transformer to "
                "sample or to score."
            )
        return self.transformer

    def _sampler(self, settings: dict[str, Any]) -> ImageSampler:
        """One for each choice of settings, so that the same ones compile once."""
        loaded = self._need_transformer()
        name = json.dumps(settings, sort_keys=True, default=lambda x: np.asarray(x).tolist())
        if name in self._samplers:
            return self._samplers[name]
        config = loaded.config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            config.sampling.update(settings)
        sampling = build.load_decoder(config, self.tokenizer.fingerprint)
        self._samplers[name] = ImageSampler(
            loaded.network,
            self.tokenizer.module,
            self.tokenizer.params,
            sampling.decoder,
            self.mesh,
            decoder_params=sampling.params,
        )
        return self._samplers[name]

    @functools.cached_property
    def _encode(self) -> Callable[..., jax.Array]:
        return self._of_images("encode")

    @functools.cached_property
    def _source(self) -> Callable[..., jax.Array]:
        return self._of_images("read")

    def _of_images(self, method: str) -> Callable[..., jax.Array]:
        module, params = self.tokenizer.module, self.tokenizer.params

        def run(params, images):
            return module.apply({"params": params}, to_float(images), method=method)

        return functools.partial(self._jit(run), params)

    @functools.cached_property
    def _decode(self) -> Callable[..., jax.Array]:
        module, params = self.tokenizer.module, self.tokenizer.params

        def run(params, tokens):
            return to_uint8(module.apply({"params": params}, tokens, method="decode_tokens"))

        return functools.partial(self._jit(run), params)

    @functools.cached_property
    def _score(self) -> Callable[..., jax.Array]:
        loaded = self._need_transformer()
        objective = Likelihood(loaded.network, self.tokenizer.module)
        name = objective.codec.source.name

        def run(params, frozen, source, labels):
            _, found = objective.per_token(params, frozen, {name: source, "label": labels})
            return -jnp.sum(found["loss"], axis=1)

        frozen = {"tokenizer": self.tokenizer.params}
        return functools.partial(self._jit(run), loaded.params, frozen)

    def _jit(self, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return jax.jit(
            function,
            out_shardings=sharding.batch_sharding(self.mesh),
            compiler_options=sharding.compiler_options(self.mesh),
        )

    def _map(
        self,
        function: Callable[..., jax.Array],
        rows: list[np.ndarray],
        batch_size: int,
        none: np.ndarray,
    ) -> np.ndarray:
        """The function of all rows, a batch at a time; one program serves all batches."""
        count, split = len(rows[0]), sharding.batch_sharding(self.mesh)
        size = sharding.padded_batch(min(batch_size, max(count, 1)), self.mesh)
        made = [none]
        for part in _batches(count, size):
            filled = [np.resize(x[part], (size, *x.shape[1:])) for x in rows]
            with sharding.activate(self.mesh, "replicated"):
                found = function(*(arrays.place(x, split) for x in filled))
            made.append(arrays.to_host(found)[: part.stop - part.start])
        return np.concatenate(made)


def _batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _occurrences(labels: np.ndarray) -> np.ndarray:
    """How often each entry came before: [3, 1, 3] -> [0, 0, 1]."""
    seen: dict[int, int] = {}
    found = np.zeros(len(labels), np.int64)
    for i, label in enumerate(labels.tolist()):
        found[i] = seen.get(label, 0)
        seen[label] = found[i] + 1
    return found

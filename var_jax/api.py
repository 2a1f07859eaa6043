"""A trained model in three lines: `var_jax.load(path)`, then sample, edit, encode, decode, score.

    import var_jax

    model = var_jax.load("runs/quickstart/transformer")
    images = model.sample([3, 1], seed=0, cfg=1.5)  # uint8 [2, H, W, c]

A model of text is asked with `model.sample("a red bird")`: texts stand where labels do.
On several hosts every process calls everything alike and gets everything.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from var_jax import build
from var_jax.decoding.asking import Asked, request
from var_jax.decoding.edited_images import jit_editing
from var_jax.decoding.images import ImageSampler
from var_jax.objectives.likelihood import Likelihood
from var_jax.parallel import arrays, sharding
from var_jax.paths import resolve
from var_jax.pixels import to_float, to_uint8


def load(
    path: epath.PathLike,
    tokenizer: epath.PathLike | None = None,
    *,
    patch_nums: Sequence[int] | None = None,
    group: str | None = None,
    text_encoder: epath.PathLike | None = None,
    mesh: Mesh | None = None,
) -> Model:
    """Loads a model onto the devices that are there.

    Args:
      path: workdir of a transformer or of a tokenizer, local or gs://; or an official PyTorch file
        (.pth or safetensors) of either.
      tokenizer: its tokenizer, a workdir or an official file; beside a workdir by default.
      patch_nums: side lengths of the levels of an official file that has no published pyramid.
      group: which of the dicts of an official file, such as 'model_ema', where several fit.
      text_encoder: folder of the T5 encoder that a model of text features asks, such as a download
        of google/flan-t5-xl; by default what its config names.
      mesh: over which batches are spread, whole parameters on each device; all devices by default.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it cannot be read, or the tokenizer or text encoder does not belong to it.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    place, beside, encoder = (
        None if given is None else str(resolve(given)) for given in (path, tokenizer, text_encoder)
    )
    return Model(*build.load_any(place, beside, patch_nums, group, encoder, mesh), mesh)


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
        self._editors: dict[str, Callable[..., jax.Array]] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, c) of the images."""
        return self.tokenizer.module.image_shape

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1; num_classes is 'no class'."""
        return self._need_transformer().network.transformer.num_classes

    def sample(
        self,
        labels: Asked,
        *,
        negative: str | Sequence[str] | None = None,
        seed: int = 0,
        batch_size: int = 64,
        **settings: Any,
    ) -> np.ndarray:
        """Draws an image for each label or text.

        The n-th image of a label depends on the seed, the label and n only: not on the other
        labels, the batch size or the devices.

        Args:
          labels: int [N] in 0..num_classes; num_classes is 'no class'. Or texts, or one.
          negative: text that guidance steers away from, one for all or one for each; by default
            the empty one.
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
        asked = request(self._need_transformer().network.transformer, labels, negative=negative)
        params, sampler = self._need_transformer().params, self._sampler(settings)
        size = min(batch_size, max(len(asked.numbers), 1))
        images = []
        for count, (given, numbers) in _parts((asked.given, asked.numbers), size):
            images.append(sampler(params, given, seed, numbers).images[:count])
        return np.concatenate(images) if images else np.zeros((0, *self.image_shape), np.uint8)

    def edit(
        self,
        images: np.ndarray,
        labels: Asked | None = None,
        mask: np.ndarray | None = None,
        *,
        rule: str | Mapping[str, Any] = "refit",
        level: int = 0,
        candidates: int = 1,
        kept: str = "reconstructed",
        fade: float = 2.0,
        shown: Asked | None = None,
        seed: int = 0,
        batch_size: int = 64,
        **settings: Any,
    ) -> np.ndarray:
        """Draws parts of images anew; docs/editing.md shows what for.

        A result depends on its image, mask and label, on the seed, and on how often the label came
        before, as in `sample`, which it equals where nothing is kept.

        Args:
          images: uint8 [N, H, W, c].
          labels: what the results should show, int [N] in 0..num_classes; num_classes is 'no
            class', and the default.
          mask: bool [N, H, W] or [H, W], true where pixels are drawn anew; all of them by default.
          rule: 'refit', 'forced' (VAR's) or 'relabel'; or a mapping of such a kind and its
            fields, see `decoding.edit_rules`.
          level: so many levels, from the coarsest, are the images' own, mask or not: of 1..K - 1,
            variations that differ in ever finer detail.
          candidates: draws of which the one is taken that fits best to what is kept.
          kept, fade: what stands where pixels are kept: 'reconstructed', 'source' or 'decoded';
            and over how many pixels the difference fades out, see `jit_editing`.
          shown: what the images show, int [N], for the rule 'relabel'; 'no class' by default.
          seed, batch_size, **settings: see `sample`.

        Returns:
          uint8 [N, H, W, c].

        Raises:
          ValueError: images, mask or labels do not fit each other or the model, or a setting is
            wrong.
        """
        images, loaded = self._images(images), self._need_transformer()
        asked, seen = (
            request(loaded.network.transformer, x, count=len(images)) for x in (labels, shown)
        )
        mask = np.ones(images.shape[1:3], bool) if mask is None else np.asarray(mask)
        if mask.dtype != bool or mask.shape not in (images.shape[:3], images.shape[1:3]):
            raise ValueError(
                f"The mask must be bool {list(images.shape[:3])} or {list(images.shape[1:3])}, as "
                f"the images are, got {mask.dtype} {list(mask.shape)}."
            )
        keep = np.broadcast_to(~mask, images.shape[:3]).astype(np.float32)
        edit = self._editor(settings, rule, level, candidates, kept, fade)
        frozen = (loaded.params, self.tokenizer.params, np.uint32(seed))
        rows = [images, keep, asked.given, seen.given, asked.numbers.astype(np.uint32)]
        blank = np.zeros((0, *self.image_shape), np.uint8)
        return self._map(functools.partial(edit, *frozen), rows, batch_size, blank)

    def mix(
        self, images: np.ndarray, others: np.ndarray, *, level: int, batch_size: int = 64
    ) -> np.ndarray:
        """The first levels of images, the rest of others: shapes of the ones, detail of the others.

        Args:
          images, others: uint8 [N, H, W, c].
          level: so many levels are those of `images`.

        Returns:
          uint8 [N, H, W, c].

        Raises:
          ValueError: they are not as many, or there are not so many levels.
        """
        first, rest = (self.encode(x, batch_size=batch_size) for x in (images, others))
        offsets = self.tokenizer.module.codec.pyramid.offsets
        if len(first) != len(rest) or not 0 <= level < len(offsets):
            raise ValueError(
                f"{len(first)} and {len(rest)} images cannot be mixed at level {level} of "
                f"{len(offsets) - 1}; give as many of both, and a level from 0 to that."
            )
        start = offsets[level]
        tokens = np.concatenate([first[:, :start], rest[:, start:]], axis=1)
        return self.decode(tokens, batch_size=batch_size)

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
        self, images: np.ndarray, labels: Asked, *, batch_size: int = 64
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
        if not self._need_transformer().network.head.has_likelihood:
            raise ValueError("This model's head draws, but has no likelihood to score with.")
        transformer = self._need_transformer().network.transformer
        rows = [request(transformer, labels, count=len(images)).fields]
        rows.append(self._read(images, batch_size))
        return self._map(self._score, rows, batch_size, np.zeros(0)).astype(np.float64)

    def _need_transformer(self) -> build.LoadedTransformer:
        if self.transformer is None:
            raise ValueError(
                "This is a tokenizer alone, which encodes and decodes; load a transformer to "
                "sample or to score."
            )
        return self.transformer

    def _sampler(self, settings: dict[str, Any]) -> ImageSampler:
        """One for each choice of settings, so that the same ones compile once."""
        loaded, name = self._need_transformer(), _name(settings)
        if name in self._samplers:
            return self._samplers[name]
        sampling = self._decoder(settings)
        self._samplers[name] = ImageSampler(
            loaded.network,
            self.tokenizer.module,
            self.tokenizer.params,
            sampling.decoder,
            self.mesh,
            decoder_params=sampling.params,
        )
        return self._samplers[name]

    def _editor(self, settings: dict[str, Any], *choice: Any) -> Callable[..., jax.Array]:
        """The same for editing: rule, level, candidates, kept, fade."""
        loaded, name = self._need_transformer(), _name([settings, *choice])
        if name not in self._editors:
            *of_editing, kept, fade = choice
            editing = build.editing(self._decoder(settings).decoder, *of_editing)
            editing.check(loaded.network)
            run = jit_editing(loaded.network, self.tokenizer.module, editing, self.mesh, kept, fade)
            self._editors[name] = lambda *args: run(*args).images
        return self._editors[name]

    def _decoder(self, settings: dict[str, Any]) -> build.LoadedDecoder:
        config = self._need_transformer().config
        return build.load_decoder(config, self.tokenizer.fingerprint, settings)

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

        def run(params, frozen, fields, source):
            _, found = objective.per_token(params, frozen, {name: source, **fields})
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
        rows: list[Any],
        batch_size: int,
        none: np.ndarray,
    ) -> np.ndarray:
        """The function of all rows, a batch at a time."""
        count, split = len(jax.tree.leaves(rows)[0]), sharding.batch_sharding(self.mesh)
        size = sharding.padded_batch(min(batch_size, max(count, 1)), self.mesh)
        made = [none]
        for count, filled in _parts(rows, size):
            with sharding.activate(self.mesh, "replicated"):
                found = function(*jax.tree.map(lambda x: arrays.place(x, split), filled))
            made.append(arrays.to_host(found)[:count])
        return np.concatenate(made)


def _parts(rows: Any, size: int) -> Iterator[tuple[int, Any]]:
    """Parts of the rows of all arrays, filled up to one size, so that one program serves them; and
    how many rows of each are asked for."""
    count = len(jax.tree.leaves(rows)[0])
    for start in range(0, count, size):
        number = min(size, count - start)
        chosen = np.resize(np.arange(start, start + number), size)
        yield number, jax.tree.map(lambda x, rows=chosen: x[rows], rows)


def _name(settings: Any) -> str:
    """A name of settings, the same for the same ones."""
    return json.dumps(settings, sort_keys=True, default=lambda x: np.asarray(x).tolist())

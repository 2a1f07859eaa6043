"""A model to explore: each token with what it was drawn from, and any token chosen by hand.

    from var_jax.demo.explorer import Explorer

    explorer = Explorer(var_jax.load("runs/quickstart/transformer"))
    drawn = explorer.draw(3, seed=0, pins={0: 17}, cfg=1.5)

Settings and pins are arguments of programs that are compiled once, so that each call is quick.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from var_jax import build
from var_jax.api import Model
from var_jax.build.modules import GuidanceSettings
from var_jax.decoding import base
from var_jax.decoding.asking import request
from var_jax.decoding.edit_rules import Refit, as_drawn
from var_jax.decoding.edited_images import edited
from var_jax.decoding.editing import Editing, Source, Step
from var_jax.decoding.guidance import PerLevelGuidance
from var_jax.decoding.images import sample_keys
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalHead
from var_jax.parallel import sharding
from var_jax.pixels import to_uint8
from var_jax.transformer.condition import ReadsText

#: Settings that are arguments; the others are those of the training's config, without `smooth`.
SETTINGS = ("cfg", "top_k", "top_p", "temperature")
#: Candidates that are told of each token.
NUM_CANDIDATES = 8


@flax.struct.dataclass
class Drawn:
    """One picture, and of a model whose codes can be told what they were drawn from.

    Attributes:
      image: uint8 [H, W, c].
      levels: uint8 [K, H, W, c], what the first 1 .. K levels show; None of other models, and
        so are those below.
      tokens: int32 [L].
      entropy: float32 [L], of each token's distribution after guidance, temperature and filters,
        in bits.
      probability: float32 [L], of each token there; 0 for one that could not have been drawn.
      candidates: int32 [L, n], the likeliest codes, the most likely first.
      candidate_probability: float32 [L, n].
    """

    image: Any
    levels: Any = None
    tokens: Any = None
    entropy: Any = None
    probability: Any = None
    candidates: Any = None
    candidate_probability: Any = None


@dataclasses.dataclass(frozen=True)
class _Pinned:
    """An edit rule without a picture: codes int32 [B, L] stay, and where they are -1 it draws."""

    codes: jax.Array

    compares: ClassVar[bool] = False

    def settle(self, step: Step) -> tuple[jax.Array, Bool[jax.Array, "B n"]]:
        """See `Rule`."""
        codes = self.codes[:, step.pyramid.level(step.level)]
        return codes, codes >= 0

    finish = as_drawn


class Explorer:
    """Draws one picture at a time.

    Args:
      model: a transformer with its tokenizer.

    Attributes:
      reason: why tokens cannot be told and settings not changed, one sentence; '' if they can.
      prompt_bytes: what a model of text reads of a prompt at most; 0 of a model of classes.

    Raises:
      ValueError: the model is a tokenizer alone.
    """

    def __init__(self, model: Model) -> None:
        if model.transformer is None:
            raise ValueError(
                "This is a tokenizer alone, which draws nothing; give the workdir of a transformer."
            )
        self.model = model
        conditioner = model.transformer.network.transformer.conditioning()
        reads_text = isinstance(conditioner, ReadsText)
        self.prompt_bytes = conditioner.fields[0].shape[0] if reads_text else 0
        self._own = self._decoder({})
        self.reason = self._reason()

    @property
    def pyramid(self) -> Any:
        """The model's levels."""
        return self.model.tokenizer.module.codec.pyramid

    @property
    def vocab_size(self) -> int:
        """V; 0 where `reason` is given."""
        return 0 if self.reason else self.model.tokenizer.module.codec.codebook_size

    @property
    def smooth(self) -> bool:
        """Whether the training's config asks for `smooth`, which is left out here."""
        return not self.reason and bool(np.any(self._own.sampling.smooth))

    def own_settings(self) -> dict[str, Any]:
        """Those of the training's config: a number each, or a tuple with one for each level."""
        if self.reason:
            return {}
        sampling = self.model.transformer.config.get("sampling", {})
        cfg = sampling.get("cfg", GuidanceSettings.cfg)
        own = {name: getattr(self._own.sampling, name) for name in SETTINGS[1:]}
        return {"cfg": tuple(cfg) if isinstance(cfg, list | tuple) else cfg, **own}

    def draw(
        self,
        asked: int | str,
        *,
        seed: int = 0,
        negative: str = "",
        pins: Mapping[int, int] | None = None,
        **settings: Any,
    ) -> Drawn:
        """The first picture that `Model.sample` draws of a label or text, with some tokens chosen.

        Args:
          asked: a label in 0..num_classes; num_classes is 'no class'. Or a text.
          seed: of the picture.
          negative: text that guidance steers away from.
          pins: codes by position in 0 .. L - 1. All else is drawn as it was without them, with the
            same chance, so that only what follows from a pin changes.
          **settings: cfg, top_k, top_p, temperature, as `Model.sample` takes them.

        Raises:
          ValueError: a label, setting, position or code is out of range.
        """
        pins = dict(pins or {})
        if self.reason:
            if pins or settings:
                raise ValueError(self.reason)
            steered = {"negative": negative} if negative else {}
            return Drawn(self.model.sample([asked], seed=seed, **steered)[0])
        codes = np.full((1, self.pyramid.length), -1, np.int32)
        for position, code in pins.items():
            if not (0 <= position < codes.size and 0 <= code < self.vocab_size):
                raise ValueError(
                    f"The pin {position}: {code} is none; positions are 0..{codes.size - 1} and "
                    f"codes 0..{self.vocab_size - 1}."
                )
            codes[0, position] = code
        given, number, arrays = self._asked(asked, negative, settings)
        tokens = self._run(self._draw, arrays, given, np.uint32(seed), number, codes)
        return self._told(arrays, given, tokens)

    def paint(
        self,
        image: UInt8[np.ndarray, "H W c"],
        mask: Bool[np.ndarray, "H W"],
        asked: int | str,
        *,
        seed: int = 0,
        **settings: Any,
    ) -> Drawn:
        """`Model.edit` of one picture by its own rule: true in the mask is drawn anew.

        Raises:
          ValueError: a label or setting is out of range.
        """
        if self.reason:
            if settings:
                raise ValueError(self.reason)
            return Drawn(self.model.edit(image[None], [asked], mask, seed=seed)[0])
        given, number, arrays = self._asked(asked, "", settings)
        keep = (~mask[None]).astype(np.float32)
        made, tokens = self._run(
            self._paint, arrays, given, np.uint32(seed), number, image[None], keep
        )
        return self._told(arrays, given, tokens).replace(image=np.asarray(made)[0])

    def _reason(self) -> str:
        network, codec = self.model.transformer.network, self.model.tokenizer.module.codec
        if not isinstance(network.head, CategoricalHead) or not codec.codebook_size:
            return (
                f"This model's tokens are no codes of a codebook (its head is a "
                f"{type(network.head).__name__}, its codec a {type(codec).__name__}), so it draws "
                "with its own settings, and its tokens are not shown."
            )
        if not isinstance(self._own, NextScale) or self._own.pyramid is not None:
            return (
                f"This model is drawn from by {type(self._own).__name__} or over other levels than "
                "its own, so it draws with its own settings, and its tokens are not shown."
            )
        return ""

    def _asked(
        self, asked: int | str, negative: str, settings: Mapping[str, Any]
    ) -> tuple[Any, Any, Any]:
        """What is asked for [1], its sample's number [1], the settings of each level as arrays [K].

        A text always comes with a negative one, so that all of them run in one program.
        """
        unknown = sorted(set(settings) - set(SETTINGS))
        if unknown:
            raise ValueError(f"Unknown setting {unknown[0]!r}; there are {', '.join(SETTINGS)}.")
        transformer = self.model.transformer.network.transformer
        steered = negative if self.prompt_bytes else None
        found = request(transformer, [asked], negative=steered)
        decoder, pyramid = self._decoder(settings), self.pyramid
        levels = range(pyramid.num_levels)
        drawn = [decoder.sampling.at(k, pyramid) for k in levels]
        arrays = {
            "cfg": np.asarray([decoder.guidance.weight(k, pyramid) for k in levels], np.float32),
            "top_k": np.asarray([x.top_k for x in drawn], np.int32),
            "top_p": np.asarray([x.top_p for x in drawn], np.float32),
            "temperature": np.asarray([x.temperature for x in drawn], np.float32),
        }
        return found.given, found.numbers.astype(np.uint32), arrays

    def _run(self, program: Callable[..., Any], *args: Any) -> Any:
        # One picture is not cut over devices, so no mesh is made active.
        return program(self.model.transformer.params, self.model.tokenizer.params, *args)

    def _decoder(self, settings: Mapping[str, Any]) -> Any:
        loaded = self.model.transformer
        return build.load_decoder(loaded.config, loaded.tokenizer.fingerprint, settings).decoder

    def _told(self, arrays: Any, given: Any, tokens: jax.Array) -> Drawn:
        found = self._run(self._describe, arrays, given, tokens)
        return jax.tree.map(lambda x: np.asarray(x)[0], found)

    def _steered(self, arrays: Any) -> dict[str, Any]:
        """Guidance and sampling of settings that are traced, and the model's own cache policy."""
        levels = {name: tuple(arrays[name]) for name in SETTINGS}
        return {
            "guidance": PerLevelGuidance(levels.pop("cfg")),
            "sampling": dataclasses.replace(self._own.sampling, smooth=False, **levels),
            "cache_policy": self._own.cache_policy,
        }

    @functools.cached_property
    def _draw(self) -> Callable[..., Int[jax.Array, "B L"]]:
        network, codec = self.model.transformer.network, self.model.tokenizer.module.codec

        def run(params, frozen, arrays, given, seed, number, codes):
            grid = (len(codes), *codec.pyramid.grid)
            # The rule looks at no picture.
            source = Source(given, jnp.zeros((*grid, codec.feature_dim)), jnp.zeros(grid), given)
            keys = sample_keys(seed, number)
            editing = Editing(_Pinned(codes), **self._steered(arrays))
            return editing(network, params, codec, frozen["codec"], source, keys).targets

        return self._jit(run)

    @functools.cached_property
    def _paint(self) -> Callable[..., Any]:
        network, tokenizer = self.model.transformer.network, self.model.tokenizer.module

        def run(params, frozen, arrays, given, seed, number, image, keep):
            edit = edited(network, tokenizer, Editing(Refit(), **self._steered(arrays)))
            made = edit(params, frozen, seed, image, keep, given, given, number)
            return made.images, made.tokens

        return self._jit(run)

    @functools.cached_property
    def _describe(self) -> Callable[..., Drawn]:
        network, tokenizer = self.model.transformer.network, self.model.tokenizer.module
        codec, pyramid = tokenizer.codec, self.pyramid

        def run(params, frozen, arrays, given, tokens):
            guidance, sampling, policy = self._steered(arrays).values()
            state, told = base.start(network, given, None, True, pyramid), []
            for k, own in enumerate(pyramid.split(tokens)):
                hiddens, mix, state = base.conditions(network, params, state, guidance, policy)
                settings = sampling.at(k, pyramid)
                logits = network.head.apply(
                    {"params": params["head"]}, hiddens, mix, settings, method="drawn_from"
                )
                told.append(_of_level(logits, own))
                state = base.add(codec, frozen["codec"], own, own, state)
            levels = tokenizer.apply({"params": frozen}, tokens, method="decode_levels")
            shown = to_uint8(levels.swapaxes(0, 1))
            joined = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *told)
            return Drawn(shown[:, -1], shown, tokens, **joined)

        return self._jit(run)

    def _jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function, compiler_options=sharding.compiler_options(self.model.mesh))


def _of_level(
    logits: Float[jax.Array, "B n V"], tokens: Int[jax.Array, "B n"]
) -> dict[str, jax.Array]:
    """What `Drawn` tells of the tokens of one level."""
    p = jax.nn.softmax(logits, axis=-1)
    likeliest, codes = jax.lax.top_k(p, min(NUM_CANDIDATES, p.shape[-1]))
    return {
        "entropy": -jnp.sum(p * jnp.log2(jnp.where(p > 0, p, 1.0)), axis=-1),
        "probability": jnp.take_along_axis(p, tokens[..., None], axis=-1)[..., 0],
        "candidates": codes.astype(jnp.int32),
        "candidate_probability": likeliest,
    }

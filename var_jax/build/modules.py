"""The networks and the sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from var_jax import aspect_ratios
from var_jax.build import registry
from var_jax.build.sections import ConfigError, Section, call, opened, read_section, tuples
from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.decoding import guidance
from var_jax.decoding.base import Decoder
from var_jax.decoding.editing import Editing
from var_jax.decoding.next_scale import NextScale
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.layers import AdaLNInit
from var_jax.transformer.masked_branch import MaskedBranch
from var_jax.transformer.var import VAR

#: Official sizes: depth -> width 64 * depth, heads = depth.
HEAD_DIM = 64

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_CFG_SCHEDULES = {
    "linear": guidance.LinearGuidance,
    "constant": guidance.ConstantGuidance,
    "ten_steps": guidance.TenStepGuidance,
}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What config.model says in other words than a transformer takes, or says of the head.

    Attributes:
      transformer: a kind of the axis 'transformer', whose parameters are keys beside it.
      width: None is the official 64 * depth.
      num_heads: None is one for each 64 of the width.
      label_smoothing: see `CategoricalHead`; read where no other head is chosen.
    """

    transformer: str = "var"
    width: int | None = None
    num_heads: int | None = None
    label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class VARSettings:
    """What config.model says of `VAR` alone, in other words than it takes.

    Attributes:
      adaln_init, adaln_gamma_init: see `AdaLNInit`.
      masked_blocks: depth of a second end for masked tokens, see `MaskedBranch`; 0 is none.
    """

    adaln_init: float = AdaLNInit.scale_shift
    adaln_gamma_init: float = AdaLNInit.gamma
    masked_blocks: int = 0


@dataclasses.dataclass(frozen=True)
class GuidanceSettings:
    """What config.sampling says about guidance.

    Attributes:
      cfg: its strength; a tuple is one weight for each level.
      cfg_schedule: 'linear', 'constant' or 'ten_steps', how one strength becomes weights.
    """

    cfg: float | tuple[float, ...] = 1.5
    cfg_schedule: str = "linear"


@dataclasses.dataclass(frozen=True)
class DrawnSettings:
    """What config.sampling says about the levels that are drawn.

    Attributes:
      patch_nums: side length of each; () is the model's own. Others where positions and codec
        serve them; another last side than the model's gives images of another size.
      aspect: width and height of the images, such as '16:9', of about as many pixels; '' is square.
        For the same models.
    """

    patch_nums: tuple[int, ...] = ()
    aspect: str = ""


#: What is passed to classes of these axes beside their keys, see `registry`.
_CODEC = ("pyramid",)
_PARTS = (
    *("pyramid", "width", "dtype", "num_classes", "drop_rate", "target", "vocab_size"),
    "caption_length",
)
_POLICY = ("pyramid",)
_GUIDANCE = ("rule",)
_DECODER = ("guidance", "sampling", "cache_policy", "pyramid", "reward")


def tokenizer_section(values: Mapping[str, Any] | None) -> Section:
    """config.tokenizer: without a section codec, the keys of ResidualVQ stand in it."""
    own = isinstance(values, Mapping | ConfigDict) and values.get("codec")
    codec = () if own else (ResidualVQ,)
    given = ("pyramid", "codec", "image_channels")
    inside = registry.sections("config.tokenizer", codec=_CODEC)
    return Section((*codec, VQVAE), given=given, sections=inside)


def model_section(model: Mapping[str, Any] | None) -> Section:
    """config.model: its keys are those of the transformer that it names."""
    cls = _transformer_class(model)
    own = (VARSettings,) if cls is VAR else ()
    axes = {"context": (), "conditioner": _PARTS, "positions": _PARTS, "mixer": _PARTS}
    return Section(
        (ModelSettings, *own, cls),
        given=("pyramid", "code_dim"),
        sections=registry.sections("config.model", head=_PARTS, **registry.taken(cls, axes)),
    )


def sampling_section(model: Mapping[str, Any] | None) -> Section:
    """config.sampling: its keys are those of the head's settings and of the guidance."""
    return Section(
        (GuidanceSettings, DrawnSettings, _head_class(model).sampling),
        sections=registry.sections(
            "config.sampling",
            decoder=_DECODER,
            cache_policy=_POLICY,
            guidance=_GUIDANCE,
            reward=(),
        ),
        changeable=True,
    )


def _transformer_class(model: Mapping[str, Any] | None) -> Any:
    # As for the head, below.
    kind = model.get("transformer") if isinstance(model, Mapping | ConfigDict) else None
    kind = kind if isinstance(kind, str) else ModelSettings.transformer
    return registry.find("transformer", kind, "config.model.transformer")


def _head_class(model: Mapping[str, Any] | None) -> Any:
    # What is no section, or says no kind, is told by the check of config.model.
    head = opened(model.get("head")) if isinstance(model, Mapping | ConfigDict) else None
    kind = head.get("kind") if isinstance(head, Mapping) else None
    kind = kind if isinstance(kind, str) else "categorical"
    return registry.find("head", kind, "config.model.head")


def pyramid(config: ConfigDict) -> ScalePyramid:
    """The token pyramid of config.patch_nums."""
    return ScalePyramid.from_patch_nums(tuples(config.patch_nums))


def tokenizer(config: ConfigDict) -> VQVAE:
    """The tokenizer of config.tokenizer; its codec is `.codec`.

    Raises:
      ValueError: the image size is not the stride times the last level.
    """
    values = read_section(config, "tokenizer", tokenizer_section(config.get("tokenizer")))
    path, chosen = "config.tokenizer.codec", values.pop("codec", None)
    if chosen:
        codec = registry.make("codec", chosen, path, pyramid=pyramid(config))
    else:
        codec = call(ResidualVQ, "config.tokenizer", values, pyramid=pyramid(config))
    values["dtype"] = dtype(values.get("dtype", "float32"), "config.tokenizer")
    module = call(
        VQVAE, "config.tokenizer", values, codec=codec, image_channels=config.data.channels
    )
    size = config.data.image_size
    if module.image_shape[:2] != (size, size):
        raise ValueError(
            f"config.data.image_size is {size}, but the stride {module.stride} times the feature "
            f"map's {codec.pyramid.grid} is {module.image_shape[:2]}; change patch_nums, "
            "tokenizer.multipliers or image_size."
        )
    return module


def network(config: ConfigDict) -> Network:
    """The transformer and the head of config.model over the codec of config.tokenizer.

    width and num_heads default to the official sizes.
    """
    codec = tokenizer(config).codec
    path, values = "config.model", read_section(config, "model", model_section(config.get("model")))
    settings, cls = call(ModelSettings, path, values), _transformer_class(config.model)
    width = settings.width or HEAD_DIM * values.get("depth", 0)
    num_heads = settings.num_heads or max(1, width // HEAD_DIM)
    computing = dtype(values.get("dtype", "float32"), path)
    offered = {
        "pyramid": pyramid(config),
        "width": width,
        "dtype": computing,
        "num_classes": values.get("num_classes", 0),
        "drop_rate": values.get("class_drop_rate", VAR.class_drop_rate),
        "target": codec.target,
        "vocab_size": codec.target.num_values,
        "caption_length": config.data.get("caption_length", 0),
    }
    chosen = {
        axis: values.pop(axis, None) for axis in ("conditioner", "positions", "mixer", "head")
    }
    head = chosen.pop("head")
    if head and settings.label_smoothing:
        raise ConfigError(
            f"{path}.label_smoothing is {settings.label_smoothing}, but {path}.head is given, "
            "which does not read it; leave it out, or set it in the head's section."
        )
    head = head or {"kind": "categorical", "label_smoothing": settings.label_smoothing}
    parts = {
        axis: registry.make(axis, value, f"{path}.{axis}", **offered)
        for axis, value in chosen.items()
        if value
    }
    if cls is VAR:
        own = call(VARSettings, path, values)
        context = values.pop("context", None) or "block_causal"
        parts["context"] = registry.make("context", context, f"{path}.context")
        parts["adaln_init"] = AdaLNInit(own.adaln_init, own.adaln_gamma_init)
    transformer = call(
        cls,
        path,
        values,
        pyramid=pyramid(config),
        code_dim=codec.code_dim,
        width=width,
        num_heads=num_heads,
        dtype=computing,
        **parts,
    )
    second = cls is VAR and own.masked_blocks
    masked = MaskedBranch(transformer, own.masked_blocks) if second else None
    return Network(transformer, registry.make("head", head, f"{path}.head", **offered), masked)


def held_networks(config: ConfigDict) -> dict[str, str]:
    """Workdirs of the networks that the decoder of config.sampling holds, by the field's name."""
    sampling = tuples(config.get("sampling"))
    chosen = opened(sampling.get("decoder")) if isinstance(sampling, Mapping) else None
    if not chosen:
        return {}
    keys = registry.section("decoder", chosen, "config.sampling.decoder", _DECODER).keys
    networks = (name for name, key in keys.items() if key.annotation is Network)
    return {name: chosen[name] for name in networks if chosen.get(name)}


def decoder(config: ConfigDict, network_of: Callable[[str, str], Network] | None = None) -> Decoder:
    """The decoder of config.sampling; a tuple of cfg is one weight for each level.

    Args:
      config: reads sampling, and model for its head.
      network_of: (name of a field, workdir) -> one of its `held_networks`; see
        `build.load_decoder`.
    """
    path, model = "config.sampling", tuples(config.get("model", {}))
    values = read_section(config, "sampling", sampling_section(model))
    settings = call(GuidanceSettings, path, values)
    cfg, schedule = settings.cfg, settings.cfg_schedule
    if schedule not in _CFG_SCHEDULES:
        raise ValueError(
            f"config.sampling.cfg_schedule is {schedule!r}; choose one of "
            f"{', '.join(_CFG_SCHEDULES)}, or give cfg one weight for each level."
        )
    made = guidance.PerLevelGuidance if isinstance(cfg, tuple) else _CFG_SCHEDULES[schedule]
    rule = made(**registry.taken(made, {"cfg": cfg, "max_side": pyramid(config).max_side}))
    if around := values.pop("guidance", None):
        wanted = {"rule": f"{path}.cfg"}
        rule = registry.make("guidance", around, f"{path}.guidance", wanted, rule=rule)
    if values.get("processors"):
        values["processors"] = tuple(
            registry.make("processor", value, f"{path}.processors")
            for value in values["processors"]
        )
    policy = values.get("cache_policy")
    chosen = dict(opened(values.get("decoder") or "next_scale"))
    if network_of is not None:
        chosen |= {name: network_of(name, place) for name, place in held_networks(config).items()}
    settings, own = call(DrawnSettings, path, values), pyramid(config)
    patch_nums = settings.patch_nums
    drawn = ScalePyramid.from_patch_nums(patch_nums) if patch_nums else own
    if settings.aspect:
        drawn = drawn.oblong(aspect_ratios.parse(settings.aspect))
    if drawn.shapes[0] != own.shapes[0]:
        raise ValueError(
            f"{path}.patch_nums begins with {patch_nums[0]}; it must begin as the model's "
            f"{own.patch_nums} do, whose first level alone has learned to start."
        )
    levels = "aspect" if settings.aspect else "patch_nums"
    set_here = {"cache_policy": "cache_policy", "pyramid": levels, "reward": "reward"}
    reward = values.get("reward")
    return registry.make(
        "decoder",
        chosen,
        f"{path}.decoder",
        {name: f"{path}.{key}" for name, key in set_here.items() if values.get(key)},
        guidance=rule,
        sampling=call(_head_class(model).sampling, path, values),
        cache_policy=policy
        and registry.make("cache_policy", policy, f"{path}.cache_policy", pyramid=drawn),
        pyramid=drawn if patch_nums or settings.aspect else None,
        reward=reward and registry.make("reward", reward, f"{path}.reward"),
    )


def editing(
    decoder: Decoder, rule: str | Mapping[str, Any], level: int = 0, candidates: int = 1
) -> Editing:
    """How pictures are edited, with a decoder's guidance and sampling.

    Args:
      decoder: of the model.
      rule: a kind of the axis 'edit_rule', or a mapping of its kind and fields.
      level, candidates: see `Editing`.

    Raises:
      ValueError: another decoder than next_scale, or other levels than the model's.
    """
    if not isinstance(decoder, NextScale) or decoder.pyramid is not None:
        raise ValueError(
            "Editing draws the model's own levels one after the other; leave out patch_nums and "
            "aspect, and another config.sampling.decoder than 'next_scale'."
        )
    made = registry.make("edit_rule", rule, "rule")
    return Editing(
        made, level, candidates, decoder.guidance, decoder.sampling, decoder.cache_policy
    )


def dtype(name: str, path: str) -> Any:
    """A computing type by name; `path` is of the section that names it."""
    if name not in _DTYPES:
        raise ValueError(f"{path}.dtype is {name!r}; choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]

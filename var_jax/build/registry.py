"""The methods by name: one line for each class that a config can choose as `kind`.

An axis is a section such as config.model.head = dict(kind="categorical", label_smoothing=0.1). A
kind is a name of this table, or "module:Class" of any class that follows the axis' protocol. Its
keys are the parameters of the class, without those that the builder knows, which are passed by
name: see the callers of `make`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from var_jax.build.sections import ConfigError, Section, call, opened, read

METHODS: dict[str, dict[str, str]] = {
    # config.tokenizer.codec: `codecs.base.Codec`.
    "codec": {
        "bitwise": "var_jax.codecs.bitwise:Bitwise",
        "ground_truth_vq": "var_jax.codecs.ground_truth_vq:GroundTruthVQ",
        "perturbed_vq": "var_jax.codecs.perturbed_vq:PerturbedVQ",
        "residual_vq": "var_jax.codecs.residual_vq:ResidualVQ",
        "kl_latent": "var_jax.codecs.kl_latent:KLLatent",
        "latent": "var_jax.codecs.latent:Latent",
    },
    # config.model.transformer: see `network.Network`.
    "transformer": {
        "acdit": "var_jax.transformer.acdit:ACDiT",
        "mar": "var_jax.transformer.mar:MAR",
        "var": "var_jax.transformer.var:VAR",
        "xar": "var_jax.transformer.xar:XAR",
    },
    # config.model.context: `context.Context`.
    "context": {
        "block_causal": "var_jax.context:BlockCausal",
        "own_neighbourhood": "var_jax.context:OwnNeighbourhood",
        "own_scale": "var_jax.context:OwnScale",
        "recent_levels": "var_jax.context:RecentLevels",
    },
    # config.model.conditioner: `transformer.condition.Conditioner`.
    "conditioner": {
        "caption": "var_jax.transformer.captions:Captions",
        "class_labels": "var_jax.transformer.condition:ClassLabels",
        "class_names": "var_jax.transformer.class_names:ClassNames",
        "text_features": "var_jax.text_encoders.encoder:text_features",
    },
    # config.model.positions: `transformer.positions.Positions`.
    "positions": {
        "learned": "var_jax.transformer.positions:LearnedPositions",
        "rotary_2d": "var_jax.transformer.rotary:Rotary2D",
        "resized_map": "var_jax.transformer.resized_positions:ResizedPositions",
    },
    # config.model.mixer: `transformer.mixer.Mixer`.
    "mixer": {
        "mamba2": "var_jax.transformer.mamba:Mamba2",
    },
    # config.model.head: `heads.base.Head`.
    "head": {
        "bitwise": "var_jax.heads.bitwise:BitwiseHead",
        "categorical": "var_jax.heads.categorical:CategoricalHead",
        "diffusion": "var_jax.heads.diffusion:DiffusionHead",
        "flow": "var_jax.heads.flow:FlowHead",
        "refiner": "var_jax.heads.refiner:RefinerHead",
        "velocity": "var_jax.heads.linear_velocity:LinearVelocity",
    },
    # config.train.objective: `objectives.base.NetworkObjective`.
    "objective": {
        "likelihood": "var_jax.objectives.likelihood:Likelihood",
        "cca": "var_jax.objectives.contrastive:Contrastive",
        "ddo": "var_jax.objectives.discriminative:Discriminative",
        "distillation": "var_jax.build.teachers:distillation",
        "erasure": "var_jax.objectives.erasure:Erasure",
        "flow_matching": "var_jax.objectives.flow_matching:FlowMatching",
        "masked": "var_jax.objectives.masked:MaskedLikelihood",
        "random_order": "var_jax.objectives.random_order:RandomOrder",
        "student_forcing": "var_jax.objectives.student_forcing:StudentForcing",
        "subject": "var_jax.objectives.subject:SubjectTuning",
        "va_pi": "var_jax.objectives.pixel_policy:PixelPolicy",
    },
    # config.train.adapter: `adapters.base.Adapter`.
    "adapter": {
        "lora": "var_jax.adapters.lora:LoRA",
    },
    # config.train.weights: `objectives.level_weights.LevelWeights`.
    "weights": {
        "leading": "var_jax.objectives.level_weights:LeadingWeights",
        "sqrt_area": "var_jax.objectives.level_weights:AreaWeights",
        "uniform": "var_jax.objectives.level_weights:UniformWeights",
        "log_normal": "var_jax.objectives.level_weights:LogNormalWeights",
    },
    # config.train.curriculum: `objectives.curriculum.Curriculum`.
    "curriculum": {
        "level_cycle": "var_jax.objectives.level_cycle:LevelCycle",
        "random_schedules": "var_jax.objectives.random_schedules:RandomSchedules",
    },
    # config.sampling.decoder: `decoding.base.Decoder`.
    "decoder": {
        "next_scale": "var_jax.decoding.next_scale:NextScale",
        "collaborative": "var_jax.decoding.collaborative:Collaborative",
        "elastic_depth": "var_jax.decoding.elastic_depth:ElasticDepth",
        "masked": "var_jax.decoding.masked:MaskedRefinement",
        "next_entity": "var_jax.decoding.next_entity:NextEntity",
        "random_order": "var_jax.decoding.random_order:RandomOrder",
        "search": "var_jax.decoding.search:Search",
    },
    # config.sampling.guidance: `decoding.guidance.Guidance`.
    "guidance": {
        "interval": "var_jax.decoding.guidance:IntervalGuidance",
        "layer": "var_jax.decoding.guidance:LayerGuidance",
        "ssg": "var_jax.decoding.spatial_guidance:SpatialGuidance",
    },
    # config.sampling.reward: `decoding.rewards.Reward`.
    "reward": {
        "classifier": "var_jax.evaluation.small_sets.rewards:ClassifierReward",
        "feature_distance": "var_jax.evaluation.small_sets.rewards:FeatureDistanceReward",
        "function": "var_jax.decoding.rewards:FunctionReward",
        "likelihood": "var_jax.decoding.rewards:LikelihoodReward",
    },
    # Of an edit, not of a config: `decoding.editing.Rule`.
    "edit_rule": {
        "forced": "var_jax.decoding.edit_rules:Forced",
        "refit": "var_jax.decoding.edit_rules:Refit",
        "relabel": "var_jax.decoding.edit_rules:Relabel",
    },
    # config.sampling.cache_policy: `transformer.cache.CachePolicy`.
    "cache_policy": {
        "scale_kv": "var_jax.transformer.scale_kv:ScaleKV",
    },
    # Of the list config.sampling.processors: `heads.categorical.LogitProcessor`.
    "processor": {
        "green_list": "var_jax.heads.green_list:GreenList",
        "index_mark": "var_jax.heads.index_mark:IndexMark",
        "late_temperature": "var_jax.heads.late_temperature:LateTemperature",
        "greedy_at_unknown_sizes": "var_jax.heads.unknown_sizes:GreedyAtUnknownSizes",
    },
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What every axis' section holds.

    Attributes:
      kind: a name of METHODS, or "module:Class".
    """

    kind: str


def find(axis: str, kind: str, path: str) -> Callable[..., Any]:
    """The class of a kind.

    Args:
      axis: of METHODS.
      kind: see `Kind`.
      path: of the section, for errors.

    Raises:
      ConfigError: there is none, with the nearest name.
    """
    known = METHODS[axis]
    place = known.get(kind, kind)
    if ":" not in place:
        near = difflib.get_close_matches(kind, known, 1)
        meant = f"did you mean {near[0]!r}? Known are" if near else "known are"
        raise ConfigError(
            f"{path}.kind is {kind!r}; {meant} {', '.join(known) or 'none yet'}, or give "
            "'module:Class'."
        )
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}.kind is {kind!r}, which cannot be imported: {error}.") from None


def section(axis: str, value: Any, path: str, offered: tuple[str, ...]) -> Section:
    """What the section of an axis may hold.

    Args:
      axis: of METHODS.
      value: of the section: a mapping with its kind, or the kind alone.
      path: of the section.
      offered: names of what the builder passes.
    """
    described = isinstance(value, str | Mapping | ConfigDict)
    kind = opened(value).get("kind") if described else None
    if not isinstance(kind, str):
        raise ConfigError(f"{path} needs a kind: {', '.join(METHODS[axis])} or 'module:Class'.")
    return Section((Kind, find(axis, kind, path)), given=offered)


def sections(prefix: str, **offered: tuple[str, ...]) -> dict[str, Callable[..., Section]]:
    """Sections of several axes inside one, for `Section.sections`.

    Args:
      prefix: path of the section that they are in.
      **offered: of each axis, see `section`.
    """

    def of(axis: str, names: tuple[str, ...]) -> Callable[..., Section]:
        return lambda values: section(axis, values.get(axis), f"{prefix}.{axis}", names)

    return {axis: of(axis, names) for axis, names in offered.items()}


def make(
    axis: str, value: Any, path: str, chosen: Mapping[str, str] | None = None, **offered: Any
) -> Any:
    """Builds what the section of an axis describes.

    Args:
      axis, value, path: see `section`.
      chosen: those of the offered values that the config sets elsewhere, by the key that does.
      **offered: what the builder knows; a class takes what it has parameters for.

    Raises:
      ConfigError: an unknown kind or key, a key that is missing, or a chosen value that the class
        would not read.
    """
    values = read(opened(value), path, section(axis, value, path, tuple(offered)))
    kind = values.pop("kind")
    cls = find(axis, kind, path)
    parts = taken(cls, offered)
    for name, key in (chosen or {}).items():
        if name not in parts:
            raise ConfigError(
                f"{key} is set, but {path} is of the kind {kind!r}, which does not read it; leave "
                "it out, or choose another kind."
            )
    return call(cls, path, values, **parts)


def taken(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered values that a function has parameters for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in parameters}

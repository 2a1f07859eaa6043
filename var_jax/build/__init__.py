"""From a config to objects. The only package that reads the names of config keys.

A config (ml_collections) has the sections data, tokenizer, tokenizer_train, model, train,
sampling, evaluation and mesh beside seed, patch_nums and sharding; configs/ has complete examples.
An unknown key, section or value raises with its path and the nearest known name. All callers write
`build.<name>`.
"""

from var_jax.build.any_model import load_any
from var_jax.build.comparison import ComparisonSettings, comparison_settings
from var_jax.build.config import Change, ConfigError, changes, check_config, flat, make_room
from var_jax.build.data import (
    cached_from,
    check_same_classes,
    data_facts,
    data_paths,
    pipeline,
    resolve_paths,
    set_num_classes,
    source,
    training_source,
    transform,
)
from var_jax.build.evaluation import EvaluationSettings, FIDSettings, evaluation_settings
from var_jax.build.evaluators import shown_samples
from var_jax.build.experiment import metadata, tokenizer_experiment, transformer_experiment
from var_jax.build.frozen import abstract as abstract_frozen
from var_jax.build.frozen import place as place_frozen
from var_jax.build.initial import Start, start_from
from var_jax.build.loading import (
    LoadedDecoder,
    LoadedTokenizer,
    LoadedTransformer,
    load_decoder,
    load_params,
    load_tokenizer,
    load_transformer,
    use_tokenizer,
)
from var_jax.build.modules import decoder, editing, network, pyramid, tokenizer
from var_jax.build.resuming import changes_since, data_changes, identity
from var_jax.build.sample_caching import cache_samples
from var_jax.build.scaling import ScalingSettings, scaling_settings
from var_jax.build.token_caching import cache_tokens
from var_jax.build.training import (
    check_tools,
    make_mesh,
    objective,
    optimizer_config,
    train_settings,
    trained_patterns,
    vqgan,
)
from var_jax.build.training_run import MODELS, run

__all__ = [
    "MODELS",
    "Change",
    "ComparisonSettings",
    "ConfigError",
    "EvaluationSettings",
    "FIDSettings",
    "LoadedDecoder",
    "LoadedTokenizer",
    "LoadedTransformer",
    "ScalingSettings",
    "Start",
    "abstract_frozen",
    "cache_samples",
    "cache_tokens",
    "cached_from",
    "changes",
    "changes_since",
    "check_config",
    "check_same_classes",
    "check_tools",
    "comparison_settings",
    "data_changes",
    "data_facts",
    "data_paths",
    "decoder",
    "editing",
    "evaluation_settings",
    "flat",
    "identity",
    "load_any",
    "load_decoder",
    "load_params",
    "load_tokenizer",
    "load_transformer",
    "make_mesh",
    "make_room",
    "metadata",
    "network",
    "objective",
    "optimizer_config",
    "pipeline",
    "place_frozen",
    "pyramid",
    "resolve_paths",
    "run",
    "scaling_settings",
    "set_num_classes",
    "shown_samples",
    "source",
    "start_from",
    "tokenizer",
    "tokenizer_experiment",
    "train_settings",
    "trained_patterns",
    "training_source",
    "transform",
    "transformer_experiment",
    "use_tokenizer",
    "vqgan",
]

"""From a config to objects. The only package that reads the names of config keys.

A config (ml_collections) has the sections data, tokenizer, tokenizer_train, model, train,
sampling, evaluation and mesh beside seed, patch_nums and sharding; configs/ has complete examples.
An unknown key or value raises with the section's name. All callers write `build.<name>`.
"""

from var_jax.build.data import (
    data_paths,
    pipeline,
    resolve_paths,
    set_num_classes,
    source,
    training_source,
    transform,
)
from var_jax.build.evaluation import EvaluationSettings, FIDSettings, evaluation_settings
from var_jax.build.experiment import metadata, tokenizer_experiment, transformer_experiment
from var_jax.build.loading import (
    LoadedTokenizer,
    LoadedTransformer,
    load_params,
    load_tokenizer,
    load_transformer,
    use_tokenizer,
)
from var_jax.build.modules import head, pyramid, sampler, tokenizer, var
from var_jax.build.training import likelihood, make_mesh, optimizer_config, train_settings, vqgan

__all__ = [
    "EvaluationSettings",
    "FIDSettings",
    "LoadedTokenizer",
    "LoadedTransformer",
    "data_paths",
    "evaluation_settings",
    "head",
    "likelihood",
    "load_params",
    "load_tokenizer",
    "load_transformer",
    "make_mesh",
    "metadata",
    "optimizer_config",
    "pipeline",
    "pyramid",
    "resolve_paths",
    "sampler",
    "set_num_classes",
    "source",
    "tokenizer",
    "tokenizer_experiment",
    "train_settings",
    "training_source",
    "transform",
    "transformer_experiment",
    "use_tokenizer",
    "var",
    "vqgan",
]

"""VAR and every method of configs/family at their smallest, for tests that all must pass."""

import numpy as np
import pytest
from recipes import FOLDER, load
from untrained import write_model

from var_jax import build
from var_jax.checkpoint import fingerprint
from var_jax.data.token_cache import TokenCacheSettings, TokenCacheWriter
from var_jax.fields import Field

#: Configs by name; compare is all of them at once.
METHODS = [
    "mnist5k",
    *sorted(f"family/{p.stem}" for p in FOLDER.glob("family/*.py") if p.stem != "compare"),
]
#: Those that every run tests on meshes, in resuming, in batches and on slices: codes, floats with
#: noise of their own, a reference cut over the mesh. The others have parts in common with these;
#: what tests them is marked slow.
_ALWAYS = ("mnist5k", "family/cca", "family/flowar")
#: Of all methods. Nothing is drawn and scored while they train.
SETTINGS = {
    "sharding": "fsdp_tensor",
    "model.num_heads": 4,
    "train.num_steps": 6,
    "train.log_every": 1,
    "train.save_every": 3,
    "evaluation.likelihood": False,
    "evaluation.samples_per_class": 0,
}
#: What a tensor axis of four can cut.
SIZES = {
    "family/disa": {"model.head.net_width": 96, "model.head.net_heads": 4},
    "family/flowar": {"model.head.net_width": 96, "model.head.net_heads": 4},
    "family/refiner": {"model.head.num_heads": 4},
}
#: Deviation of a method's random parameters where the usual 0.2 is too much: without a norm of its
#: queries and keys, attention is so sharp then that roundings show.
DEVIATIONS = {"family/xar": 0.05}
#: What four samples show, where it is not classes.
ASKED = {"family/text": ["a red bird", "", "鳥", ""]}
#: The key that names a transformer, where a method needs one.
MODELS = {
    "family/cca": "train.initial_checkpoint",
    "family/ddo": "train.initial_checkpoint",
    "family/distillation": "train.objective.teacher",
    "family/erasure": "train.initial_checkpoint",
    "family/code": "sampling.decoder.refiner",
    "family/hmar_masked": "train.initial_checkpoint",
    "family/lora": "train.initial_checkpoint",
    "family/subject": "train.initial_checkpoint",
    "family/va_pi": "train.initial_checkpoint",
}
#: Methods that learn from samples of the model that they start from.
SAMPLED = ("family/ddo",)


def each(names):
    """Names as parameters of a test."""
    return [pytest.param(n, marks=() if n in _ALWAYS else pytest.mark.slow) for n in names]


def smallest(method, given=None):
    """The method's smallest config with SETTINGS, SIZES and other keys, such as 'model.width'."""
    config = load(method, "smallest")
    with config.unlocked():
        config.evaluation = config.get("evaluation", {})
        config.update_from_flattened_dict(SETTINGS | SIZES.get(method, {}) | (given or {}))
    return config


def flags(method, given):
    """The same for a command."""
    values = SETTINGS | SIZES.get(method, {}) | given
    return [
        f"--config=configs/{method}.py:smallest",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def prepare(folder, method):
    """Writes an untrained model of a method, and tokens; the keys of the config that name them."""
    model, tokens = folder / "model", folder / "tokens"
    given = {"tokenizer_checkpoint": str(model / "tokenizer"), "token_cache": str(tokens)}
    if method in MODELS:
        given[MODELS[method]] = str(model)
    write_model(model, smallest(method, given))
    tokenizer = build.load_tokenizer(model / "tokenizer")
    write_tokens(tokens, tokenizer)
    if method in SAMPLED:
        given["sample_cache"] = str(folder / "samples")
        params, _ = build.load_params(model, "transformer", None)
        write_samples(folder / "samples", tokenizer, fingerprint(params))
    return given


def write_tokens(folder, tokenizer):
    """Writes a token cache of random values."""
    for split, count in (("train", 40), ("val", 16)):
        _write(folder / split, tokenizer, count, f"{tokenizer.config.data.source}:{split}")


def write_samples(folder, tokenizer, model):
    """Writes random values as if they were samples of a model of this fingerprint."""
    _write(folder, tokenizer, 20, "samples", extra={"model": model})


def _write(folder, tokenizer, count, source, **settings):
    codec, captioned = tokenizer.module.codec, "caption_length" in tokenizer.config.data
    settings = TokenCacheSettings(
        fingerprint=tokenizer.fingerprint,
        shapes=codec.pyramid.shapes,
        field=codec.source,
        num_images=count,
        crops=1,
        class_names=tuple("0123456789"),
        source=source,
        image_size=32,
        seed=0,
        captions=captioned,
        **settings,
    )
    captions = values(Field("captions", (2, 8), "uint8", 128), count) if captioned else None
    writer = TokenCacheWriter(folder, settings)
    index = np.arange(count)
    writer.write(values(codec.source, count), index % 10, index, captions)
    writer.close()


def values(field, count):
    """Random values of so many examples, but not alike: small ones are frequent."""
    found = np.random.default_rng(count).random((count, *field.shape)) ** 2
    return (found * (field.num_values or 1)).astype(field.dtype)


def batch(config):
    """Random values of what a training step reads."""
    tokenizer = build.LoadedTokenizer(build.tokenizer(config), None, "", config)
    objective = build.objective(config, tokenizer, from_images=False)
    index = np.arange(config.train.batch_size, dtype=np.uint32)
    read = {field.name: values(field, len(index)) for field in objective.fields}
    if "label" in read:
        read["label"] = (index % 10).astype(np.int32)
    return read | {"index": index}


def _training(method):
    """What is not of sampling alone."""
    config = load(method, "smallest").to_dict()
    del config["sampling"]
    return config


#: Those that train otherwise than the ones before, of which VAR comes first.
_TRAININGS = [_training(name) for name in METHODS]
TRAINED = [name for i, name in enumerate(METHODS) if _TRAININGS[i] not in _TRAININGS[:i]]

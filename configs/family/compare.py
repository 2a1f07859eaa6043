"""Every method of the family beside VAR, trained alike on the same pictures.

    python -m launch.compare_methods --config configs/family/compare.py --workdir runs/compare

'' are the 5,000 digits: every method sees as many tokens as configs/mnist5k.py does and has its
number of parameters within a tenth (`SIZES` says how), in three runs; hours on two CPU cores.
'short' is a fourteenth of it in one run; 'emoji64' are the methods with VAR's tokenizer on the
pictures of configs/emoji64.py, with settings that were chosen for digits; 'smallest' takes seconds
a method and means nothing. To take a tokenizer that is there in place of VAR's own:

    --config.tokenizer_checkpoint=runs/quickstart/tokenizer \
        --config.token_cache=runs/quickstart/tokens

A method is added by its line in `METHODS`, the file of its config; those that share VAR's tokenizer
or VAR's training are found by their configs being equal in it.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

#: Name -> config. The order is that of the runs and of the tables; first those of VAR's tokenizer.
METHODS = {
    "var": "mnist5k",
    "scale_kv": "family/scale_kv",
    "hmar": "family/hmar",
    "mvar": "family/mvar",
    "m_var": "family/m_var",
    "refiner": "family/refiner",
    "class_names": "family/class_names",
    "cca": "family/cca",
    "hmar_masked": "family/hmar_masked",
    "var_small": "mnist5k",
    "code": "family/code",
    "nfig": "family/nfig",
    "robustok": "family/robustok",
    "flowar": "family/flowar",
    "disa": "family/disa",
    "diffusion": "family/diffusion",
    "mar": "family/mar",
    "xar": "family/xar",
    "acdit": "family/acdit",
    "infinity": "family/infinity",
    "flexvar": "family/flexvar",
    "sar": "family/sar",
}
#: Sizes, keys of config.model, with which a method has VAR's number of parameters, on digits and on
#: emoji; var_small is CoDe's second model.
_FLOWAR = {"depth": 2}
SIZES = {
    "var_small": ({"depth": 2}, {"depth": 3}),
    "flowar": (_FLOWAR, None),
    "disa": (_FLOWAR, None),
    "diffusion": ({"depth": 3, "head.net_width": 128}, None),
    "mar": ({"depth": 3, "decoder_depth": 2, "head.net_width": 128}, None),
    "xar": ({"depth": 2}, None),
    "m_var": ({"depth": 3, "width": 120, "mixer.head_dim": 60}, None),
    "refiner": ({"depth": 2}, {"depth": 4}),
    "class_names": ({"depth": 3}, None),
}
#: Method, key of its config, whose run of the same seed it names.
MODELS = (
    ("code", "sampling.decoder.refiner", "var_small"),
    ("cca", "train.initial_checkpoint", "var"),
    ("hmar_masked", "train.initial_checkpoint", "hmar"),
    ("sar", "train.initial_checkpoint", "flexvar"),
)
#: Methods that go on from another's run.
GO_ON = tuple(name for name, key, _ in MODELS if key == "train.initial_checkpoint")
#: Methods whose tokenizer, classes and levels are those of any VAR.
ON_EMOJI = (
    *("var", "scale_kv", "hmar", "mvar", "refiner", "cca", "hmar_masked", "var_small", "code"),
)

#: Variant -> seeds, tokens seen, steps of a tokenizer (0: its config's), samples, updates of the
#: classifier.
VARIANTS = {
    "": ((0, 1, 2), 4300 * 16 * 37, 0, 1000, 800),
    "short": ((0,), 300 * 16 * 37, 300, 500, 300),
    "emoji64": ((0, 1, 2), 6000 * 16 * 130, 0, 1000, 800),
    "smallest": ((0, 1), 4 * 16 * 37, 0, 20, 4),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'short', 'emoji64' and 'smallest'."""
    if variant not in VARIANTS:
        known = ", ".join(repr(name) for name in VARIANTS)
        raise ValueError(f"Unknown variant {variant!r} of compare; choose one of {known}.")
    seeds, tokens_seen, tokenizer_steps, num_samples, classifier_steps = VARIANTS[variant]
    names = ON_EMOJI if variant == "emoji64" else METHODS
    methods = {name: _method(name, variant, tokenizer_steps) for name in names}
    return ConfigDict(
        dict(
            tokenizer_checkpoint="",
            token_cache="",
            methods=methods,
            comparison=dict(
                methods=tuple(names),
                seeds=seeds,
                tokens_seen=tokens_seen,
                warmup=0.05,
                models=tuple(entry for entry in MODELS if entry[0] in names),
                crops=1 if variant == "smallest" else 4,
                num_samples=num_samples,
                sample_batch=min(100, num_samples // 2),
                classifier_steps=classifier_steps,
            ),
        )
    )


def _method(name: str, variant: str, tokenizer_steps: int) -> ConfigDict:
    size = "smallest" if variant == "smallest" else ""
    config = _load(METHODS[name], size)
    config.unlock()
    if variant == "emoji64":
        config = _moved(config, _load("mnist5k", ""), _load("emoji64"))
    if name in SIZES and not size:
        sizes = SIZES[name][variant == "emoji64"]
        config.model.update_from_flattened_dict({**sizes, "scan_unroll": sizes["depth"]})
    if tokenizer_steps:
        # No adversary comes in: all tokenizers are compared without one.
        config.tokenizer_train.num_steps = tokenizer_steps
        if "restart_until" in config.tokenizer_train:
            config.tokenizer_train.restart_until = tokenizer_steps * 7 // 10
    if name in GO_ON:
        config.train.num_steps = {"short": 42, "smallest": 4}.get(variant, 600)
    config.train.log_every = 2 if size else 20
    every = {"short": 100, "smallest": 2}.get(variant, 400)
    config.evaluation = dict(likelihood=True, samples_per_class=0, every=every)
    return config


def _moved(config: ConfigDict, origin: ConfigDict, to: ConfigDict) -> ConfigDict:
    """`to` with what `config` says otherwise than `origin`."""
    to = to.unlock()
    for key in set(config) | set(origin):
        ours, theirs = config.get(key), origin.get(key)
        if isinstance(ours, ConfigDict) and isinstance(theirs, ConfigDict) and key in to:
            to[key] = _moved(ours, theirs, to[key])
        elif key in config and ours != theirs:
            to[key] = ours
    return to


def _load(name: str, *variant: str) -> ConfigDict:
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    return runpy.run_path(str(path))["get_config"](*variant)

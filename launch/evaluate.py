"""Scores images.

A checkpoint, by the protocol of the published numbers: 50,000 images, as many of each class. A
killed run goes on where it was; on a pod each host draws its share.

python -m launch.evaluate --checkpoint runs/d16 --preset paper --num_samples 50000 \
    --reference VIRTUAL_imagenet256_labeled.npz --inception pt_inception-2015-12-05-6726825d.pth \
    --output runs/d16/eval

OUTPUT gets samples.npz (`arr_0` uint8 NHWC, `labels`), scores.json and manifest.json with every
setting and hash. Without --reference it only draws. With --sweep, each combination of settings
is such a run in its own folder, and a table and curves come beside them:

python -m launch.evaluate --checkpoint runs/d16 --reference ... --inception ... \
    --num_samples 10000 --sweep cfg=1.0,1.5,2.0 top_p=0.9,0.96 --output runs/d16/sweep

Any images against others, or against an ADM reference; npz files (`arr_0` or `images`), npy files
and folders of pictures all serve:

python -m launch.evaluate --samples a.npz --reference b.npz --inception weights.pth --json out.json

A reference from a data source, with the crop of evaluation:

python -m launch.evaluate --make_reference val256.npz --config configs/var_imagenet256.py \
    --split val --inception weights.pth

On a small data set, by a classifier trained on its real images (a minute on a CPU):

python -m launch.evaluate --checkpoint runs/quickstart/transformer --classifier \
    --output runs/quickstart/scores
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_CLASSIFIER = flags.DEFINE_bool("classifier", False, "Score by a classifier of the data set.")
_OUTPUT = cli.define_path("output", None, "Folder for scores.json and the images.")
_SAMPLES = cli.define_path(
    "samples", None, "Images: npz (arr_0 or images), npy, or a folder of pictures."
)
_REFERENCE = cli.define_path("reference", None, "The same, or statistics as of ADM's files.")
_RANGE = flags.DEFINE_enum(
    "value_range", None, cli.VALUE_RANGES, "What floating point images of --samples span."
)
_REFERENCE_RANGE = flags.DEFINE_enum(
    "reference_value_range", None, cli.VALUE_RANGES, "The same of --reference."
)
_ALLOW_MISMATCHED = flags.DEFINE_bool(
    "allow_mismatched_reference", False, "Compare with a reference that does not fit all the same."
)
_INCEPTION = cli.define_path("inception", None, "pt_inception weights (.pth).")
_INCEPTION_SHA256 = flags.DEFINE_string(
    "inception_sha256", None, "Hash, or its first digits, that the weights must have."
)
_JSON = cli.define_path("json", None, "File for the scores.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "Generated images; by default 50000, with --classifier 1000.", 1
)
_PRESET = flags.DEFINE_enum(
    "preset", None, ["paper"], "paper: cfg 1.5 linear, top_k 900, top_p 0.96, 50000 samples."
)
_SWEEP = flags.DEFINE_string(
    "sweep",
    None,
    "Settings to try in all combinations: terms such as cfg=1.0,1.5 top_p=0.9,0.96, with or "
    "without quotes around them.",
)
_KEEP_SAMPLES = flags.DEFINE_bool(
    "keep_samples", True, "Keep samples.npz once it is scored (10 GB for 50,000 of 256 px)."
)
_PART_SIZE = flags.DEFINE_integer("part_size", 500, "Samples in a part of a resumable run.", 1)
_MAKE_REFERENCE = cli.define_path("make_reference", None, "npz to make of --config's data.")
_CONFIG = config_flags.DEFINE_config_file("config", help_string="For --make_reference.")
_SPLIT = flags.DEFINE_string("split", "val", "Split of --make_reference.")
_REFERENCE_IMAGES = flags.DEFINE_integer(
    "reference_images", 10_000, "Images that --make_reference keeps beside the statistics.", 2
)
_CLASSIFIER_STEPS = flags.DEFINE_integer("classifier_steps", 800, "Updates of --classifier.", 1)
_BATCH = flags.DEFINE_integer(
    "batch_size", 100, "Images at once. --samples without it: 32 a device, on CPUs 8 in all.", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.", 0)
cli.define_sampling_flags()


def main() -> None:
    if _SAMPLES.value:
        _need("--samples", reference=_REFERENCE, inception=_INCEPTION)
        cli.on_one_host()
        _score_files()
    elif _MAKE_REFERENCE.value:
        _need("--make_reference", config=_CONFIG)
        cli.on_one_host()
        _make_reference()
    elif _CLASSIFIER.value:
        _need("--classifier", checkpoint=_CHECKPOINT, output=_OUTPUT)
        cli.on_one_host()
        from launch.small_set import score_small_set

        scores = score_small_set(
            _CHECKPOINT.value,
            _TOKENIZER.value,
            _OUTPUT.value,
            num_samples=_NUM_SAMPLES.value or 1000,
            classifier_steps=_CLASSIFIER_STEPS.value,
            batch_size=_BATCH.value,
            seed=_SEED.value,
        )
        print(json.dumps(scores, indent=2))
    elif _CHECKPOINT.value:
        _need("--checkpoint", output=_OUTPUT)
        if _REFERENCE.value or _INCEPTION.value or _SWEEP.value:
            mode = "--sweep" if _SWEEP.value else "Scoring"
            _need(mode, reference=_REFERENCE, inception=_INCEPTION)
        with cli.session(_OUTPUT.value) as stop:
            _score_checkpoint(stop)
    else:
        raise ValueError("Give --checkpoint, --samples or --make_reference; see --help.")


def join_sweep(argv: list[str]) -> list[str]:
    """Makes one argument of --sweep and the terms that follow it without quotes."""
    joined: list[str] = []
    in_sweep = False
    for argument in argv:
        if argument.startswith("-"):
            in_sweep = argument.lstrip("-").partition("=")[0] == "sweep"
            joined.append(argument)
        elif in_sweep:
            separator = " " if "=" in joined[-1] else "="
            joined[-1] += separator + argument
        else:
            joined.append(argument)
    return joined


def _need(mode: str, **given) -> None:
    for name, flag in given.items():
        if not flag.value:
            raise ValueError(f"{mode} needs --{name}.")


def _extractor() -> Any:
    from var_jax.evaluation.inception.extractor import FeatureExtractor
    from var_jax.evaluation.inception.weights import load_inception

    weights = load_inception(_INCEPTION.value, sha256=_INCEPTION_SHA256.value)
    return FeatureExtractor(weights)


def _score_files() -> None:
    from var_jax.evaluation.generated.adm import score_files
    from var_jax.evaluation.generated.sampling_run import ScoringProgress

    scores = score_files(
        _SAMPLES.value,
        _REFERENCE.value,
        _INCEPTION.value,
        inception_sha256=_INCEPTION_SHA256.value,
        batch_size=_BATCH.value if _BATCH.present else None,
        allow_mismatched=_ALLOW_MISMATCHED.value,
        value_range=_RANGE.value,
        reference_value_range=_REFERENCE_RANGE.value,
        progress=ScoringProgress(),
    )
    text = json.dumps(scores, indent=2)
    if _JSON.value:
        from var_jax import paths

        paths.write_text(_JSON.value, text + "\n")
    print(text)


def _make_reference() -> None:
    from var_jax import build
    from var_jax.evaluation.generated import references
    from var_jax.evaluation.generated.sampling_run import ScoringProgress

    config = _CONFIG.value
    extractor = _extractor() if _INCEPTION.value else None
    if extractor is None:
        logging.info("Without --inception: the images alone, no statistics.")
    images = build.pipeline(config, build.source(config, _SPLIT.value), _BATCH.value, train=False)
    note = references.make_reference(
        _MAKE_REFERENCE.value,
        (batch["image"][batch["mask"]] for batch in images.batches()),
        images.num_samples,
        references.origin(config.data.source, _SPLIT.value, images.transform)
        | {"options": config.data.options.to_dict(), "unreadable_images": "left out"},
        extractor,
        max_images=_REFERENCE_IMAGES.value,
        progress=ScoringProgress(),
    )
    print(json.dumps(note, indent=2))


def _score_checkpoint(should_stop: Any) -> None:
    import jax
    import jax.numpy as jnp

    from var_jax import build
    from var_jax.checkpoint import fingerprint
    from var_jax.decoding.images import ImageSampler
    from var_jax.evaluation.generated import sampling_run, sweep
    from var_jax.evaluation.generated.adm import Judge
    from var_jax.evaluation.generated.generation_scores import draw_and_score
    from var_jax.evaluation.generated.references import check_reference
    from var_jax.parallel import sharding

    terms = sweep.parse_terms(_SWEEP.value) if _SWEEP.value else {}
    for name in terms:
        if flags.FLAGS[name].value is not None:
            raise ValueError(f"--sweep already varies {name}; leave out --{name}.")
    judge = None
    if _REFERENCE.value:
        # What is wrong with it is said before the weights are read, and both before drawing.
        check_reference(_REFERENCE.value, _REFERENCE_RANGE.value)
        judge = Judge(
            _REFERENCE.value,
            _extractor(),
            allow_mismatched=_ALLOW_MISMATCHED.value,
            value_range=_REFERENCE_RANGE.value,
            progress=sampling_run.ScoringProgress(),
        )
    # Each host draws parts of its own.
    mesh = sharding.make_mesh(devices=jax.local_devices())
    loaded = build.load_transformer(
        _CHECKPOINT.value, _TOKENIZER.value, mesh=mesh, for_sampling=True
    )
    module, pyramid = loaded.tokenizer.module, loaded.var.pyramid
    if judge is not None:
        judge.check(module.image_shape[:2], {}, "The checkpoint")
    num_samples = _NUM_SAMPLES.value or sampling_run.PAPER_NUM_SAMPLES
    labels = sampling_run.balanced_labels(num_samples, loaded.var.num_classes, _SEED.value)
    batch = sharding.padded_batch(_BATCH.value, mesh)
    config = loaded.config.copy_and_resolve_references()
    if _PRESET.value == "paper":
        with config.unlocked(), config.ignore_type():
            config.sampling.update(sampling_run.PAPER_SAMPLING)
    drawn_from = {
        "checkpoint": {"step": loaded.step, "parameters_sha256": fingerprint(loaded.params)},
        "tokenizer_fingerprint": loaded.tokenizer.fingerprint,
        "dtype": {
            "transformer": jnp.dtype(loaded.var.dtype).name,
            "tokenizer": jnp.dtype(module.dtype).name,
        },
        "num_classes": loaded.var.num_classes,
        "image_shape": list(module.image_shape),
        "seed": _SEED.value,
        "num_samples": num_samples,
        "rounding": sampling_run.ROUNDING,
    }

    parts_done = itertools.count()

    def changes(described: dict[str, Any]) -> dict[str, Any]:
        if not _PRESET.value:
            return {}
        used = {**described, "num_samples": num_samples}
        return sampling_run.changes_of(used, sampling_run.paper_protocol(pyramid))

    def run(combination: Any, folder: Any) -> dict[str, Any] | None:
        with config.unlocked(), config.ignore_type():
            config.sampling.update(combination)
        sampler = cli.sampler(config)
        described = sampling_run.describe_sampler(sampler, pyramid)
        record = {
            "checkpoint": str(_CHECKPOINT.value),
            "preset": _PRESET.value,
            "preset_changes": changes(described),
            "batch_size": batch,
        }
        draw = ImageSampler(loaded.var, loaded.head, module, loaded.tokenizer.params, sampler, mesh)

        def draw_part(start: int, stop: int) -> Any:
            for _, samples in draw.batches(loaded.params, labels[:stop], _SEED.value, batch, start):
                yield samples.images

        files = sampling_run.SampleFiles(
            folder, labels, {"sampler": described, **drawn_from}, part_size=_PART_SIZE.value
        )
        return draw_and_score(
            files,
            draw_part,
            record,
            judge,
            keep_samples=_KEEP_SAMPLES.value,
            # Counted over all runs of a sweep: hosts agree on numbers that only grow.
            should_stop=lambda part: should_stop(next(parts_done)),
        )

    if terms:
        first = jax.process_index() == 0
        rows = sweep.run_sweep(_OUTPUT.value, terms, run, write=first)
        result = rows and {row["name"]: row["scores"] for row in rows}
    else:
        result = run({}, _OUTPUT.value)
    if result and jax.process_index() == 0:
        text = json.dumps(result, indent=2)
        if _JSON.value:
            from var_jax import paths

            paths.write_text(_JSON.value, text + "\n")
        print(text)


if __name__ == "__main__":
    sys.argv = join_sweep(sys.argv)
    cli.run(main)

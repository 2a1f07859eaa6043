"""Draws images from a checkpoint and scores them, by the protocol of the published numbers.

50,000 images, as many of each class. A killed run goes on where it was; on a pod all hosts draw
together, and features are extracted by the devices that hold the images.

python -m launch.evaluate --checkpoint runs/d16 --preset paper --num_samples 50000 \
    --reference VIRTUAL_imagenet256_labeled.npz --inception pt_inception-2015-12-05-6726825d.pth \
    --output runs/d16/eval

OUTPUT gets samples.npz (`arr_0` uint8 NHWC, `labels`), scores.json and manifest.json with every
setting and hash. Without --reference it only draws. With --sweep, each combination of settings
is such a run in its own folder, and a table and curves come beside them:

python -m launch.evaluate --checkpoint runs/d16 --reference ... --inception ... \
    --num_samples 10000 --sweep cfg=1.0,1.5,2.0 --sweep top_p=0.9,0.96 --output runs/d16/sweep

Images from elsewhere are scored by launch.score_images; references are made by
launch.make_reference; a small data set has launch.score_small_set.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from absl import flags

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_OUTPUT = cli.define_path("output", None, "Folder for the samples and their scores.")
_REFERENCE = cli.define_path(
    "reference", None, "Images (npz, npy or a folder of pictures), or statistics as of ADM's files."
)
_REFERENCE_RANGE = flags.DEFINE_enum(
    "reference_value_range",
    None,
    cli.VALUE_RANGES,
    "What floating point images of --reference span.",
)
_ALLOW_MISMATCHED = cli.define_allow_mismatched_reference()
_INCEPTION, _INCEPTION_SHA256 = cli.define_inception_flags()
_JSON = cli.define_path("json", None, "File for the scores.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 50_000, "Generated images.", 1)
_PRESET = flags.DEFINE_enum(
    "preset", None, ["paper"], "paper: cfg 1.5 linear, top_k 900, top_p 0.96, 50000 samples."
)
_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    None,
    "A setting and its values, such as cfg=1.0,1.5; given several times, all combinations.",
)
_KEEP_SAMPLES = flags.DEFINE_bool(
    "keep_samples", True, "Keep samples.npz once it is scored (10 GB for 50,000 of 256 px)."
)
_PART_SIZE = flags.DEFINE_integer("part_size", 500, "Samples in a part of a resumable run.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 100, "Images at once, over all devices.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.", 0)
flags.mark_flags_as_required(["checkpoint", "output"])
cli.define_sampling_flags()


def main() -> None:
    if _REFERENCE.value or _INCEPTION.value or _SWEEP.value:
        mode = "--sweep" if _SWEEP.value else "Scoring"
        for name, flag in (("reference", _REFERENCE), ("inception", _INCEPTION)):
            if not flag.value:
                raise ValueError(f"{mode} needs --{name}.")
    with cli.session(_OUTPUT.value) as stop:
        evaluate(stop)


def evaluate(should_stop: Callable[[int], bool]) -> None:
    """Draws and scores; see the module."""
    import jax
    import jax.numpy as jnp

    from var_jax import build
    from var_jax.checkpoint import fingerprint
    from var_jax.decoding.asking import check_asks_for_classes
    from var_jax.decoding.images import ImageSampler
    from var_jax.evaluation.generated import sampling_run, sweep
    from var_jax.evaluation.generated.adm import ReferenceScorer
    from var_jax.evaluation.generated.generation_scores import draw_and_score
    from var_jax.evaluation.generated.references import check_reference
    from var_jax.evaluation.inception.extractor import FeatureExtractor, MeshExtractor
    from var_jax.evaluation.inception.weights import load_inception
    from var_jax.evaluation.progress import ScoringProgress
    from var_jax.parallel import arrays, sharding

    terms = sweep.parse_terms(" ".join(_SWEEP.value)) if _SWEEP.value else {}
    for name in terms:
        if flags.FLAGS[name].value is not None:
            raise ValueError(f"--sweep already varies {name}; leave out --{name}.")
    mesh = sharding.make_mesh()
    scorer = extract = weights = None
    if _REFERENCE.value:
        # What is wrong with it is said before the weights are read, and both before drawing.
        check_reference(_REFERENCE.value, _REFERENCE_RANGE.value)
        weights = load_inception(_INCEPTION.value, sha256=_INCEPTION_SHA256.value)
        extract = MeshExtractor(weights, mesh)
        scorer = ReferenceScorer(
            _REFERENCE.value,
            FeatureExtractor(weights),
            allow_mismatched=_ALLOW_MISMATCHED.value,
            value_range=_REFERENCE_RANGE.value,
            progress=ScoringProgress(),
        )
    loaded = build.load_transformer(
        _CHECKPOINT.value, _TOKENIZER.value, mesh=mesh, for_sampling=True
    )
    check_asks_for_classes(loaded.network.transformer)
    module, pyramid = loaded.tokenizer.module, loaded.network.transformer.pyramid
    if scorer is not None:
        scorer.check(module.image_shape[:2], {}, "The checkpoint")
    num_samples = _NUM_SAMPLES.value
    num_classes = loaded.network.transformer.num_classes
    labels = sampling_run.balanced_labels(num_samples, num_classes, _SEED.value)
    batch = sharding.padded_batch(_BATCH.value, mesh)
    config = loaded.config.copy_and_resolve_references()
    if _PRESET.value == "paper":
        with config.unlocked(), config.ignore_type():
            config.sampling.update(sampling_run.PAPER_SAMPLING)
    drawn_from = {
        "checkpoint": {"step": loaded.step, "parameters_sha256": fingerprint(loaded.params)},
        "tokenizer_fingerprint": loaded.tokenizer.fingerprint,
        "dtype": {
            "transformer": jnp.dtype(loaded.network.transformer.dtype).name,
            "tokenizer": jnp.dtype(module.dtype).name,
        },
        "num_classes": num_classes,
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
        chosen = cli.decoder(config, loaded.tokenizer.fingerprint)
        described = sampling_run.describe_decoder(chosen.decoder, pyramid, chosen.fingerprints)
        record = {
            "checkpoint": str(_CHECKPOINT.value),
            "preset": _PRESET.value,
            "preset_changes": changes(described),
            "batch_size": batch,
        }
        draw = ImageSampler(
            loaded.network,
            module,
            loaded.tokenizer.params,
            chosen.decoder,
            mesh,
            decoder_params=chosen.params,
        )

        def draw_part(start: int, stop: int) -> Any:
            drawn = draw.on_mesh(loaded.params, labels[:stop], _SEED.value, batch, start)
            for numbers, samples in drawn:
                found = extract(samples.images) if extract is not None else {}
                found["images"] = arrays.to_host(samples.images)
                found = {name: value[: len(numbers)] for name, value in found.items()}
                yield found.pop("images"), found

        files = sampling_run.SampleFiles(
            folder,
            labels,
            {"sampler": described, **drawn_from},
            part_size=_PART_SIZE.value,
            features_of=weights.sha256[:12] if weights is not None else "",
        )
        return draw_and_score(
            files,
            draw_part,
            record,
            scorer,
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
    cli.run(main)

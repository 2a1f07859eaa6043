"""Scores images against a reference, in the manner of ADM's evaluator.

python -m launch.score_images --samples a.npz --reference b.npz \
    --inception pt_inception-2015-12-05-6726825d.pth --json out.json

Both are npz or npy files or folders of pictures; the reference may be one of ADM's files with
statistics. Prints FID, sFID, inception score, precision, recall, density, coverage and KID, as far
as the reference allows them, with the hashes of all files. Runs on one host.
"""

from __future__ import annotations

import json

from absl import flags

from launch import cli

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
_ALLOW_MISMATCHED = cli.define_allow_mismatched_reference()
_INCEPTION, _INCEPTION_SHA256 = cli.define_inception_flags()
_JSON = cli.define_path("json", None, "File for the scores.")
_BATCH = flags.DEFINE_integer(
    "batch_size", None, "Images at once; by default 32 per device, on CPUs 8 in all.", 1
)
flags.mark_flags_as_required(["samples", "reference", "inception"])


def main() -> None:
    from var_jax import paths
    from var_jax.evaluation.generated.adm import score_files
    from var_jax.evaluation.progress import ScoringProgress

    cli.on_one_host()
    scores = score_files(
        _SAMPLES.value,
        _REFERENCE.value,
        _INCEPTION.value,
        inception_sha256=_INCEPTION_SHA256.value,
        batch_size=_BATCH.value,
        allow_mismatched=_ALLOW_MISMATCHED.value,
        value_range=_RANGE.value,
        reference_value_range=_REFERENCE_RANGE.value,
        progress=ScoringProgress(),
    )
    if _JSON.value:
        paths.write_json(_JSON.value, scores)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    cli.run(main)

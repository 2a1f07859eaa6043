"""A setting's samples drawn, scored and recorded in one folder: samples, scores, manifest."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from var_jax.checkpoint.files import package_versions
from var_jax.evaluation.generated.adm import ReferenceScorer
from var_jax.evaluation.generated.sampling_run import (
    DrawPart,
    SampleFiles,
    read_json,
)
from var_jax.evaluation.inception.weights import file_sha256
from var_jax.paths import write_json

#: What must be the same for scores that are there already to be those that were asked for.
_IDENTITY = ("evaluator", "inception_sha256", "reference_sha256", "mismatched_reference_allowed")


def draw_and_score(
    files: SampleFiles,
    draw_part: DrawPart,
    record: dict[str, Any],
    scorer: ReferenceScorer | None,
    *,
    keep_samples: bool = True,
    should_stop: Callable[[int], bool] = lambda part: False,
) -> dict[str, Any] | None:
    """Goes on where a former run of the same settings was; every process calls it alike.

    Args:
      files: the samples.
      draw_part: see SampleFiles.draw.
      record: what the manifest says beside the settings, ready for JSON.
      scorer: of the samples, used on process 0; None only draws.
      keep_samples: leave samples.npz there once it is scored.
      should_stop: see SampleFiles.draw.

    Returns:
      the scores (empty without a scorer, and on other processes than 0), or None where it was
      stopped.

    Raises:
      ValueError: the samples cannot be compared with the reference.
    """
    first = jax.process_index() == 0
    identity = scorer.identity() if scorer is not None and first else {}
    scores_file, manifest_file = (files.folder / f for f in ("scores.json", "manifest.json"))
    finished = False
    if first and scores_file.exists() and scorer is not None:
        scores = read_json(scores_file)
        finished = scores.get("settings_sha256") == files.sha256 and all(
            scores.get(name) == identity[name] for name in _IDENTITY
        )
    if jax.process_count() > 1:
        finished = bool(multihost_utils.broadcast_one_to_all(np.int32(finished)))
    if finished:
        logging.info("Done already: %s.", scores_file)
        return scores if first else {}
    if not files.draw(draw_part, should_stop):
        logging.info("Stopped; the same command goes on from the parts in %s.", files.folder)
        return None
    path = files.finish()
    scores = {}
    if first:
        sha256 = file_sha256(path)
        counts = np.bincount(files.labels, minlength=int(files.settings.get("num_classes", 0)))
        manifest = {
            "settings": files.settings,
            "settings_sha256": files.sha256,
            "samples": str(path),
            "samples_sha256": sha256,
            "order": "sample i at place i; labels are a seeded permutation of equally many of each",
            "samples_per_class": [int(counts.min()), int(counts.max())],
            **record,
            "command": shlex.join(sys.argv),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "hosts": jax.process_count(),
            "versions": package_versions(),
            "evaluation": identity or None,
        }
        write_json(manifest_file, manifest)
        if scorer is not None:
            features = files.features(scorer.extractor.sizes)
            found = scorer.score(str(path), features=features, sha256=sha256)
            scores = {**found, "settings_sha256": files.sha256}
            # Last, so that its presence says that all is there.
            write_json(scores_file, scores)
            if not keep_samples:
                path.unlink()
        files.discard_parts()
    # The others must not leave while process 0 computes: their leaving would end its run.
    files.barrier("scored")
    return scores

import json

import numpy as np
import pytest
from stub_extractor import StubExtractor

from var_jax.decoding.next_scale import NextScale
from var_jax.evaluation.generated.adm import ReferenceScorer
from var_jax.evaluation.generated.generation_scores import draw_and_score
from var_jax.evaluation.generated.npz_images import as_rgb
from var_jax.evaluation.generated.sampling_run import SampleFiles, balanced_labels, describe_decoder
from var_jax.pyramid import ScalePyramid

pytestmark = pytest.mark.filterwarnings("ignore:The network is not the published")
LABELS = balanced_labels(40, 4, seed=0)
SETTINGS = {
    "sampler": describe_decoder(NextScale(), ScalePyramid.from_patch_nums((1, 2))),
    "num_classes": 4,
    "seed": 0,
}


def draw_part(start, stop):
    rng = np.random.default_rng(start)
    yield rng.integers(0, 256, (stop - start, 8, 8, 1), np.uint8), {}


def draw_with_features(start, stop):
    for images, _ in draw_part(start, stop):
        yield images, StubExtractor()(as_rgb(images))


@pytest.fixture
def reference(tmp_path):
    images = np.random.default_rng(9).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "reference.npz", images)
    return str(tmp_path / "reference.npz")


def files(folder, **changes):
    return SampleFiles(folder, LABELS, {**SETTINGS, **changes}, part_size=10)


def test_scores_manifest_and_a_second_run_that_does_nothing(tmp_path, reference):
    out = tmp_path / "out"
    extractor = StubExtractor()
    scores = draw_and_score(
        files(out), draw_part, {"preset": "paper"}, ReferenceScorer(reference, extractor)
    )
    assert scores["fid"] > 0 and 0 <= scores["precision"] <= 1 and scores["num_samples"] == 40
    assert json.loads((out / "scores.json").read_text()) == scores
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["preset"] == "paper" and manifest["samples_per_class"] == [10, 10]
    assert manifest["settings"]["sampler"]["guidance_by_level"] == [0.0, 1.5]
    assert manifest["evaluation"]["evaluator"] == "stub"
    assert len(manifest["evaluation"]["reference_sha256"]) == 64
    assert manifest["samples_sha256"] == scores["samples_sha256"]
    assert "jax" in manifest["versions"] and manifest["command"]
    assert not (np.diff(np.load(out / "samples.npz")["labels"]) >= 0).all()

    seen = extractor.seen
    again = draw_and_score(files(out), None, {}, ReferenceScorer(reference, extractor))
    assert again == scores and extractor.seen == seen


def test_features_that_came_with_the_samples_are_not_extracted_again(tmp_path, reference):
    plain = draw_and_score(
        files(tmp_path / "a"), draw_part, {}, ReferenceScorer(reference, StubExtractor())
    )
    extractor = StubExtractor()
    found = draw_and_score(
        files(tmp_path / "b"), draw_with_features, {}, ReferenceScorer(reference, extractor)
    )
    assert extractor.seen == 50  # Those of the reference.
    assert not (tmp_path / "b" / "parts").exists()
    for name in ("fid", "sfid", "inception_score", "precision", "kid", "samples_sha256"):
        assert found[name] == pytest.approx(plain[name]), name


def test_the_samples_may_go_once_they_are_scored(tmp_path, reference):
    out, extractor = tmp_path / "out", StubExtractor()
    scorer = ReferenceScorer(reference, extractor)
    scores = draw_and_score(files(out), draw_part, {}, scorer, keep_samples=False)
    assert not (out / "samples.npz").exists() and not (out / "parts").exists()
    assert draw_and_score(files(out), None, {}, scorer) == scores
    # Scores against another reference are other scores.
    images = np.random.default_rng(8).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.savez(reference, images)
    other = draw_and_score(files(out), draw_part, {}, ReferenceScorer(reference, extractor))
    assert other["fid"] != scores["fid"]


def test_without_a_judge_it_only_draws_and_a_stopped_run_has_no_scores(tmp_path):
    out = tmp_path / "out"
    assert draw_and_score(files(out), draw_part, {}, None, should_stop=lambda n: True) is None
    assert not (out / "manifest.json").exists()
    assert draw_and_score(files(out), draw_part, {}, None) == {}
    assert (out / "samples.npz").exists() and not (out / "scores.json").exists()
    assert json.loads((out / "manifest.json").read_text())["evaluation"] is None


def test_images_of_another_size_than_the_reference_are_refused(tmp_path, reference):
    scorer = ReferenceScorer(reference, StubExtractor())
    with pytest.raises(ValueError, match="16x16 px, but the reference .* is of 8x8 px"):
        scorer.check((16, 16), {}, "The checkpoint")
    ReferenceScorer(reference, StubExtractor(), allow_mismatched=True).check((16, 16), {}, "x")

"""Commands about decoding, on an untrained model of the smallest config."""

import json

import numpy as np
import pytest
from commands import run_cases
from untrained import write_model

import var_jax
from var_jax.evaluation.small_sets.rewards import read_classifier
from var_jax.heads.index_mark import IndexMark


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoding")
    write_model(folder / "model")
    return folder


def test_images_are_classified_by_a_cascade(folder):
    def case(name, *flags):
        return [
            f"--checkpoint={folder / 'model'}",
            f"--output={folder / name}.json",
            "--num_examples=20",
            "--batch_size=16",
            *flags,
        ]

    cases = {
        "flat": case("flat"),
        "cascade": case("cascade", "--levels=1,4", "--kept=10,1", "--copies=1,1"),
        "too many": case("x", "--levels=5"),
        "uneven": case("x", "--levels=1,2", "--kept=1"),
        "no number": case("x", "--levels=one"),
    }
    errors = run_cases("launch.classify", cases)
    assert errors.keys() == {"too many", "uneven", "no number"}
    assert "the model has 4 levels" in errors["too many"]
    assert "as many levels as kept labels" in errors["uneven"]
    found = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("flat", "cascade")
    }
    assert found["flat"]["num_examples"] == 20
    # Nothing is left out before all levels are scored.
    assert found["flat"]["accuracy"] == found["cascade"]["accuracy"]


def test_a_file_of_pairs_marks_samples(folder):
    model, file = folder / "model", folder / "pairs.npz"
    cases = {
        "pairs": [f"--tokenizer={model / 'tokenizer'}", f"--output={file}"],
        "no place": [f"--tokenizer={model / 'tokenizer'}", f"--output={folder / 'no/pairs.npz'}"],
    }
    errors = run_cases("launch.pair_codes", cases)
    assert errors.keys() == {"no place"} and "does not exist" in errors["no place"]
    mark = IndexMark(str(file), key=1, threshold=9.0)
    assert mark.green(0, 32).sum() == 16


def test_a_classifier_is_written_for_searches(folder):
    file = folder / "classifier.npz"
    cases = {"": [f"--checkpoint={folder / 'model'}", f"--output={file}", "--steps=2"]}
    assert not run_cases("launch.train_classifier", cases)
    classifier, means = read_classifier(file)
    assert classifier.num_classes == 10 and means.shape == (10, 64)
    reward = {"kind": "classifier", "file": str(file)}
    images = var_jax.load(folder / "model").sample(
        [3, 10], decoder={"kind": "search", "candidates": (2, 2, 1, 1)}, reward=reward
    )
    assert images.shape == (2, 32, 32, 1) and images.dtype == np.uint8

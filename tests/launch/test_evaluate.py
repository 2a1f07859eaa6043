"""The evaluation commands on an untrained model of the smallest config."""

import json
import pathlib

import numpy as np
import pytest
from commands import import_command, run_cases
from untrained import write_model

ROOT = pathlib.Path(__file__).parents[2]
tokenizer_command = import_command("launch.evaluate_tokenizer")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def outcome(checkpoint, tmp_path_factory):
    """Folder of the samples, and the error of each case that had one."""
    folder = tmp_path_factory.mktemp("samples")
    np.savez(folder / "reference.npz", np.zeros((4, 32, 32, 1), np.uint8))
    reference = f"--reference={folder / 'reference.npz'}"
    model, out = f"--checkpoint={checkpoint}", f"--output={folder / 'out'}"
    draw = [model, out, "--preset=paper", "--num_samples=25", "--batch_size=10", "--part_size=10"]
    cases = {
        "draw": [*draw],
        "again": [*draw],
        "others": [*draw, "--single_host", "--cfg=2"],
        "nothing": [],
        "no output": [model],
        "no inception": [model, out, reference],
        "no weights": [model, out, reference, "--inception=none.pth"],
        "no reference": [model, out, "--reference=none.npz", "--inception=none.pth"],
        "sweep without": [model, out, "--sweep=cfg=1,2"],
        "sweep twice": [
            *(model, out, reference, "--inception=none.pth", "--cfg=1", "--sweep=cfg=1,2"),
        ],
        "sweep of what": [
            *(model, out, reference, "--inception=none.pth", "--sweep=top_p=1", "--sweep=cgf=1"),
        ],
    }
    making = ["--config=configs/mnist5k.py", f"--output={folder / 'val.npz'}"]
    errors = run_cases("launch.make_reference", {"reference": making})
    return folder, {**errors, **run_cases("launch.evaluate", cases)}


def test_samples_and_manifest_of_a_checkpoint(outcome, checkpoint):
    folder, errors = outcome
    assert not {"draw", "again", "reference"} & errors.keys(), errors
    found = np.load(folder / "out" / "samples.npz")
    assert found["arr_0"].shape == (25, 32, 32, 1) and found["arr_0"].dtype == np.uint8
    assert sorted(np.bincount(found["labels"], minlength=10)) == [2] * 5 + [3] * 5
    assert (np.diff(found["labels"]) < 0).any()
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    settings = manifest["settings"]
    assert settings["sampler"]["guidance_convention"] == "(1+t) cond - t uncond, t = cfg*k/(K-1)"
    assert settings["sampler"]["guidance_by_level"] == [0, 0.5, 1, 1.5]
    assert settings["sampler"]["top_k_by_level"] == [900] * 4
    assert settings["checkpoint"]["step"] == 3 and settings["num_samples"] == 25
    assert len(settings["checkpoint"]["parameters_sha256"]) == 64
    assert settings["dtype"] == {"transformer": "float32", "tokenizer": "float32"}
    assert len(settings["tokenizer_fingerprint"]) == 64 and "rounding" in settings
    assert manifest["preset"] == "paper"
    assert manifest["preset_changes"] == {"num_samples": {"protocol": 50000, "used": 25}}
    assert manifest["checkpoint"] == str(checkpoint)


def test_a_reference_of_a_data_source_says_what_it_is(outcome):
    folder, _ = outcome
    found = np.load(folder / "val.npz")
    note = json.loads(str(found["note"]))
    assert found["arr_0"].shape == (500, 32, 32, 1)
    assert (note["source"], note["split"], note["count"]) == ("mnist5k", "val", 500)
    assert note["crop"] == "padded to 32x32 with 0"


@pytest.mark.parametrize(
    "case, message",
    [
        ("others", "holds samples of other settings (sampler: cfg 1.5 there, 2.0 here); give"),
        ("nothing", "--checkpoint must have a value"),
        ("no output", "--output must have a value"),
        ("no inception", "Scoring needs --inception"),
        ("no weights", "There are no Inception weights at"),
        ("no reference", "none.npz; give the path of an npz"),
        ("sweep without", "--sweep needs --reference"),
        ("sweep twice", "--sweep already varies cfg; leave out --cfg"),
        ("sweep of what", "--sweep has the term 'cgf=1'"),
    ],
)
def test_mistakes_are_one_sentence(outcome, case, message):
    error = outcome[1][case]
    assert message in error and "\n" not in error


def test_a_tokenizer_of_one_channel_gets_its_report(checkpoint, outcome, tmp_path):
    folder, _ = outcome
    own = f"--tokenizer={checkpoint}"
    options = ["--batch_size=8", "--level_images=4", "--keep_images"]
    np.savez(tmp_path / "small.npz", np.zeros((4, 16, 16, 1), np.uint8))
    np.savez(tmp_path / "few.npz", np.load(folder / "val.npz")["arr_0"][:6])
    npz = f"--images={tmp_path / 'few.npz'}"
    val = f"--reference={folder / 'val.npz'}"
    errors = run_cases(
        "launch.evaluate_tokenizer",
        {
            "data": [own, f"--output={tmp_path / 'a'}", "--num_images=10", *options],
            "size": [own, f"--output={tmp_path / 'c'}", f"--images={tmp_path / 'small.npz'}"],
            "too many": [own, f"--output={tmp_path / 'c'}", "--num_images=501"],
            "other": [own, f"--output={tmp_path / 'c'}", npz, val, "--inception=none.pth"],
            "part": [
                *(own, f"--output={tmp_path / 'c'}", val, "--inception=none.pth"),
                "--num_images=10",
            ],
            "train": [
                *(own, f"--output={tmp_path / 'c'}", val, "--inception=none.pth", "--split=train"),
            ],
            "same": [own, f"--output={tmp_path / 'c'}", val, "--inception=none.pth"],
            "pfid": [own, f"--output={tmp_path / 'c'}", "--perturbed_rates=1"],
        },
    )
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert scores["num_images"] == 10 and scores["num_level_images"] == 4
    assert len(scores["psnr_by_levels"]) == len(scores["code_usage"]) == 4
    assert [size["size"] for size in scores["text"]] == [8]
    assert "data:image/png" in (tmp_path / "a" / "report.html").read_text()
    kept = np.load(tmp_path / "a" / "reconstructions.npz")
    assert kept["arr_0"].shape == (10, 32, 32, 1)
    assert json.loads(str(kept["note"]))["kind"] == "reconstructions"
    few = tokenizer_command.from_file(str(tmp_path / "few.npz"), (32, 32, 1), 4)
    assert few.total == 6 and [b.shape for b in few.batches] == [(4, 32, 32, 1), (2, 32, 32, 1)]
    assert "the tokenizer reads [N, 32, 32, 1]" in errors["size"]
    assert "--num_images is 501, but mnist5k:val has 500" in errors["too many"]
    assert "was made with source 'mnist5k'" in errors["other"]
    assert "reconstructions with count 10" in errors["part"]
    assert "reconstructions with split 'train'" in errors["train"]
    assert "no Inception weights" in errors["same"]  # The reference itself was accepted.
    assert "--perturbed_rates needs --inception" in errors["pfid"]
    assert set(errors) == {"size", "too many", "other", "part", "train", "same", "pfid"}
    assert not (tmp_path / "c").exists()

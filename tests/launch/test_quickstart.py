"""The quickstart at its smallest, undisturbed and killed on its way."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def start(workdir):
    command = [
        sys.executable,
        "-m",
        "launch.quickstart",
        f"--workdir={workdir}",
        "--config=configs/mnist5k.py:smallest",
        "--num_samples=20",
        "--crops=1",
        "--classifier_steps=20",
    ]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish(start(workdir))
    return workdir


def test_it_leaves_a_report_and_the_promised_numbers(undisturbed):
    metrics = json.loads((undisturbed / "metrics.json").read_text())
    promised = {
        "label_accuracy",
        "classifier_accuracy_real",
        "reconstruction_psnr",
        "frechet_distance",
        "frechet_distance_untrained",
        "diversity",
        "code_usage",
        "seconds",
    }
    assert promised <= set(metrics)
    assert len(metrics["code_usage"]) == 3
    assert set(metrics["seconds"]) >= {"tokenizer", "tokens", "transformer", "scores"}
    page = (undisturbed / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 5
    assert "http" not in page.replace("http-equiv", "")  # Nothing is loaded from elsewhere.
    assert "Done already" in finish(start(undisturbed))


def test_killed_and_run_again_it_ends_with_the_same_scores(undisturbed, tmp_path):
    expected = json.loads((undisturbed / "scores" / "scores.json").read_text())
    # In the middle of each training, when its first checkpoint is there.
    for sign in ("tokenizer/checkpoints", "transformer/checkpoints"):
        process = start(tmp_path)
        deadline = time.monotonic() + 300
        while not list((tmp_path / sign).glob("[0-9]*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(tmp_path))
    assert json.loads((tmp_path / "scores" / "scores.json").read_text()) == expected

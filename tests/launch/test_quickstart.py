"""The quickstart at its smallest, undisturbed and killed on its way."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
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
    output, _ = process.communicate()
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
    assert len(metrics["code_usage"]) == 4
    assert set(metrics["seconds"]) >= {"tokenizer", "tokens", "transformer", "scores"}
    page = (undisturbed / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 5
    assert 'src="http' not in page and "href=" not in page  # Nothing is loaded from elsewhere.
    assert "Done already" in finish(start(undisturbed))


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_scores(undisturbed, tmp_path):
    expected = json.loads((undisturbed / "scores" / "scores.json").read_text())
    # In the middle of each training, when its first checkpoint is there.
    for sign in ("tokenizer/checkpoints", "transformer/checkpoints"):
        process = start(tmp_path)
        while not list((tmp_path / sign).glob("[0-9]*")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(tmp_path))
    assert json.loads((tmp_path / "scores" / "scores.json").read_text()) == expected


def command(module, *options):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", module, *options], cwd=ROOT, env=env, capture_output=True, text=True
    )


def test_samples_of_a_checkpoint(undisturbed, tmp_path):
    checkpoint = f"--checkpoint={undisturbed / 'transformer'}"
    arrays = {}
    for name, options in {
        "all": ["--labels=3,1,-1"],
        "one": ["--labels=3,1,-1", "--batch_size=1"],
        "greedy": ["--labels=3,1,-1", "--top_k=1", "--cfg=0,0.5,1,2", "--show_levels"],
    }.items():
        path = tmp_path / f"{name}.npz"
        done = command("launch.sample", checkpoint, f"--output={path}", "--seed=0", *options)
        assert done.returncode == 0, done.stderr
        arrays[name] = dict(np.load(path))
    found = arrays["all"]
    assert found["images"].shape == (3, 32, 32, 1) and found["images"].dtype == np.uint8
    assert found["tokens"].shape == (3, 37) and found["tokens"].dtype == np.int32
    np.testing.assert_array_equal(found["labels"], [3, 1, 10])
    np.testing.assert_array_equal(found["tokens"], arrays["one"]["tokens"])
    assert arrays["greedy"]["levels"].shape == (4, 3, 32, 32, 1)
    np.testing.assert_array_equal(arrays["greedy"]["levels"][-1], arrays["greedy"]["images"])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--labels=12", "--output=x.npz"], "--labels has 12, but the classes are 0..9"),
        (["--labels=a", "--output=x.npz"], "--labels takes numbers"),
        (["--labels=1", "--output=x.jpg"], "must end in .npz or .png"),
        (["--labels=1", "--output=nowhere/x.npz"], "does not exist"),
        (["--labels=1", "--output=x.npz", "--tokenizer=nowhere"], "no checkpoint in"),
    ],
)
def test_mistakes_end_with_one_sentence(undisturbed, options, message):
    done = command("launch.sample", f"--checkpoint={undisturbed / 'transformer'}", *options)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr

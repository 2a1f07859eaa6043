"""The chain of commands with every path in a bucket, killed once on the way."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from var_jax.checkpoint import files
from var_jax.train.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=configs/mnist5k.py:smallest"
STEPS, SAVE_EVERY, LOG_EVERY = 24, 4, 2


@pytest.fixture(scope="module")
def start(bucket, tmp_path_factory):
    """Starts a command; what one compiles the next ones read."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["VAR_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))

    started = []

    def start(name, *flags):
        command = [sys.executable, "-m", f"launch.{name}", *flags]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def run(start):
    def run(name, *flags):
        process = start(name, *flags)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert not any(noise in output for noise in ("Traceback", "gcsfs", "Exception")), output
        return output

    return run


@pytest.fixture(scope="module")
def tokens(bucket, run):
    """The folder of a tokenizer and of the tokens that it made, in the bucket."""
    folder = epath.Path(bucket) / "a run"
    run("train", "--model=tokenizer", CONFIG, f"--workdir={folder}/tokenizer/")
    run("cache_tokens", f"--tokenizer={folder}/tokenizer", f"--output={folder}/tokens")
    return folder


@pytest.fixture(scope="module")
def trained(tokens, start, run):
    """The folder with a transformer whose training was killed between two checkpoints."""
    workdir = tokens / "transformer"
    command = (
        "train",
        CONFIG,
        f"--workdir={workdir}",
        f"--config.tokenizer_checkpoint={tokens}/tokenizer",
        f"--config.token_cache={tokens}/tokens/",
        f"--config.train.num_steps={STEPS}",
        f"--config.train.save_every={SAVE_EVERY}",
        f"--config.train.log_every={LOG_EVERY}",
    )
    process = start(*command)
    while not (
        files.complete_steps(workdir / "checkpoints")
        and any(line["step"] >= SAVE_EVERY - 1 for line in read_metrics(workdir))
    ):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    saved = files.complete_steps(workdir / "checkpoints")
    assert saved and max(saved) < STEPS, "It was to be killed on its way."
    output = run(*command)
    assert "Resumed transformer from step" in output
    return tokens


def test_a_killed_run_goes_on_and_logs_each_step_once(trained):
    workdir = trained / "transformer"
    assert max(files.complete_steps(workdir / "checkpoints")) == STEPS
    steps = [line["step"] for line in read_metrics(workdir) if "loss" in line]
    assert steps == list(range(LOG_EVERY - 1, STEPS, LOG_EVERY))
    # One event file of each of the two processes, if both came to copy theirs.
    assert any((workdir / "tensorboard").iterdir())
    assert (workdir / "samples" / f"samples_{STEPS:08d}.png").exists()


def test_what_reads_the_run_and_writes_beside_it(trained, run):
    checkpoint = f"--checkpoint={trained}/transformer"
    run("sample", checkpoint, "--labels=3,1", f"--output={trained}/new/out.npz")
    with np.load(io.BytesIO((trained / "new" / "out.npz").read_bytes())) as found:
        assert found["images"].shape == (2, 32, 32, 1) and found["labels"].tolist() == [3, 1]
    run("likelihood", checkpoint, f"--output={trained}/new folder/nats.json")
    scores = json.loads((trained / "new folder" / "nats.json").read_text())
    assert scores["num_examples"] == 500 and scores["step"] == STEPS
    run("evaluate", checkpoint, "--num_samples=6", "--part_size=3", f"--output={trained}/drawn")
    with np.load(io.BytesIO((trained / "drawn" / "samples.npz").read_bytes())) as found:
        assert found["arr_0"].shape[0] == 6
    assert sorted(path.name for path in (trained / "drawn").iterdir()) == [
        "manifest.json",
        "samples.npz",
        "settings.json",
    ]


def test_what_is_not_there_is_one_sentence(bucket, start):
    process = start("likelihood", f"--checkpoint={bucket}/nothing/there")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert f"Error: There is no checkpoint in {bucket}/nothing/there/checkpoints." in output
    assert "Traceback" not in output

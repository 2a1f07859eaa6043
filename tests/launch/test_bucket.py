"""The chains of commands with every path in a bucket, killed once on the way: of VAR, of a method
with float targets, and of one that keeps in the bucket the model that its adapter changes."""

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
from PIL import Image

from var_jax.checkpoint import files
from var_jax.data.token_cache import TokenCache
from var_jax.pixels import encode_png
from var_jax.train.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
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


def config(method):
    return f"--config=configs/{method}.py:smallest"


def make_tokens(run, folder, method):
    """Trains a method's tokenizer and caches what it makes of the images; the folder of both."""
    run("train", "--model=tokenizer", config(method), f"--workdir={folder}/tokenizer/")
    run("cache_tokens", f"--tokenizer={folder}/tokenizer", f"--output={folder}/tokens")
    return folder


def train_killed_once(start, run, workdir, method, tokens, *flags, initial=""):
    """Trains a transformer, killed between two checkpoints and started anew; checks its log."""
    command = (
        "train",
        config(method),
        f"--workdir={workdir}",
        f"--config.tokenizer_checkpoint={tokens}/tokenizer",
        f"--config.token_cache={tokens}/tokens/",
        f"--config.train.num_steps={STEPS}",
        f"--config.train.save_every={SAVE_EVERY}",
        f"--config.train.log_every={LOG_EVERY}",
        *flags,
    )
    process = start(*command, f"--config.train.initial_checkpoint={initial}")
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
    # What it started from, it has itself.
    gone = f"--config.train.initial_checkpoint={initial}-gone" if initial else ""
    assert "Resumed transformer from step" in run(*command, *filter(None, [gone]))

    assert max(files.complete_steps(workdir / "checkpoints")) == STEPS
    steps = [line["step"] for line in read_metrics(workdir) if "loss" in line]
    assert steps == list(range(LOG_EVERY - 1, STEPS, LOG_EVERY))
    # One event file of each of the two processes, if both came to copy theirs.
    assert any((workdir / "tensorboard").iterdir())
    assert (workdir / "samples" / f"samples_{STEPS:08d}.png").exists()


def draw(run, workdir, output):
    run("sample", f"--checkpoint={workdir}", "--labels=3,1", f"--output={output}")
    with np.load(io.BytesIO(output.read_bytes())) as found:
        assert found["images"].shape == (2, 32, 32, 1) and found["labels"].tolist() == [3, 1]


@pytest.fixture(scope="module")
def trained(bucket, start, run):
    """The folder of VAR's tokenizer, tokens and transformer."""
    folder = make_tokens(run, epath.Path(bucket) / "a run", "mnist5k")
    train_killed_once(start, run, folder / "transformer", "mnist5k", folder)
    return folder


@pytest.mark.slow
def test_float_targets(bucket, start, run):
    folder = make_tokens(run, epath.Path(bucket) / "flow", "family/flowar")
    train_killed_once(start, run, folder / "transformer", "family/flowar", folder)
    draw(run, folder / "transformer", folder / "images.npz")


@pytest.mark.slow
def test_the_model_that_a_run_starts_from(trained, start, run):
    workdir = trained / "tuned"
    adapter = ("--config.train.adapter.kind=lora", "--config.train.adapter.rank=2")
    initial = trained / "transformer"
    train_killed_once(start, run, workdir, "family/cca", trained, *adapter, initial=initial)
    kept = files.inspect(workdir / "reference").metadata["fingerprint"]
    assert files.inspect(workdir).metadata["reference_fingerprint"] == kept
    gaps = [line["gap"] for line in read_metrics(workdir) if "gap" in line]
    assert abs(gaps[-1]) > 1e-4
    draw(run, workdir, workdir / "images.npz")
    run("merge_adapter", f"--checkpoint={workdir}", f"--output={trained}/merged")
    draw(run, trained / "merged", trained / "merged.npz")


def test_what_reads_the_run_and_writes_beside_it(trained, run):
    checkpoint = f"--checkpoint={trained}/transformer"
    draw(run, trained / "transformer", trained / "new" / "out.npz")
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


def test_a_picture_there_is_edited(trained, run):
    picture, output = trained / "a digit.png", trained / "edited" / "out.png"
    picture.write_bytes(encode_png(np.full((40, 32, 3), 99, np.uint8)))
    given = (f"--checkpoint={trained}/transformer", f"--image={picture}", "--labels=3")
    run("edit", *given, "--expand=0.25", f"--output={output}")
    assert Image.open(io.BytesIO(output.read_bytes())).size == (3 * 34 + 2, 34 + 2)


@pytest.mark.slow
def test_what_decoding_reads_and_writes_lies_there(trained, run):
    checkpoint, there = f"--checkpoint={trained}/transformer", trained / "decoding"
    run("classify", checkpoint, "--num_examples=8", f"--output={there}/classified.json")
    assert json.loads((there / "classified.json").read_text())["num_examples"] == 8
    run("train_classifier", checkpoint, "--steps=2", f"--output={there}/classifier.npz")
    run("pair_codes", f"--tokenizer={trained}/tokenizer", f"--output={there}/pairs.npz")
    sampling = {
        "decoder": {"kind": "search", "candidates": 2},
        "reward": {"kind": "classifier", "file": f"{there}/classifier.npz"},
        "processors": [{"kind": "index_mark", "key": 3, "pairs": f"{there}/pairs.npz"}],
    }
    given = ("--labels=3,1", f"--sampling={json.dumps(sampling)}", f"--output={there}/out.npz")
    run("sample", checkpoint, *given)
    with np.load(io.BytesIO((there / "out.npz").read_bytes())) as found:
        assert found["images"].shape == (2, 32, 32, 1)
    run("cache_samples", checkpoint, "--samples_per_class=1", f"--output={there}/samples")
    assert len(TokenCache(there / "samples")) == 10
    run("demo", checkpoint, f"--export={there}/page")
    assert "window.PAGE" in (there / "page" / "data.js").read_text()[:12]


def test_what_is_not_there_is_one_sentence(bucket, start):
    process = start("likelihood", f"--checkpoint={bucket}/nothing/there")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert f"Error: There is no checkpoint in {bucket}/nothing/there/checkpoints." in output
    assert "Traceback" not in output

"""The whole way on 5,000 MNIST digits: tokenizer, tokens, transformer, scores, report.

bash launch/quickstart.sh makes the environment and runs this. WORKDIR (runs/quickstart) gets
tokenizer/, tokens/, transformer/, scores/, report.html and metrics.json. Run again after an
interruption, it goes on where it was and ends with the same numbers.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl import flags

from launch import cli

_WORKDIR = cli.define_path(
    "workdir", os.environ.get("WORKDIR", "runs/quickstart"), "Directory of the run."
)
_CONFIG = flags.DEFINE_string("config", "configs/mnist5k.py", "Config of all stages.")
_CROPS = flags.DEFINE_integer("crops", 4, "Augmented copies of each image in the token cache.", 1)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1000, "Images to score.", 1)
_CLASSIFIER_STEPS = flags.DEFINE_integer(
    "classifier_steps", 800, "Updates of the classifier that scores.", 1
)


def stages(workdir: pathlib.Path) -> dict[str, list[str]]:
    """Each stage's name and command line (without the interpreter)."""
    tokenizer, tokens = workdir / "tokenizer", workdir / "tokens"
    transformer, scores = workdir / "transformer", workdir / "scores"
    config = f"--config={_CONFIG.value}"
    return {
        "tokenizer": ["launch.train", "--model=tokenizer", config, f"--workdir={tokenizer}"],
        "tokens": [
            "launch.cache_tokens",
            f"--tokenizer={tokenizer}",
            f"--output={tokens}",
            f"--crops={_CROPS.value}",
        ],
        "transformer": [
            "launch.train",
            config,
            f"--workdir={transformer}",
            f"--config.tokenizer_checkpoint={tokenizer}",
            f"--config.token_cache={tokens}",
        ],
        "scores": [
            "launch.score_small_set",
            f"--checkpoint={transformer}",
            f"--output={scores}",
            f"--num_samples={_NUM_SAMPLES.value}",
            f"--classifier_steps={_CLASSIFIER_STEPS.value}",
        ],
    }


class Clock:
    """Seconds of computing by stage, kept in a file so that an interruption loses little."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self.seconds = json.loads(path.read_text()) if path.exists() else {}

    def add(self, stage: str, seconds: float) -> None:
        from var_jax import paths

        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        paths.write_json(self._path, self.seconds)


def _die_with_parent() -> None:
    """A stage must not outlive this process and write beside the next run's (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    workdir = pathlib.Path(_WORKDIR.value).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    # The stages inherit the lock: it is free only when none of them runs any more.
    lock = os.open(workdir / ".lock", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"Another process works in {workdir}; waiting for it to end.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)

    done = workdir / "metrics.json"
    if done.exists():
        print(f"Done already: {workdir}/report.html and metrics.json are there.")
        return
    clock = Clock(workdir / "seconds.json")
    scores = workdir / "scores" / "scores.json"
    for name, command in stages(workdir).items():
        if name == "scores" and scores.exists():
            continue
        print(f"== {name}: python -m {' '.join(command)}", flush=True)
        _run(name, command, lock, clock)
    from var_jax.studies.small_set_report import write_report

    write_report(workdir)
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in clock.seconds.items())
    print(f"Seconds: {seconds}; together {sum(clock.seconds.values()):.0f}.")
    print(f"Look at {workdir}/report.html; the numbers are in {done}.")


def _run(name: str, command: list[str], lock: int, clock: Clock) -> None:
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *command], pass_fds=(lock,), preexec_fn=_die_with_parent
    )
    try:
        while True:
            try:
                status = process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                status = None
            now = time.monotonic()
            clock.add(name, now - began)
            began = now
            if status is not None:
                break
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status:
        print(f"Stage {name} ended with status {status}; the same command goes on from there.")
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)

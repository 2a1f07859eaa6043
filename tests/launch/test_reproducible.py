"""The same command gives the same bits in another process, whatever else the machine does."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from var_jax.checkpoint import Checkpointer

ROOT = pathlib.Path(__file__).parents[2]


def train(workdir, cores, **variables):
    """The smallest tokenizer's arrays, compiled anew and trained on some cores of this machine."""
    command = [
        "taskset",
        "-c",
        cores,
        sys.executable,
        "-m",
        "launch.train",
        "--model=tokenizer",
        "--config=configs/mnist5k.py:smallest",
        f"--workdir={workdir}",
        "--compilation_cache=",
    ]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | variables
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Checkpointer(workdir, read_only=True) as checkpointer:
        return checkpointer.restore_params("params", as_numpy=True)[0]


@pytest.mark.skipif(shutil.which("taskset") is None, reason="cores are chosen by Linux's taskset")
def test_two_runs_end_with_the_same_bits_with_as_many_threads(tmp_path):
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    both = train(tmp_path / "both", ",".join(cores[:2]), NPROC="2")
    one = train(tmp_path / "one", cores[0], NPROC="2")
    jax.tree.map(np.testing.assert_array_equal, both, one)

"""The command compiles a small config for a slice; advice where something does not fit."""

import os
import pathlib
import subprocess
import sys
import types

import pytest
from commands import import_command
from ml_collections import ConfigDict

compile_for_tpu = import_command("launch.compile_for_tpu")

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    env = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    return subprocess.run(
        [sys.executable, "-m", "launch.compile_for_tpu", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
    )


@pytest.mark.parametrize(
    "method, what",
    [
        ("cca", "train"),
        ("flowar", "train"),
        *(
            pytest.param("flowar", what, marks=pytest.mark.slow)
            for what in ("train_tokenizer", "sample")
        ),
    ],
)
def test_a_small_config(method, what):
    pytest.importorskip("libtpu")
    config = f"--config=configs/family/{method}.py:smallest"
    out = run(config, "--topology=v5e:2x2", f"--what={what}")
    assert out.returncode == 0, out.stderr
    assert "4 x v5e, mesh data 4 x fsdp 1 x tensor 1" in out.stdout
    assert "fits" in out.stdout and "bound by" in out.stdout


def test_what_evaluates_beside_a_training():
    pytest.importorskip("libtpu")
    out = run("--config=configs/mnist5k.py:smallest", "--topology=v5e:2x2", "--what=evaluation")
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["likelihood", "16", "images"],
        ["samples", "40", "images"],
    ]
    assert all("beside it: fits" in line for line in lines)


def test_a_mesh_that_does_not_divide():
    pytest.importorskip("libtpu")
    out = run("--config=configs/mnist5k.py:smallest", "--topology=v5e:2x2",
              "--config.sharding=fsdp", "--config.mesh.fsdp=4", "--config.model.width=66",
              "--config.model.num_heads=1")  # fmt: skip
    assert out.returncode == 2
    assert "has size 66, which fsdp=4 does not divide" in out.stderr


@pytest.mark.parametrize(
    "remat, microbatches, data, advice",
    [
        ("none", 1, 2, "model.remat='full'"),
        ("full", 1, 2, "train.microbatches=2"),
        ("full", 4, 2, "mesh.fsdp above 2"),
        ("full", 8, 1, "larger slice"),
    ],
)
def test_the_knob_to_turn(remat, microbatches, data, advice):
    config = ConfigDict(
        {"model": {"remat": remat}, "train": {"batch_size": 16, "microbatches": microbatches}}
    )
    plan = types.SimpleNamespace(mesh={"data": data, "fsdp": 2, "tensor": 1})
    assert advice in compile_for_tpu.knob(config, plan, "train")

"""The script for one GPU, in its smallest setting on this machine's CPU."""

import json
import subprocess
import sys

import jax.numpy as jnp
import pytest
from commands import import_command

from var_jax.context import BlockCausal, key_segments
from var_jax.kernels.block_attention.shapes import Shape
from var_jax.pyramid import ScalePyramid

check_kernels = import_command("benchmarks.check_kernels")


@pytest.mark.parametrize("dtype, limit", [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_attention_is_checked(dtype, limit):
    pyramid = ScalePyramid.from_patch_nums((1, 2, 3))
    shape = Shape(2, 3, key_segments(pyramid, BlockCausal()), pyramid.length)
    found = check_kernels.check_attention(shape, dtype, seconds=0.0)["xla"]
    assert found["error"] < limit and found["gradient_error"] < limit
    assert found["both_ms"] > 0 and found["forward_ms"] > 0


def test_convolution_is_checked():
    found = check_kernels.check_convolution((2, 8, 8, 16), 8, seconds=0.0)
    assert found["default"]["error"] < 1e-5 and found["highest"]["error"] < 1e-5


def test_a_wrong_kernel_is_seen(monkeypatch):
    pyramid = ScalePyramid.from_patch_nums((1, 2, 3))
    shape = Shape(1, 1, key_segments(pyramid, BlockCausal()), pyramid.length)
    broken = {
        "ours": lambda q, k, v, segments, log_scale: v,
        "raises": lambda *args, **kwargs: 1 / 0,
    }
    monkeypatch.setattr(check_kernels, "implementations", lambda *_: broken)
    found = check_kernels.check_attention(shape, jnp.float32, seconds=0.0)
    assert found["ours"]["error"] > 0.1
    assert "ZeroDivisionError" in found["raises"]["failed"]


def test_a_part_that_fails_does_not_stop_the_others(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", f"--workdir={tmp_path}"]
    command += [f"--json={tmp_path / 'all.json'}", "--parts=quickstart", "--parts=kernels"]
    command += ["--quickstart_option=--no_such_option", "--kernels_option=--batch_size=1"]
    command += ["--kernels_option=--shapes=decode_256_3", "--kernels_option=--seconds=0"]
    subprocess.run(command, check=True)
    found = json.loads((tmp_path / "all.json").read_text())
    assert "no_such_option" in found["quickstart"]["failed"]
    assert "failed" not in found["kernels"]
    assert found["kernels"]["decode_256_3 bfloat16"]["xla"]["error"] < 1e-2

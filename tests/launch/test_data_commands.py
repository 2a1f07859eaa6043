import io
import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_prepare_imagenet_from_folders(tmp_path):
    for name in ("n02", "n01"):
        (tmp_path / "train" / name).mkdir(parents=True)
        data = io.BytesIO()
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(data, "JPEG")
        (tmp_path / "train" / name / "0.jpg").write_bytes(data.getvalue())
    train, out = f"--train={tmp_path / 'train'}", f"--output={tmp_path / 'out'}"
    result = run("launch.prepare_imagenet", train, out)
    assert result.returncode == 0, result.stderr
    assert "train: 2 of 2 shards, 2 images" in result.stdout
    table = json.loads((tmp_path / "out" / "train" / "metadata.json").read_text())
    assert table["class_names"] == ["n01", "n02"]
    result = run("launch.prepare_imagenet", train + "x", out)
    assert result.returncode != 0 and "does not exist" in result.stderr


def test_benchmark_input_runs():
    result = run(
        "benchmarks.benchmark_input",
        "--num_workers=0",
        "--num_images=8",
        "--batch_size=4",
        "--num_batches=1",
        "--repeats=1",
        "--size=32",
        "--num_tokens_samples=2000",
    )
    assert result.returncode == 0, result.stderr
    rates = json.loads(result.stdout.splitlines()[-1])
    assert rates["var_jax"] > 0 and rates["cached tokens (a core)"] > 0

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image


def run(module, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        **options,
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


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("nowhere.tar", "nowhere.tar does not exist"),
        ("page.tar", "page.tar is a web page and no tar file"),
        ("cut.tar", "cut.tar is damaged or cut off"),
    ],
)
def test_prepare_imagenet_says_in_one_sentence_what_is_wrong(tmp_path, train, message):
    (tmp_path / "page.tar").write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    with tarfile.open(tmp_path / "cut.tar", "w") as tar:
        info = tarfile.TarInfo("n01.tar")
        info.size = 4000
        tar.addfile(info, io.BytesIO(bytes(4000)))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:2000])
    result = run(
        "launch.prepare_imagenet", f"--train={tmp_path / train}", f"--output={tmp_path / 'out'}"
    )
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ") and message in line


def test_prepare_imagenet_on_a_full_disk(tmp_path):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "train" / "ant" / "0.png")

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    arguments = [f"--train={tmp_path / 'train'}", f"--output={tmp_path / 'out'}"]
    result = run("launch.prepare_imagenet", *arguments, preexec_fn=small_disk)
    assert result.returncode == 2
    assert "cannot be written" in result.stderr and "Traceback" not in result.stderr
    assert [p.name for p in (tmp_path / "out" / "train").iterdir()] == ["settings.json"]
    assert run("launch.prepare_imagenet", *arguments).returncode == 0


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

"""A full disk or a quota while a command writes: the older output stays, one sentence says why."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]

RECONSTRUCT = """
import types
import numpy as np
from absl import flags
from launch import cli, reconstruct
from var_jax import build
from var_jax.checkpoint import files

class Copy:
    image_shape = (64, 64, 3)
    def apply(self, params, x, method):
        return x if method == "decode_tokens" else x

loaded = types.SimpleNamespace(module=Copy(), params={}, on=lambda mesh: loaded)
build.load_tokenizer = lambda path: loaded
files.inspect = lambda path: types.SimpleNamespace(metadata={"kind": "tokenizer"})
cli.run(reconstruct.main)
"""

WRITE = """
import sys
import numpy as np
from launch import cli
from var_jax.convert import safetensors_file
from var_jax.evaluation.generated.npz_images import ImageSpool, write_images
from var_jax.evaluation.generated.sampling_run import SampleFiles

images = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), np.uint8)

def main():
    what, path = sys.argv[1:]
    if what == "samples":
        files = SampleFiles(path, np.zeros(50, np.int32), {"seed": 0}, part_size=50)
        files.draw(lambda start, stop: [(images[start:stop], {})])
    elif what == "npz":
        write_images(path, [images], 50)
    elif what == "spool":
        with ImageSpool(path) as spool:
            spool.append(images)
            spool.finish()
    else:
        safetensors_file.write(path, {"w": images})

cli.run(lambda *words: main(), words=["what", "where"])
"""


def run(code, *arguments, blocks=64):
    """A program that may write `blocks` KiB to each file, as after `ulimit -f`."""
    limited = ["bash", "-c", f'ulimit -f {blocks} && exec "$@"', "bash"]
    return subprocess.run(
        [*limited, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"},
    )


def check_refused(done, folder, kept):
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: Could not write ") and "may not grow so large" in last
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    found = {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert found == kept, found.keys()


def test_reconstruct(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    np.save(tmp_path / "in.npy", images)
    output = tmp_path / "out" / "out.npz"
    flags = ["--checkpoint=x", f"--images={tmp_path / 'in.npy'}", f"--output={output}"]
    done = run(RECONSTRUCT, *flags, blocks=10_000)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(output)["images"], images)
    good = output.read_bytes()
    done = run(RECONSTRUCT, *flags)
    check_refused(done, output.parent, {output.relative_to(output.parent): good})


@pytest.mark.parametrize("what", ["npz", "spool", "safetensors"])
def test_writers(tmp_path, what):
    path = tmp_path / "out.bin"
    path.write_bytes(b"good")
    check_refused(run(WRITE, what, path), tmp_path, {path.relative_to(tmp_path): b"good"})


def test_parts_of_samples_that_are_there_stay(tmp_path):
    done = run(WRITE, "samples", tmp_path / "run")
    kept = tmp_path / "run" / "settings.json"
    check_refused(done, tmp_path / "run", {pathlib.Path("settings.json"): kept.read_bytes()})
    done = run(WRITE, "samples", tmp_path / "run", blocks=10_000)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "parts" / "000000.npy").exists()

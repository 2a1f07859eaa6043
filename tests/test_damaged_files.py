"""Files with bytes changed, cut off, doubled or missing: read right, or refused in a sentence.

VAR_JAX_FUZZ is the number of inputs of each kind; the default is small. The inputs follow from
their number alone, so a failure says which one to look at.
"""

import io
import json
import os
import pathlib
import shutil
import zipfile

import jax
import numpy as np
import pytest

from var_jax import checkpoint
from var_jax.checkpoint import Checkpointer, CheckpointError
from var_jax.convert import safetensors_file
from var_jax.convert.torch_file import open_state
from var_jax.evaluation.array_files import array_names, read_array
from var_jax.evaluation.generated.image_files import open_images

COUNT = int(os.environ.get("VAR_JAX_FUZZ", "60"))
TORCH_FILES = pathlib.Path(__file__).parent / "goldens" / "torch_files"
REFUSALS = (ValueError, FileNotFoundError, CheckpointError)


def damage(data, rng, end=None):
    """One change to `data`, before `end` where that is given."""
    end = len(data) if end is None else end
    kind = rng.choice(["flip", "flip", "byte", "cut", "drop", "double", "zero", "append", "joined"])
    at = int(rng.integers(end))
    size = int(rng.integers(1, 64))
    if kind == "flip":
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == "byte":
        return data[:at] + bytes([int(rng.choice([0, 1, 127, 255, 48, 57]))]) + data[at + 1 :]
    return {
        "cut": data[:at],
        "drop": data[:at] + data[at + size :],
        "double": data[: at + size] + data[at:],
        "zero": data[:at] + b"\0" * len(data[at : at + size]) + data[at + size :],
        "append": data + rng.bytes(size),
        "joined": data + data,
    }[kind]


def refused(read, number):
    """What `read` gives, or None where it refused in one sentence."""
    try:
        return read()
    except REFUSALS as error:
        message = str(error)
        assert message.endswith(".") and "\n" not in message, (number, message)
        return None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    rng = np.random.default_rng(0)
    arrays = {
        "arr_0": rng.integers(0, 256, (6, 8, 5, 3), np.uint8),
        "labels": np.arange(6),
        "mu": rng.normal(size=7),
        "sigma": np.asfortranarray(rng.normal(size=(7, 7))),
    }
    path = tmp_path / "a.npz"
    save(path, **arrays)
    data = path.read_bytes()
    for number in range(COUNT):
        path.write_bytes(damage(data, np.random.default_rng([1, number])))
        names = refused(lambda: array_names(path), number)
        for name in names or ():
            found = refused(lambda name=name: read_array(path, name), number)
            if found is not None:
                np.testing.assert_array_equal(found, arrays[name], err_msg=str(number))
        refused(lambda: open_images(path), number)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_headers_of_npy(tmp_path, dtype):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 5, 3)).astype(np.uint8)
    stored = images if dtype == np.uint8 else (images / 127.5 - 1).astype(dtype)
    path = tmp_path / "a.npy"
    np.save(path, stored)
    data = path.read_bytes()
    for number in range(COUNT):
        path.write_bytes(damage(data, np.random.default_rng([2, number]), end=128))
        found = refused(lambda: np.concatenate(list(open_images(path).batches(4))), number)
        if found is not None:
            np.testing.assert_array_equal(found, images, err_msg=str(number))


@pytest.mark.parametrize("name", ["bare", "nested", "compiled", "legacy"])
def test_pth(tmp_path, name):
    legacy = name == "legacy"
    data, path = (TORCH_FILES / f"{name}.pth").read_bytes(), tmp_path / "a.pth"

    def read(path=path):
        with open_state(path, legacy=legacy) as state:
            return {key: tensor.read().tobytes() for key, tensor in state.items()}

    expected = read(TORCH_FILES / f"{name}.pth")
    for number in range(COUNT):
        path.write_bytes(damage(data, np.random.default_rng([3, number])))
        found = refused(read, number)
        # The old format has no checksums, so what its bytes say is all there is.
        assert found is None or legacy or found == expected, number


def test_pickles_inside_pth(tmp_path):
    """Whatever the pickle says, in an archive that is whole."""
    with zipfile.ZipFile(TORCH_FILES / "nested.pth") as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    (main,) = (name for name in records if name.endswith("data.pkl"))
    path = tmp_path / "a.pth"

    def read():
        with open_state(path) as state:
            return [tensor.read() for tensor in state.values()]

    for number in range(COUNT):
        changed = damage(records[main], np.random.default_rng([4, number]))
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in records.items():
                archive.writestr(name, changed if name == main else data)
        refused(read, number)


def test_safetensors(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"layer.{i}": rng.normal(size=(i, 3)).astype(np.float32) for i in range(1, 5)}
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, arrays)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")

    def read():
        with open_state(path) as state:
            return {key: tensor.read() for key, tensor in state.items()}

    for number in range(COUNT):
        path.write_bytes(damage(data, np.random.default_rng([5, number]), end=header))
        for name, found in (refused(read, number) or {}).items():
            # Another name or type is noticed when the tensors are fitted to a model.
            if name in arrays and found.dtype == np.float32:
                np.testing.assert_array_equal(found, arrays[name], err_msg=str(number))


def test_indices_of_safetensors(tmp_path):
    arrays = {f"layer.{i}": np.arange(3, dtype=np.float32) + i for i in range(4)}
    for part in range(2):
        names = [f"layer.{2 * part}", f"layer.{2 * part + 1}"]
        file = tmp_path / f"model-0000{part + 1}-of-00002.safetensors"
        safetensors_file.write(file, {name: arrays[name] for name in names})
    index = tmp_path / "model.safetensors.index.json"
    places = {name: f"model-0000{i // 2 + 1}-of-00002.safetensors" for i, name in enumerate(arrays)}
    data = json.dumps({"weight_map": places}).encode()

    def read():
        with open_state(tmp_path) as state:
            return {key: tensor.read() for key, tensor in state.items()}

    for number in range(COUNT):
        index.write_bytes(damage(data, np.random.default_rng([6, number])))
        found = refused(read, number)
        assert found is None or found.keys() == arrays.keys(), number
        for name in found or ():
            np.testing.assert_array_equal(found[name], arrays[name], err_msg=str(number))


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A run of three steps, and the value of each."""
    folder = tmp_path_factory.mktemp("run")
    values = {}
    with Checkpointer(folder) as saver:
        for step in (1, 2, 3):
            rng = np.random.default_rng(step)
            values[step] = {
                "a": rng.normal(size=(64, 32)).astype(np.float32),
                "b": {"c": rng.integers(0, 9, 5)},
            }
            saver.save(step, {"params": jax.tree.map(jax.numpy.asarray, values[step])}, {"n": step})
    return folder, values


def test_checkpoints(tmp_path, steps):
    folder, values = steps
    for number in range(-(-COUNT // 4)):
        rng = np.random.default_rng([7, number])
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        for step in sorted(values)[-int(rng.integers(1, 4)) :]:
            _lose(copy / "checkpoints" / str(step), rng)

        def read(copy=copy):
            with Checkpointer(copy, read_only=True) as reader:
                return reader.restore_params(as_numpy=True)

        found = refused(read, number)
        if found is not None:
            params, metadata, step = found
            assert metadata["n"] == metadata["step"] == step, number
            jax.tree.map(np.testing.assert_array_equal, params, values[step])
        seen = refused(lambda copy=copy: checkpoint.inspect(copy), number)
        # What only looks at the files may find whole what cannot be read, never the reverse.
        assert found is None or (seen is not None and seen.step >= found[2]), number
        if seen is not None:
            assert seen.metadata["n"] == seen.step, number
        shutil.rmtree(copy)


def _lose(folder, rng):
    """Cuts or removes some of a step's files, as an interrupted copy does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kind = rng.choice(["cut", "cut", "empty", "gone", "folder gone", "rest gone"])
    if kind == "rest gone":  # the copy stopped in the middle, in some order
        order = rng.permutation(len(files))
        for i in order[int(rng.integers(len(files))) :]:
            files[i].unlink()
    elif kind == "folder gone":
        folders = sorted(path for path in folder.rglob("*") if path.is_dir())
        shutil.rmtree(folders[int(rng.integers(len(folders)))])
    else:
        for i in rng.choice(len(files), int(rng.integers(1, 3)), replace=False):
            size = files[i].stat().st_size
            if kind == "gone":
                files[i].unlink()
            else:
                os.truncate(files[i], 0 if kind == "empty" else int(rng.integers(max(size, 1))))


def test_the_damage_is_of_every_kind():
    """Otherwise the tests above would pass by doing nothing."""
    data = io.BytesIO(b"x" * 1000).getvalue()
    lengths = {len(damage(data, np.random.default_rng(i))) for i in range(200)}
    assert min(lengths) < 1000 < max(lengths) and 1000 in lengths and 2000 in lengths

"""Checkpoints in parts: by folder, index or part the same tensors, or a sentence."""

import json

import numpy as np
import pytest

from var_jax.convert import safetensors_file
from var_jax.convert.torch_file import open_state

ARRAYS = {f"layer{i}.weight": np.arange(6, dtype=np.float32) + i for i in range(4)}
PARTS = {
    "model-00001-of-00002.safetensors": ["layer0.weight", "layer2.weight"],
    "model-00002-of-00002.safetensors": ["layer1.weight", "layer3.weight"],
}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    for file, names in PARTS.items():
        safetensors_file.write(tmp_path / file, {name: ARRAYS[name] for name in names})
    write_index(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write_index(folder, **changes):
    names = {name: file for file, names in PARTS.items() for name in names} | changes
    names = {name: file for name, file in names.items() if file is not None}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def refused(path, *words):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        open_state(path)
    message = str(error.value)
    assert "\n" not in message and message.endswith("."), message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", ["", INDEX, *PARTS])
def test_folder_index_and_part_are_the_whole(folder, name):
    with open_state(str(folder / name)) as state:
        assert set(state) == set(ARRAYS)
        for key, array in ARRAYS.items():
            np.testing.assert_array_equal(state[key].read(), array)


def test_a_part_without_the_others_is_refused(folder):
    (folder / INDEX).rename(folder / "elsewhere.json")
    refused(folder / "model-00001-of-00002.safetensors", "part 1 of 2", "index")
    refused(folder, "2 files of weights", "model-00001-of-00002.safetensors")
    write_index(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    for name in ("", INDEX, "model-00001-of-00002.safetensors"):
        refused(folder / name, "1 are not beside it: model-00002-of-00002.safetensors")


def test_parts_that_do_not_belong_to_the_index_are_refused(folder):
    write_index(folder, extra="model-00001-of-00002.safetensors")
    refused(folder, "'extra' is not in it")
    write_index(folder, **{"layer3.weight": None})
    refused(folder, "'layer3.weight' is in it and not listed")
    write_index(folder, **{"layer3.weight": "model-00001-of-00002.safetensors"})
    refused(folder, "do not belong together")
    write_index(folder)
    cut = (folder / "model-00002-of-00002.safetensors").read_bytes()[:-1]
    (folder / "model-00002-of-00002.safetensors").write_bytes(cut)
    refused(folder, "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": []}']
)
def test_other_files_are_no_index(folder, text):
    (folder / INDEX).write_text(text)
    refused(folder / INDEX, "no index")
    refused(folder, "no index")


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "a\\b", "..", ""])
def test_an_index_names_files_beside_it_only(folder, file):
    write_index(folder, extra=file)
    refused(folder, "not beside it")


def test_folders_with_one_file_or_none(tmp_path):
    refused(tmp_path, "holds no files of weights")
    safetensors_file.write(tmp_path / "a.safetensors", ARRAYS)
    with open_state(tmp_path) as state:
        assert set(state) == set(ARRAYS)
    # A whole file is whole although it is named like a part.
    safetensors_file.write(tmp_path / "model-00001-of-00001.safetensors", ARRAYS)
    assert set(open_state(tmp_path / "model-00001-of-00001.safetensors")) == set(ARRAYS)
    refused(tmp_path, "2 files of weights")

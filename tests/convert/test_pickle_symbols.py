"""Objects beside the tensors of a PyTorch file: placeholders, or refused where they run code."""

import collections
import datetime
import functools
import pathlib
import pickle
import types

import numpy as np
import pytest
from pickles import refused, state_pickle, tensor, text, write_file

from var_jax.convert.torch_file import open_state


class Settings:
    """Of somebody's training code, which is not there when the file is read."""

    def __init__(self):
        self.rate = 1e-3


class Table(dict):
    """A dict of somebody's."""


def test_objects_that_are_no_tensors_are_placeholders(tmp_path):
    weights = b"\x8c\x01w" + tensor((4,), (1,)) + b"s"
    beside = {
        "settings": Settings(),
        "table": Table(a=1),
        "paths": [pathlib.Path("/data"), datetime.timedelta(3)],
        "best": np.float64(0.5),
        "curve": np.arange(3),
        "names": {"a", "b"},
        "frozen": frozenset({1}),
        "raw": b"bytes",
        "long": 10**400,
        "partial": functools.partial(sorted, reverse=True),
        "method": [].append,
        "kind": collections.OrderedDict,
        "default": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("aab"),
        "simple": types.SimpleNamespace(depth=16),
        Settings: 1,
        ("a", 2): 2,
        2.5: 3,
        "callbacks": {"Checkpoint{'dir': '../a/b'}": {"best": 1}},
    }
    for protocol in (2, 3, 4, 5):
        stored = pickle.dumps(beside, protocol)
        source = stored.removesuffix(b".")
        path = write_file(tmp_path / "f.pth", source + weights + b".")
        with open_state(path) as state:
            np.testing.assert_array_equal(state["w"].read(), np.arange(4))
            tree = state.tree
            assert tree["default"] == {"a": [1]} and tree["counter"] == {"a": 2, "b": 1}
            assert tree["simple"] == {"depth": 16} and tree["long"] == 10**400
            assert tree["settings"].name.endswith("Settings")
            assert tree["curve"].name.startswith("numpy.")


def test_a_whole_module_is_no_dict_of_tensors(tmp_path):
    path = write_file(tmp_path / "f.pth", pickle.dumps(Settings(), 2))
    refused(path, "Settings", "state_dict()", "nothing in it was run")


@pytest.mark.parametrize("name", ["posix system", "builtins exec", "builtins __import__"])
@pytest.mark.parametrize("depth", [0, 2])
def test_code_is_refused_beside_tensors_too(tmp_path, name, depth):
    module, attribute = name.split()
    call = b"c" + module.encode() + b"\n" + attribute.encode() + b"\n" + text("1") + b"\x85R"
    for _ in range(depth):
        call = b"}" + text("a") + call + b"s"
    path = write_file(tmp_path / "f.pth", state_pickle(w=tensor((4,), (1,)), x=call))
    refused(path, f"{module}.{attribute}", "nothing in it was run")


def test_tensors_of_subclasses_and_of_unknown_types(tmp_path):
    plain = tensor((4,), (1,))
    arguments = plain[len(b"ctorch._utils\n_rebuild_tensor_v2\n") : -1]  # without the call
    own = (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
        b"cmine\nTensor\n" + arguments + b"}tR"
    )
    quantized = tensor((4,), (1,), storage="torch\nQInt8Storage")
    path = write_file(tmp_path / "f.pth", state_pickle(own=own, quantized=quantized, w=plain))
    with open_state(path) as state:
        assert set(state) == {"own", "w"}
        np.testing.assert_array_equal(state["own"].read(), np.arange(4))

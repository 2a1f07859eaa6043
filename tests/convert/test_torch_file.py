import argparse
import io
import json
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from pickles import refused, state_pickle, tensor, text, write_file

from var_jax.convert import safetensors_file
from var_jax.convert.torch_file import open_state

FILES = pathlib.Path(__file__).parents[1] / "goldens" / "torch_files"


def expected():
    with np.load(FILES / "expected.npz") as values:
        return dict(values)


def assert_equals_expected(state):
    for name, stored in state.items():
        array = stored.read()
        assert array.dtype == stored.dtype and array.shape == stored.shape, name
        assert array.flags.c_contiguous, name
        np.testing.assert_array_equal(array.astype(np.float32), expected()[name], err_msg=name)


def test_bare_file_gives_the_expected_values():
    with open_state(FILES / "bare.pth") as state:
        assert set(state) == set(expected())
        assert list(state.groups()) == [""]
        assert state["bf16"].dtype == ml_dtypes.bfloat16
        assert state["half"].dtype == np.float16
        assert state["i64"].dtype == np.int64
        assert state["bool"].dtype == np.bool_
        assert state["scalar"].shape == ()
        assert_equals_expected(state)


def test_nested_file_has_the_trainers_groups_and_plain_values():
    with open_state(FILES / "nested.pth") as state:
        groups = state.groups()
        assert_equals_expected(groups["trainer.var_wo_ddp"])
        assert_equals_expected(groups["trainer.vae_local"])
        assert set(groups["trainer.var_wo_ddp"]) == set(expected())
        assert "trainer.var_wo_ddp.a.weight" in state
        assert state.tree["epoch"] == 3
        assert state.tree["trainer"]["config"]["patch_nums"] == (1, 2, 3)
        assert state.tree["args"] == {"depth": 2, "pn": "1_2_3", "none": None}


def test_compiled_file_loses_its_prefix():
    with open_state(FILES / "compiled.pth") as state:
        assert set(state) == set(expected())
        assert_equals_expected(state)


def test_legacy_file_is_refused_unless_asked_for():
    refused(FILES / "legacy.pth", "before version 1.6")
    with open_state(FILES / "legacy.pth", legacy=True) as state:
        assert set(state) == set(expected())
        assert_equals_expected(state)


def test_truncated_and_evil_files_are_refused(capfd):
    refused(FILES / "truncated.pth", "truncated")
    refused(FILES / "evil.pth", "__builtin__.print", "nothing in it was run")
    assert capfd.readouterr().out == ""


def test_truncated_legacy_file_is_refused(tmp_path):
    data = (FILES / "legacy.pth").read_bytes()
    for end in (40, 600, len(data) - 3):
        path = tmp_path / "cut.pth"
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match="."):
            open_state(path, legacy=True)


def test_missing_file_and_foreign_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        open_state(tmp_path / "none.pth")
    page = tmp_path / "page.pth"
    page.write_text("<html>not found</html>")
    refused(page, "neither")


@pytest.mark.parametrize(
    "source",
    [
        b"cos\nsystem\n" + text("true") + b"\x85R.",
        b"c__builtin__\neval\n" + text("1") + b"\x85R.",
        b"cnumpy.core.multiarray\n_reconstruct\n)R.",
        text("os") + text("system") + b"\x93" + text("true") + b"\x85R.",
        b"(" + text("true") + b"ios\nsystem\n.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}R.",
        b"ctorch\nload\n)R.",
    ],
)
def test_other_classes_are_refused(tmp_path, source):
    write_file(tmp_path / "f.pth", b"\x80\x04" + source)
    with pytest.raises(ValueError, match="nothing in it was run"):
        open_state(tmp_path / "f.pth")


@pytest.mark.parametrize(
    "name",
    [
        "module.a.b",
        "_orig_mod.module.a.b",
        "module._orig_mod.a._orig_mod.b",
        "_fsdp_wrapped_module.a._fsdp_wrapped_module._checkpoint_wrapped_module.b",
        "_forward_module._orig_mod.a.b",
        "a.module.b",
    ],
)
def test_segments_of_wrappers_are_removed(tmp_path, name):
    path = write_file(tmp_path / "f.pth", state_pickle(**{name: tensor((4,), (1,))}))
    with open_state(path) as state:
        assert list(state) == ["a.b"]
    two = {name: tensor((4,), (1,)), "a.b": tensor((4,), (1,))}
    refused(write_file(tmp_path / "f.pth", state_pickle(**two)), "'a.b' twice")


def test_flipped_bytes_are_noticed(tmp_path):
    values = np.random.default_rng(0).standard_normal(1000).astype("<f4")
    records = {"data/0": values.tobytes(), "version": b"3\n"}
    entries = {
        "all": tensor((1000,), (1,), numel=1000),
        "part": tensor((10,), (3,), offset=7, numel=1000),
    }
    path = write_file(tmp_path / "f.pth", state_pickle(**entries), records)
    data = path.read_bytes()
    start = data.find(values.tobytes())
    flipped = bytearray(data)
    flipped[start + 3000] ^= 4
    path.write_bytes(flipped)
    for name in entries:
        with open_state(path) as state, pytest.raises(ValueError, match="checksum is wrong"):
            state[name].read()
    flipped = bytearray(data)
    flipped[data.find(b"part") + 1] ^= 1  # a name
    path.write_bytes(flipped)
    refused(path, "damaged inside 'archive/data.pkl'")
    # PyTorch writes no checksums where it is told so.
    unsummed = data
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state_pickle(**entries))
        for name, record in records.items():
            archive.writestr(f"archive/{name}", record)
        for info in archive.infolist():
            info.CRC = 0
    with open_state(path) as state:
        np.testing.assert_array_equal(state["all"].read(), values)
    path.write_bytes(data + unsummed)
    refused(path, f"begins with {len(data)} bytes", "joined")


def test_namespace_becomes_a_dict(tmp_path):
    args = argparse.Namespace(depth=16, pn="1_2_3")
    path = write_file(tmp_path / "f.pth", pickle.dumps({"args": args, "best": [1, 2.5]}, 2))
    with open_state(path) as state:
        assert state.tree == {"args": {"depth": 16, "pn": "1_2_3"}, "best": [1, 2.5]}
        assert len(state) == 0


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        (tensor((10**12,), (1,)), "reaches element"),
        (tensor((10**12,), (0,)), "more than the whole file"),
        (tensor((10**12, 0), (1, 1), numel=10**12), "claims"),
        (tensor((4,), (1,), offset=1), "reaches element"),
        (tensor((4,), (1,), numel=4 * 10**9), "claims"),
        (tensor((-1,), (1,)), "size, stride or offset"),
        (tensor((4,), (-1,)), "size, stride or offset"),
        (tensor((1,) * 65, (1,) * 65), "65 sizes"),
        (tensor((2, 2), (1,)), "2 sizes"),
        (tensor((4,), (1,), key="../data.pkl"), "absent"),
        (tensor((4,), (1,), key="/etc/passwd"), "absent"),
    ],
)
def test_absurd_shapes_and_escaping_keys_are_refused(tmp_path, broken, word):
    path = write_file(tmp_path / "f.pth", state_pickle(w=broken))
    refused(path, word)


def test_escaping_names_are_refused(tmp_path):
    good = tensor((4,), (1,))
    for name in ("../../w", "/w", "a\\b", "a\nb"):
        refused(write_file(tmp_path / "f.pth", state_pickle(**{name: good})), "no parameter name")
    inside = {"data/0": b"\0" * 16, "../../outside": b"x"}
    refused(write_file(tmp_path / "f.pth", state_pickle(w=good), inside), "leaves the archive")


def test_zip_bombs_are_refused(tmp_path):
    good = tensor((4,), (1,))
    bomb = {"data/0": b"\0" * 10**6}
    path = write_file(tmp_path / "c.pth", state_pickle(w=good), bomb, zipfile.ZIP_DEFLATED)
    refused(path, "compressed")

    # Sizes in the index that the file does not have.
    path = write_file(tmp_path / "d.pth", state_pickle(w=good))
    data = bytearray(path.read_bytes())
    position = data.rfind(b"PK\x01\x02")
    data[position + 20 : position + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)
    refused(path, "claims")

    # Many index entries over the same bytes.
    path = write_file(tmp_path / "e.pth", state_pickle(w=good), {"data/0": b"\0" * 4000})
    data = path.read_bytes()
    position = data.rfind(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    entry = data[position:end]
    copies = b"".join(entry.replace(b"data/0", f"data/{digit}".encode()) for digit in "123456789")
    directory = data[data.find(b"PK\x01\x02") : end] + copies
    head = data[: data.find(b"PK\x01\x02")]
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 11, 11, len(directory), len(head), 0)
    path.write_bytes(head + directory + tail)
    refused(path, "claims", "records")


def test_pickles_that_unfold_without_end_are_refused(tmp_path):
    doubling = {}
    for _ in range(40):
        doubling = {"a": doubling, "b": doubling}
    refused(write_file(tmp_path / "f.pth", pickle.dumps(doubling, 2)), "unfolds")
    itself = {}
    itself["a"] = itself
    refused(write_file(tmp_path / "f.pth", pickle.dumps(itself, 2)), "nests")
    nested_tuple = b")q\x000" + b"h\x00h\x00\x86q\x000" * 200  # hashing it would never end
    source = b"\x80\x02}" + nested_tuple + b"h\x00Ns."
    refused(write_file(tmp_path / "f.pth", source), "key of type tuple")


def test_damaged_pickles_are_refused(tmp_path):
    good = state_pickle(w=tensor((4,), (1,)))
    for end in range(0, len(good), 7):
        refused(write_file(tmp_path / "f.pth", good[:end]))


def test_shared_storages_and_strided_views(tmp_path):
    values = np.arange(24, dtype="<f4")
    path = write_file(
        tmp_path / "f.pth",
        state_pickle(
            all=tensor((4, 6), (6, 1), numel=24),
            transposed=tensor((6, 4), (1, 6), numel=24),
            column=tensor((4,), (6,), offset=2, numel=24),
            repeated=tensor((3, 4), (0, 1), numel=24),
        ),
        {"data/0": values.tobytes()},
    )
    with open_state(path) as state:
        grid = values.reshape(4, 6)
        np.testing.assert_array_equal(state["all"].read(), grid)
        np.testing.assert_array_equal(state["transposed"].read(), grid.T)
        np.testing.assert_array_equal(state["column"].read(), grid[:, 2])
        np.testing.assert_array_equal(state["repeated"].read(), np.tile(values[:4], (3, 1)))


def test_safetensors_round_trip_and_the_package_agrees(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "w.safetensors"
    with open_state(FILES / "bare.pth") as state:
        safetensors_file.write(path, state, {"format": "pt"})
    with open_state(path) as state:
        assert set(state) == set(expected())
        assert state["bf16"].dtype == ml_dtypes.bfloat16
        assert state.tree["__metadata__"] == {"format": "pt"}
        assert_equals_expected(state)
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(True)}
    safetensors.save_file(arrays, tmp_path / "p.safetensors")
    with open_state(tmp_path / "p.safetensors") as state:
        np.testing.assert_array_equal(state["a"].read(), arrays["a"])
    safetensors_file.write(tmp_path / "q.safetensors", arrays)
    loaded = safetensors.load_file(tmp_path / "q.safetensors")
    np.testing.assert_array_equal(loaded["a"], arrays["a"])
    np.testing.assert_array_equal(loaded["n"], arrays["n"])


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}',
        '{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}',
        '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}',
        '{"dtype":"F99","shape":[1],"data_offsets":[0,4]}',
        "[]",
    ],
)
def test_damaged_safetensors_headers_are_refused(tmp_path, entry):
    header = f'{{"w":{entry}}}'.encode()
    stream = io.BytesIO()
    stream.write(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    path = tmp_path / "w.safetensors"
    path.write_bytes(stream.getvalue())
    refused(path, "describes 'w'")


@pytest.mark.parametrize(
    "header, data, words",
    [
        ({"w": [0, 4]}, 8, "goes on at 8 where 4"),
        ({"w": [4, 8]}, 8, "goes on at 4 where 0"),
        ({"v": [0, 4], "w": [0, 4]}, 4, "goes on at 0 where 4"),
        ({"v": [0, 4], "w": [8, 12]}, 12, "goes on at 8 where 4"),
    ],
)
def test_safetensors_data_without_a_name_is_refused(tmp_path, header, data, words):
    entries = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": place}
        for name, place in header.items()
    }
    encoded = json.dumps(entries).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"\0" * data)
    refused(path, words)


def test_a_safetensors_name_that_stands_twice_is_refused(tmp_path):
    entry = '"w":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    encoded = ("{" + entry % (0, 4) + "," + entry % (4, 8) + "}").encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"\0" * 8)
    refused(path, "stands there twice")

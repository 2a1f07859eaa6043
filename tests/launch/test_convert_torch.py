"""Official files -> checkpoint -> official files; what the commands refuse."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from goldens.fill import load_state

from launch import convert_torch, inspect_checkpoint, offline
from var_jax import build
from var_jax.convert import mapping, safetensors_file
from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.torch_file import open_state

ROOT = pathlib.Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"


def run(module, *argv):
    offline.run(module.make_parser(), module.main, [str(a) for a in argv])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The official files of golden case b, as safetensors, and the states in them."""
    folder = tmp_path_factory.mktemp("files")
    states = {name: load_state(GOLDENS / "b" / f"{name}_layout.json") for name in ("vae", "var")}
    for name, state in states.items():
        safetensors_file.write(folder / f"{name}.safetensors", state)
    return folder, states


@pytest.fixture(scope="module")
def imported(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("imported") / "model"
    run(
        convert_torch, "import", "--vae", files[0] / "vae.safetensors",
        "--transformer", files[0] / "var.safetensors",
        "--patch_nums", "1,2,4", "--output", output,
    )  # fmt: skip
    return output


def test_import_is_an_ordinary_checkpoint(files, imported):
    loaded = build.load_transformer(imported)
    assert (loaded.var.depth, loaded.var.shared_adaln, loaded.step) == (3, True, 0)
    assert loaded.tokenizer.module.image_shape == (64, 64, 3)
    params = mapping.flatten(loaded.params)
    expected = files[1]["var"]["blocks.2.ffn.fc1.weight"].T
    np.testing.assert_array_equal(params["transformer/blocks/mlp/up/kernel"][2], expected)


def test_export_returns_every_parameter(files, imported, tmp_path, capsys):
    run(convert_torch, "export", "--checkpoint", imported, "--output", tmp_path)
    paths = {"vae": "vae_ch32v64z16", "var": "var_d3"}
    for kind, name in paths.items():
        original = files[1][kind]
        with open_state(tmp_path / f"{name}.safetensors") as state:
            assert state.keys() == original.keys()
            for key, tensor in state.items():
                assert tensor.shape == original[key].shape, key
                # The golden files hold noise in place of these two buffers.
                if key not in ("lvl_1L", "attn_bias_for_masking"):
                    np.testing.assert_array_equal(tensor.read(), original[key], key)


def test_export_writes_pth_where_torch_is_installed(files, imported, tmp_path):
    torch = pytest.importorskip("torch")
    run(convert_torch, "export", "--checkpoint", imported, "--output", tmp_path)
    state = torch.load(tmp_path / "var_d3.pth")
    assert state["lvl_1L"].dtype == torch.int64
    assert state.keys() == files[1]["var"].keys()
    expected = files[1]["var"]["blocks.1.attn.mat_qkv.weight"]
    np.testing.assert_array_equal(state["blocks.1.attn.mat_qkv.weight"].numpy(), expected)


def test_a_tokenizer_alone_then_a_transformer_beside_it(files, tmp_path, capsys):
    vae, var = files[0] / "vae.safetensors", files[0] / "var.safetensors"
    tokenizer, output = tmp_path / "tokenizer", tmp_path / "model"
    run(convert_torch, "import", "--vae", vae, "--patch_nums", "1,2,4", "--output", tokenizer)
    run(
        convert_torch, "import", "--transformer", var, "--tokenizer", tokenizer,
        "--patch_nums", "1,2,4", "--output", output,
    )  # fmt: skip
    assert build.load_transformer(output).tokenizer.fingerprint == (
        build.load_tokenizer(tokenizer).fingerprint
    )
    capsys.readouterr()
    run(inspect_checkpoint, output)
    text = capsys.readouterr().out
    assert "transformer" in text and build.load_tokenizer(tokenizer).fingerprint in text
    assert "parameters      1,653,568" in text and '"num_classes": 7' in text
    run(inspect_checkpoint, var, "--arrays")
    text = capsys.readouterr().out
    assert "kind: transformer" in text and "blocks.2.ada_gss  [1, 1, 6, 192]  float32" in text


def test_another_tokenizer_is_refused(files, imported, tmp_path):
    changed = dict(files[1]["vae"])
    changed["quant_conv.bias"] = changed["quant_conv.bias"] + 1
    safetensors_file.write(tmp_path / "other.safetensors", changed)
    run(
        convert_torch, "import", "--vae", tmp_path / "other.safetensors",
        "--patch_nums", "1,2,4", "--output", tmp_path / "other",
    )  # fmt: skip
    with pytest.raises(ValueError, match="is not the one"):
        build.load_transformer(imported, tmp_path / "other")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--vae", "{vae}"], "3 levels, which no published pyramid has"),
        ([], "Nothing to import"),
        (["--transformer", "{var}"], "either --vae"),
        (["--transformer", "{var}", "--vae", "{vae}"], "21 tokens in 3 levels"),
        (["--transformer", "{vae}", "--vae", "{vae}"], "holds no official transformer"),
        (["--transformer", "{var}", "--vae", "{small}", "--patch_nums", "1,2,4"], "has 32 codes"),
        (["--vae", "{torch_files}/evil.pth"], "nothing in it was run"),
        (["--vae", "{torch_files}/legacy.pth"], "before version 1.6"),
        (["--vae", "/nowhere/vae.pth"], "There is no file"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(files, tmp_path, capsys, arguments, message):
    folder, states = files
    small = {**states["vae"], "quantize.embedding.weight": np.zeros((32, 16), np.float32)}
    safetensors_file.write(tmp_path / "small.safetensors", small)
    places = {
        "vae": folder / "vae.safetensors",
        "var": folder / "var.safetensors",
        "small": tmp_path / "small.safetensors",
        "torch_files": GOLDENS / "torch_files",
    }
    arguments = [a.format(**places) for a in arguments]
    with pytest.raises(SystemExit) as stop:
        run(convert_torch, "import", *arguments, "--output", tmp_path / "out")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("Error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_occupied_output_is_refused(files, imported, capsys):
    with pytest.raises(SystemExit):
        run(
            convert_torch, "import", "--vae", files[0] / "vae.safetensors",
            "--patch_nums", "1,2,4", "--output", imported,
        )  # fmt: skip
    assert "There is a checkpoint" in capsys.readouterr().err


PEAK = """
import resource, sys
from launch import convert_torch
from var_jax import build
from etils import epath
from var_jax.convert import official
import jax, orbax.checkpoint
jax.devices()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, _, params = official.read_transformer(sys.argv[1])
convert_torch.save(epath.Path(sys.argv[2]), params, {"kind": "transformer"})
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024)
"""


def test_import_needs_little_more_memory_than_the_file(tmp_path):
    # The width of d16 in fewer blocks; random numbers, because zeros would compress.
    layout = json.loads((GOLDENS / "official" / "var_d16.json").read_text())
    keep = {name: s for name, s in layout if not name.startswith("blocks.")}
    few = tuple(f"blocks.{i}." for i in range(4))
    keep |= {name: s for name, s in layout if name.startswith(few)}
    rng = np.random.default_rng(0)

    def random(shape):
        return LazyTensor(
            tuple(shape), np.dtype(np.float32), lambda: rng.standard_normal(shape, np.float32)
        )

    path = tmp_path / "var.safetensors"
    safetensors_file.write(path, {name: random(shape) for name, shape in keep.items()})
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(tmp_path / "out")],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Above the parameters: one tensor, what is being written, and what tracing takes, whatever
    # the size of the file. Orbax alone would need 3 times the file.
    assert int(done.stdout.splitlines()[-1]) < path.stat().st_size + 350 * 2**20

"""Official files -> checkpoint -> official files; what the commands refuse."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import import_command
from goldens.fill import load_state

import var_jax
from var_jax import build
from var_jax.build.official_files import export_files, import_files
from var_jax.checkpoint import CheckpointError
from var_jax.convert import mapping, safetensors_file
from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.torch_file import open_state

ROOT = pathlib.Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"


inspect_checkpoint = import_command("launch.inspect_checkpoint")
PATCH_NUMS = (1, 2, 4)


def run(*argv):
    """A command in its own process: (exit status, what it prints, its errors)."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, argv)], capture_output=True, text=True, cwd=ROOT,
        env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def describe(path, arrays=False):
    return "\n".join(inspect_checkpoint.lines(str(path), arrays))


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
    vae, var = files[0] / "vae.safetensors", files[0] / "var.safetensors"
    import_files(output, vae=vae, transformer=var, patch_nums=PATCH_NUMS)
    return output


def test_official_files_load_by_path_as_the_checkpoint_made_of_them(files, imported):
    vae, var = (files[0] / f"{name}.safetensors" for name in ("vae", "var"))
    model = var_jax.load(var, vae, patch_nums=PATCH_NUMS)
    expected = var_jax.load(imported)
    alone = var_jax.load(vae, patch_nums=PATCH_NUMS)
    assert model.transformer.network == expected.transformer.network
    for found in (model.tokenizer, alone.tokenizer):
        assert found.module == expected.tokenizer.module
        jax.tree.map(np.testing.assert_array_equal, found.params, expected.tokenizer.params)
    jax.tree.map(
        np.testing.assert_array_equal, model.transformer.params, expected.transformer.params
    )
    assert model.sample([3, 1], seed=2, cfg=1.5).shape == (2, 64, 64, 3)


def test_import_is_an_ordinary_checkpoint(files, imported):
    loaded = build.load_transformer(imported)
    var = loaded.network.transformer
    assert (var.depth, var.shared_adaln, loaded.step) == (3, True, 0)
    assert loaded.tokenizer.module.image_shape == (64, 64, 3)
    params = mapping.flatten(loaded.params)
    expected = files[1]["var"]["blocks.2.ffn.fc1.weight"].T
    np.testing.assert_array_equal(params["transformer/blocks/mlp/up/kernel"][2], expected)


def test_export_returns_every_parameter(files, imported, tmp_path):
    export_files(imported, tmp_path)
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
    export_files(imported, tmp_path)
    state = torch.load(tmp_path / "var_d3.pth")
    assert state["lvl_1L"].dtype == torch.int64
    assert state.keys() == files[1]["var"].keys()
    expected = files[1]["var"]["blocks.1.attn.mat_qkv.weight"]
    np.testing.assert_array_equal(state["blocks.1.attn.mat_qkv.weight"].numpy(), expected)


def test_a_tokenizer_alone_then_a_transformer_beside_it(files, tmp_path):
    vae, var = files[0] / "vae.safetensors", files[0] / "var.safetensors"
    tokenizer, output = tmp_path / "tokenizer", tmp_path / "model"
    import_files(tokenizer, vae=vae, patch_nums=PATCH_NUMS)
    import_files(output, transformer=var, tokenizer=tokenizer, patch_nums=PATCH_NUMS)
    assert build.load_transformer(output).tokenizer.fingerprint == (
        build.load_tokenizer(tokenizer).fingerprint
    )
    text = describe(output)
    assert "transformer" in text and build.load_tokenizer(tokenizer).fingerprint in text
    assert "parameters      1,653,568" in text and '"num_classes": 7' in text
    text = describe(var, arrays=True)
    assert "kind: transformer" in text and "blocks.2.ada_gss  [1, 1, 6, 192]  float32" in text


def test_another_tokenizer_is_refused(files, imported, tmp_path):
    changed = dict(files[1]["vae"])
    changed["quant_conv.bias"] = changed["quant_conv.bias"] + 1
    safetensors_file.write(tmp_path / "other.safetensors", changed)
    other = tmp_path / "other.safetensors"
    import_files(tmp_path / "other", vae=other, patch_nums=PATCH_NUMS)
    with pytest.raises(ValueError, match="is not the one"):
        build.load_transformer(imported, tmp_path / "other")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"vae": "{vae}"}, "3 levels, which no published pyramid has"),
        ({}, "Nothing to import"),
        ({"transformer": "{var}"}, "either --vae"),
        ({"transformer": "{var}", "vae": "{vae}"}, "21 tokens in 3 levels"),
        ({"transformer": "{vae}", "vae": "{vae}"}, "holds no official transformer"),
        ({"transformer": "{var}", "vae": "{small}", "patch_nums": PATCH_NUMS}, "has 32 codes"),
        ({"vae": "{torch_files}/evil.pth"}, "nothing in it was run"),
        ({"vae": "{torch_files}/legacy.pth"}, "before version 1.6"),
        ({"vae": "/nowhere/vae.pth"}, "There is no file"),
        ({"vae": "{vae}", "group": "ema", "patch_nums": PATCH_NUMS}, "the top, and 0 are in 'ema'"),
        ({"vae": "{nan}", "patch_nums": PATCH_NUMS}, "'quant_conv.bias' with values that are no"),
        ({"vae": "{whole}", "patch_nums": PATCH_NUMS}, "quant_conv.bias is of int32"),
        # The transformer is read when the tokenizer has been written; it goes again.
        (
            {"transformer": "{nan_var}", "vae": "{vae}", "patch_nums": PATCH_NUMS},
            "'head.bias' with",
        ),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(files, tmp_path, arguments, message):
    folder, states = files
    small = {**states["vae"], "quantize.embedding.weight": np.zeros((32, 16), np.float32)}
    safetensors_file.write(tmp_path / "small.safetensors", small)
    places = {
        "vae": folder / "vae.safetensors",
        "var": folder / "var.safetensors",
        "small": tmp_path / "small.safetensors",
        "torch_files": GOLDENS / "torch_files",
    }
    bias = states["vae"]["quant_conv.bias"]
    for name, kind, changes in (
        ("nan", "vae", {"quant_conv.bias": np.full_like(bias, np.nan)}),
        ("whole", "vae", {"quant_conv.bias": bias.astype(np.int32)}),
        ("nan_var", "var", {"head.bias": np.full_like(states["var"]["head.bias"], np.inf)}),
    ):
        places[name] = tmp_path / f"{name}.safetensors"
        safetensors_file.write(places[name], {**states[kind], **changes})
    arguments = {k: v.format(**places) if "{" in v else v for k, v in arguments.items()}
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        import_files(tmp_path / "out", **arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_occupied_output_is_refused(files, imported):
    with pytest.raises(ValueError, match="There is a checkpoint"):
        import_files(imported, vae=files[0] / "vae.safetensors", patch_nums=PATCH_NUMS)


def test_a_file_of_several_groups_takes_one(files, tmp_path):
    """Lightning's names, model and ema in one file, wrappers inside the names."""
    folder, states = files
    vae = {f"vae.{n}": x for n, x in states["vae"].items()}
    inner = (".attn", "._checkpoint_wrapped_module.attn")
    var = {
        f"model.var._fsdp_wrapped_module.{n.replace(*inner)}": x for n, x in states["var"].items()
    }
    ema = {n.replace("model.var", "ema.var"): x + 1 for n, x in var.items() if x.dtype.kind == "f"}
    ema |= {n.replace("model.var", "ema.var"): x for n, x in var.items() if x.dtype.kind != "f"}
    path = tmp_path / "all.safetensors"
    safetensors_file.write(path, {**vae, **var, **ema})
    text = describe(path)
    for name in (
        "transformer, under model.var",
        "transformer, under ema.var",
        "tokenizer, under vae",
    ):
        assert name in text
    both = dict(vae=path, transformer=path, patch_nums=PATCH_NUMS)
    with pytest.raises(ValueError, match=r"2 dicts .*: ema.var, model.var; .* \(--group\)"):
        import_files(tmp_path / "none", **both)
    for group, shift in (("model", 0), ("ema.var", 1)):
        import_files(tmp_path / group, group=group, **both)
        params = mapping.flatten(build.load_transformer(tmp_path / group).params)
        expected = states["var"]["blocks.2.ffn.fc1.weight"].T + shift
        np.testing.assert_array_equal(params["transformer/blocks/mlp/up/kernel"][2], expected)


def test_a_damaged_step_is_named_and_the_last_whole_one_taken(imported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(imported, copy)
    shutil.copytree(copy / "checkpoints" / "0", copy / "checkpoints" / "7")
    (copy / "checkpoints" / "7" / "state" / "manifest.ocdbt").unlink()
    text = describe(copy)
    assert "damaged         step 7: the file state/manifest.ocdbt is missing." in text
    assert "step            0 of 0, 7" in text
    export_files(copy, tmp_path / "exported")
    export_files(imported, tmp_path / "expected")
    for file in (tmp_path / "expected").iterdir():
        assert (tmp_path / "exported" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(copy / "checkpoints" / "0")
    for read in (describe, lambda path: export_files(path, tmp_path / "none")):
        with pytest.raises(CheckpointError, match=r"None of the checkpoints \[7\] .*manifest"):
            read(copy)
    assert not (tmp_path / "none").exists()


def test_the_commands(files, tmp_path):
    """Flags before and after the words, one sentence for what is wrong, no accelerator asked."""
    vae, out = files[0] / "vae.safetensors", tmp_path / "out"
    status, printed, _ = run(
        "launch.convert_torch", "import", "--vae", vae, f"--output={out}", "--patch_nums=1,2,4"
    )
    assert status == 0 and f"parameters to {out}" in printed
    status, printed, _ = run("launch.inspect_checkpoint", "--arrays", out)
    assert status == 0 and "params/tokenizer/codec/codebook  [64, 16]" in printed
    for arguments, words in (
        (["launch.inspect_checkpoint", tmp_path / "none"], "There is no"),
        (["launch.convert_torch", "import", f"--output={out}"], "Nothing to import"),
        (["launch.convert_torch", "export", f"--output={out}"], "export needs --checkpoint"),
    ):
        status, _, error = run(*arguments)
        assert status == 2, error
        last = error.splitlines()[-1]
        assert last.startswith("Error: ") and words in last and "Traceback" not in error


def test_levels_in_words():
    command = import_command("launch.convert_torch")
    assert command.parse_patch_nums("1,2,3") == command.parse_patch_nums("1_2_3") == (1, 2, 3)
    for text in ("1,x", "", "0,1", "1;2"):
        with pytest.raises(ValueError, match="--patch_nums takes side lengths"):
            command.parse_patch_nums(text)


PEAK = """
import resource, sys
from var_jax.build import official_files
from etils import epath
from var_jax.convert import official
import jax, orbax.checkpoint
jax.devices()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, params = official.read_network(sys.argv[1])
official_files.save(epath.Path(sys.argv[2]), params, {"kind": "transformer"})
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
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Above the parameters: one tensor, what is being written, and what tracing takes, whatever
    # the size of the file. Orbax alone would need 3 times the file.
    assert int(done.stdout.splitlines()[-1]) < path.stat().st_size + 350 * 2**20

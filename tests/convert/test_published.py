"""Files of HMAR, FlexVAR and Infinity: all names have a place, and what is read is the golden's."""

import functools
import json
import pathlib

import family.flexvar
import family.hmar
import jax
import numpy as np
import pytest
from family.case import Case, lazy_state
from goldens.fill import fill
from ml_collections import ConfigDict

import var_jax
from var_jax import build
from var_jax.build import official_files
from var_jax.convert import official, safetensors_file
from var_jax.convert.config import tokenizer_config

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
TOKENIZERS = GOLDENS / "published_tokenizers"
ZEROS = np.zeros((2, 3), np.float32)


def case_of(name):
    return Case(GOLDENS / "family" / name)


def whole(case, layout="layout"):
    """The state dict of a case with all of its names, those that hold nothing to learn too."""
    named = json.loads((case.folder / f"{layout}.json").read_text())
    return {name: np.zeros(shape, np.float32) for name, shape in named} | case.state(layout)


def write(path, state):
    safetensors_file.write(path, state)
    return str(path)


@pytest.fixture(scope="module", params=["hmar", pytest.param("flexvar", marks=pytest.mark.slow)])
def imported(request, tmp_path_factory):
    """(case, the module that checks it, network and parameters read from a file)."""
    case = case_of(request.param)
    path = write(tmp_path_factory.mktemp("file") / "model.safetensors", whole(case))
    levels = case.config.get("pn") or next(iter(case.config["schedules"].values()))
    shape = official.describe_transformer(path, levels)
    assert shape.patch_nums == tuple(levels) and shape.depth == case.config["depth"]
    checks = {"hmar": family.hmar, "flexvar": family.flexvar}[request.param]
    return case, checks, *official.read_network(path, levels)


def test_the_imported_network_gives_the_golden_logits_and_tokens(imported, monkeypatch):
    case, checks, network, params = imported
    _, expected_params, _ = checks.network(case)
    # The import has the next-scale stage alone.
    expected_params = {name: expected_params[name] for name in params}
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)
    monkeypatch.setattr(checks, "network", lambda case: (network, params, None))
    checks.CHECKS["logits"](case)
    checks.CHECKS["greedy"](case)


def bad(name, **changes):
    """The state dict of a case with changes; None removes a name."""
    state = whole(case_of(name)) | {k.replace("__", "."): v for k, v in changes.items()}
    return {k: v for k, v in state.items() if v is not None}


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("hmar", {"ns_blocks__1__attn__proj__bias": None}, "missing: ns_blocks.1.attn.proj.bias"),
        ("hmar", {"base_blocks__0__ffn__fc1__bias": None}, "missing: base_blocks.0.ffn.fc1.bias"),
        ("hmar", {"word_embed_bias": None}, "missing: word_embed_bias"),
        ("hmar", {"ns_head__scale": ZEROS}, r"unexpected: ns_head.scale \[2, 3\]"),
        ("flexvar", {"blocks__1__attn__q_bias": None}, "missing: blocks.1.attn.q_bias"),
        ("flexvar", {"lvl_embed__weight": ZEROS}, "unexpected: lvl_embed.weight"),
    ],
)
def test_what_does_not_fit_is_named_as_in_the_file(tmp_path, name, change, message):
    path = write(tmp_path / "model.safetensors", bad(name, **change))
    with pytest.raises(ValueError, match=message):
        official.describe_transformer(path, (1, 2, 3, 4))


def test_the_masked_stage_of_hmar_is_left_out():
    tensors = lazy_state(whole(case_of("hmar")))
    layout = official.layout_of("transformer", tensors)
    shape = layout.infer(tensors, (1, 2, 3, 4))
    slots = layout.slots(layout.build(shape, tensors), tensors)
    left = {name.split(".")[0] for name in set(tensors) - set(slots)}
    assert left >= {"mask_blocks", "mask_head", "mask_head_nm", "mask_embed"}
    assert {"base_blocks", "ns_blocks", "ns_head"} <= {name.split(".")[0] for name in slots}


def tokenizer_state(name):
    """The state dict of a tokenizer's golden, with what holds nothing to learn."""
    layout = json.loads((TOKENIZERS / name / "layout.json").read_text())
    return {
        n: np.arange(6) if n.endswith(".mask") else fill(n, tuple(shape)) for n, shape in layout
    }


@pytest.fixture(scope="module", params=[("flexvar", (1, 2, 3, 4)), ("infinity", (1, 2, 4))])
def tokenizer(request, tmp_path_factory):
    """(name, its file, levels, module and parameters, outputs of its public code)."""
    name, levels = request.param
    path = tmp_path_factory.mktemp("tokenizer") / "model.safetensors"
    # As a trainer's file has it, beside another model.
    state = {f"vae.{n}": x for n, x in tokenizer_state(name).items()}
    path = write(path, state | {"discriminator.weight": ZEROS})
    outputs = dict(np.load(TOKENIZERS / name / "outputs.npz"))
    return name, path, levels, *official.read_tokenizer(path, levels), outputs


def close(actual, expected):
    expected = expected.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_an_imported_tokenizer_gives_the_tokens_and_pictures_of_its_code(tokenizer):
    name, _, _, module, params, outputs = tokenizer
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)

    @jax.jit
    def run(params, images):
        apply = functools.partial(module.apply, {"params": params})
        features = apply(images, method="features")
        tokens = apply(images, method="encode")
        return features, tokens, apply(tokens, method="decode_tokens")

    features, tokens, pictures = run(params, images.transpose(0, 2, 3, 1))
    close(features, outputs["features"])
    np.testing.assert_array_equal(tokens, outputs["tokens" if name == "flexvar" else "bits"])
    close(pictures[:1], np.clip(outputs["decoded"], -1, 1))


def test_build_makes_the_same_tokenizer_from_the_config(tokenizer):
    module = tokenizer[3]
    config = ConfigDict(json.loads(json.dumps(tokenizer_config(module))))
    assert build.tokenizer(config) == module


def test_the_official_code_has_no_such_tokenizer(tokenizer):
    with pytest.raises(ValueError, match="residual codes only"):
        official.tokenizer_tensors(*tokenizer[3:5])


def test_a_tokenizer_loads_by_path_and_is_described(tokenizer):
    name, path, levels, module, params, _ = tokenizer
    model = var_jax.load(path, patch_nums=levels)
    tokens = model.encode(np.zeros((1, 64, 64, 3), np.uint8))
    assert tokens.shape[:2] == (1, sum(n * n for n in levels))
    with official.open_state(path) as state:
        (group,) = state.groups().values()
        lines = official.describe(group, path)
    learned = sum(x.size for x in jax.tree.leaves(params))
    beside = 0 if name == "flexvar" else 2 * (6 * 6 + 6)
    assert lines[0] == "kind: tokenizer, under vae"
    assert lines[1] == f"parameters: {learned - beside:,}"
    assert "multipliers: " + str(module.multipliers) in lines


@pytest.mark.slow
def test_a_model_of_flexvar_is_imported_and_drawn_from(tmp_path):
    case, levels = case_of("flexvar"), (1, 2, 3, 4)
    files = {
        "vae": write(tmp_path / "vae.safetensors", tokenizer_state("flexvar")),
        "transformer": write(tmp_path / "model.safetensors", whole(case)),
    }
    official_files.import_files(tmp_path / "model", **files, patch_nums=levels)
    loaded = build.load_transformer(tmp_path / "model")
    assert build.network(loaded.config) == loaded.network
    assert loaded.config.sampling.cfg_schedule == "ten_steps"
    model = var_jax.load(tmp_path / "model")
    direct = var_jax.load(files["transformer"], files["vae"], patch_nums=levels)
    for ours, theirs in (
        (model.transformer.params, direct.transformer.params),
        (model.tokenizer.params, direct.tokenizer.params),
    ):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert model.sample([3], seed=0, patch_nums=(1, 2, 4)).shape == (1, 64, 64, 3)

"""Infinity's transformers: from official files and a text encoder to pictures of a prompt."""

import json
import pathlib

import family.infinity
import jax
import numpy as np
import pytest
import t5_folder
from family.case import Case
from ml_collections import ConfigDict
from small_network import filled
from test_published import tokenizer_state, write

import var_jax
from var_jax import aspect_ratios, build
from var_jax.build import official_files
from var_jax.convert import infinity_text, mapping, official
from var_jax.convert.config import transformer_config
from var_jax.convert.infinity_text import TextTransformerShape
from var_jax.plan.flops import num_parameters

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
LEVELS = (1, 2, 4)


def their_names(network, params, chunk):
    """Our parameters as a file has them: blocks in chunks, keys and values in one."""
    slots = mapping.expand(infinity_text.ROWS, params)
    flat = mapping.flatten(params)
    state = {name: slot.to_theirs(flat[slot.path]) for name, slot in slots.items()}
    for name in [name for name in state if name.endswith(".ca.mat_k.weight")]:
        values = state.pop(name.replace("mat_k", "mat_v"))
        state[name.replace("mat_k", "mat_kv")] = np.concatenate([state.pop(name), values])
        state[name.replace("mat_k.weight", "zero_k_bias")] = np.zeros(len(values), np.float32)
    found = {}
    for name, x in state.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            i, j = divmod(int(number), chunk)
            name = f"block_chunks.{i}.module.{j}.{rest}"
        found[name] = x
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(transformer, tokenizer, text encoder; the transformer's network and parameters)."""
    folder = tmp_path_factory.mktemp("infinity")
    state = {f"vae.{name}": x for name, x in tokenizer_state("infinity").items()}
    tokenizer = write(folder / "vae.safetensors", state)
    bits = official.read_tokenizer(tokenizer, LEVELS)[0].codec.code_dim
    shape = TextTransformerShape(
        *(4, 32, 2, 2.0, True, True, 1, bits, 2, LEVELS),
        feature_dim=16,
        max_length=6,
        pool_head_dim=8,
        num_levels=15,
    )
    network = infinity_text.TRANSFORMER.build(shape, {})
    params = jax.device_get(filled(network.init_params, 0))
    transformer = write(folder / "infinity.safetensors", their_names(network, params, 2))
    encoder = str(t5_folder.write(folder / "t5"))
    return transformer, tokenizer, encoder, network, params


def test_all_names_have_a_place(files):
    transformer, _, _, network, params = files
    assert official.describe_transformer(transformer, LEVELS).depth == 4
    found, read = official.read_network(transformer, LEVELS)
    assert found == network
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert official.describe_transformer(transformer).patch_nums[-1] == 64


def test_a_file_is_the_goldens(tmp_path):
    case = Case(GOLDENS / "family/infinity")
    named = json.loads((case.folder / "layout.json").read_text())
    state = {name: np.zeros(shape, np.float32) for name, shape in named} | case.state()
    levels = tuple(rows for rows, _ in case.config["scales"])
    path = write(tmp_path / "infinity.safetensors", state)
    network, params = official.read_network(path, levels)
    expected_network, expected = family.infinity.case_network(case)
    assert network == expected_network
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(expected))


def test_a_gain_behind_a_cross_attention_becomes_part_of_it(files, tmp_path):
    _, _, _, network, params = files
    state = their_names(network, params, 4)
    gain = np.linspace(0.5, 2, 32, dtype=np.float32)
    state["block_chunks.0.module.2.ca_gamma"] = gain
    read = official.read_network(write(tmp_path / "x.safetensors", state), LEVELS)[1]
    for part in ("kernel", "bias"):
        found, plain = (
            p["transformer"]["blocks"]["cross_attention"]["out"][part] for p in (read, params)
        )
        expected = plain.copy()
        expected[2] *= gain
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_pictures_of_prompts(files, tmp_path):
    """Drawn from the files, and from the checkpoint that they become."""
    transformer, tokenizer, encoder, network, _ = files
    model = var_jax.load(transformer, tokenizer, patch_nums=LEVELS, text_encoder=encoder)
    prompts = ["a red bird", "a green bird", "a red bird", ""]
    images = model.sample(prompts, seed=1, cfg=2.0, temperature=1.0)
    assert images.shape == (4, 64, 64, 3)
    assert all((images[0] != images[i]).any() for i in (1, 2, 3))
    two = model.sample(prompts[:2], seed=1, cfg=2.0, temperature=1.0, batch_size=1)
    np.testing.assert_array_equal(two, images[:2])
    steered = model.sample(prompts[:2], negative="green", seed=1, cfg=2.0, temperature=1.0)
    assert (steered != two).any()

    given = dict(vae=tokenizer, transformer=transformer, patch_nums=LEVELS, text_encoder=encoder)
    official_files.import_files(tmp_path / "model", **given)
    loaded = build.load_transformer(tmp_path / "model")
    assert build.network(loaded.config) == loaded.network and loaded.network != network
    again = var_jax.load(tmp_path / "model").sample(prompts, seed=1, cfg=2.0, temperature=1.0)
    np.testing.assert_array_equal(again, images)
    with pytest.raises(ValueError, match="no transformer that reads one"):
        official_files.import_files(tmp_path / "vae", vae=tokenizer, text_encoder=encoder)


def test_a_model_asks_the_encoder_that_it_was_trained_with(files, tmp_path):
    transformer, tokenizer, encoder, _, _ = files
    model = var_jax.load(transformer, tokenizer, patch_nums=LEVELS)
    with pytest.raises(ValueError, match="give its folder as text_encoder to var_jax.load"):
        model.sample("a red bird")
    with pytest.raises(ValueError, match="is a tokenizer, which asks no text encoder"):
        var_jax.load(tokenizer, text_encoder=encoder)


def test_the_published_size():
    """infinity_2b of `tools/run_infinity.py`, with 32 bits."""
    shape = TextTransformerShape(
        *(32, 2048, 16, 4.0, True, True, 1, 32, 2, aspect_ratios.SIDES),
        feature_dim=2048,
        max_length=512,
        pool_head_dim=128,
        num_levels=15,
    )
    network = infinity_text.TRANSFORMER.build(shape, {})
    abstract = jax.eval_shape(network.init_params, jax.random.key(0))
    assert num_parameters(abstract) == pytest.approx(2.2e9, rel=0.05)
    config = ConfigDict(json.loads(json.dumps(transformer_config(_tokenizer(), network))))
    assert build.network(config) == network
    assert build.load_decoder(config).decoder.guidance.weight(3, network.transformer.pyramid) == 3


def _tokenizer():
    from var_jax.codecs.bitwise import Bitwise
    from var_jax.pyramid import ScalePyramid
    from var_jax.tokenizer.vqvae import VQVAE

    pyramid = ScalePyramid.from_patch_nums(aspect_ratios.SIDES)
    return VQVAE(Bitwise(pyramid, 32), channels=32)

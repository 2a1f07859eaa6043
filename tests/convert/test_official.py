import dataclasses
import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from var_jax import build
from var_jax.context import RecentLevels
from var_jax.convert import mapping, official, var, vqvae
from var_jax.convert.config import tokenizer_config, transformer_config
from var_jax.convert.lazy_state import LazyState, LazyTensor
from var_jax.pyramid import PATCH_NUMS
from var_jax.transformer.mamba import Mamba2

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
OFFICIAL = GOLDENS / "official"


def tensor(shape, dtype=np.float32, value=None):
    def load():
        return np.zeros(shape, dtype) if value is None else value

    return LazyTensor(tuple(shape), np.dtype(dtype), load)


def layout(path, **changes):
    """The names of a layout file as tensors of zeros; a change to None removes a name."""
    shapes = {name: shape for name, shape in json.loads((GOLDENS / path).read_text())}
    tensors = {name: tensor(shape) for name, shape in shapes.items()}
    tensors.update({name.replace("__", "."): value for name, value in changes.items()})
    return {name: value for name, value in tensors.items() if value is not None}


def shapes(tensors):
    return {name: tuple(t.shape) for name, t in tensors.items()}


@pytest.mark.parametrize("depth, size", [(16, 256), (20, 256), (24, 256), (30, 256), (36, 512)])
def test_released_transformers_map_completely_both_ways(depth, size):
    state = layout(f"official/var_d{depth}.json")
    shape = var.infer(state)
    assert (shape.depth, shape.width, shape.num_heads) == (depth, 64 * depth, depth)
    assert shape.qk_norm and shape.shared_adaln == (depth == 36) and shape.mlp_ratio == 4
    assert (shape.num_classes, shape.vocab_size, shape.code_dim) == (1000, 4096, 32)
    assert shape.patch_nums == PATCH_NUMS[size]
    network = official.build_network(shape)
    slots = official.network_slots(network)
    mapping.check(state, slots, var.BUFFERS, "file")
    params = official.abstract_network(network)
    assert {slot.path for slot in slots.values()} == set(mapping.flatten(params))
    exported = shapes(official.network_tensors(network, params))
    assert exported == shapes(state)


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_the_released_tokenizer_maps_completely_both_ways(size):
    state = layout("official/vae_ch160v4096z32.json")
    shape = vqvae.infer(state, PATCH_NUMS[size])
    assert (shape.channels, shape.multipliers) == (160, (1, 1, 2, 2, 4))
    assert (shape.vocab_size, shape.code_dim, shape.phi_sharing) == (4096, 32, 4)
    tokenizer = official.build_tokenizer(shape)
    assert tokenizer.image_shape == (size, size, 3)
    mapping.check(state, official.tokenizer_slots(tokenizer), vqvae.BUFFERS, "file")
    params = official.abstract_tokenizer(tokenizer)
    exported = shapes(official.tokenizer_tensors(tokenizer, params))
    # The counts of codebook usage have a row per level, whatever the file's number of levels.
    usage = exported.pop("quantize.ema_vocab_hit_SV")
    assert usage == (len(PATCH_NUMS[size]), 4096)
    assert exported == {k: v for k, v in shapes(state).items() if "ema_vocab" not in k}


def test_a_tokenizer_alone_takes_the_published_levels_of_its_number():
    assert vqvae.infer(layout("official/vae_ch160v4096z32.json")).patch_nums == PATCH_NUMS[256]
    with pytest.raises(ValueError, match="6 levels, .* --patch_nums"):
        vqvae.infer(layout("a/vae_layout.json"))


@pytest.mark.parametrize("sharing", [0, 1, 2, 4])
def test_phi_sharing_is_read_off_the_names(sharing):
    state = {n: t for n, t in layout("a/vae_layout.json").items() if ".quant_resi." not in n}
    names = {
        0: [f"quantize.quant_resi.{i}" for i in range(3)],
        1: ["quantize.quant_resi.qresi"],
    }.get(sharing, [f"quantize.quant_resi.qresi_ls.{i}" for i in range(sharing)])
    for name in names:
        state |= {f"{name}.weight": tensor((8, 8, 3, 3)), f"{name}.bias": tensor((8,))}
    shape = vqvae.infer(state, (1, 2, 4))
    assert (shape.phi_sharing, shape.phi_ratio) == (sharing, 0.5)
    slots = official.tokenizer_slots(official.build_tokenizer(shape))
    mapping.check(state, slots, vqvae.BUFFERS, "file")
    if sharing == 0:
        with pytest.raises(ValueError, match="3 phi convolutions"):
            vqvae.infer(state, (1, 2, 3, 4))


def test_a_tokenizer_without_phi():
    state = {n: t for n, t in layout("a/vae_layout.json").items() if ".quant_resi." not in n}
    shape = vqvae.infer(state, (1, 2, 4))
    assert shape.phi_ratio == 0
    slots = official.tokenizer_slots(official.build_tokenizer(shape))
    mapping.check(state, slots, vqvae.BUFFERS, "file")


def test_levels_of_a_transformer():
    pn = (1, 2, 3, 4, 5, 6)
    plain = layout("a/var_layout.json")
    assert var.infer(plain, pn).patch_nums == pn
    with pytest.raises(ValueError, match="91 tokens in 6 levels.* --patch_nums 1,2,3,5,8"):
        var.infer(plain)
    with pytest.raises(ValueError, match="patch_nums 1,2,4 are 21 tokens in 3 levels"):
        var.infer(plain, (1, 2, 4))

    # The official buffer of level numbers tells them, unless it holds something else.
    def with_buffer(sizes):
        levels = np.repeat(np.arange(len(sizes)), sizes)[None]
        return {**plain, "lvl_1L": tensor(levels.shape, np.int64, levels)}

    assert var.infer(with_buffer([n * n for n in pn])).patch_nums == pn
    with pytest.raises(ValueError, match="instead|levels"):
        var.infer(with_buffer([1, 4, 9, 16, 25, 35]))
    with pytest.raises(ValueError, match="but The file has 91 in 6 1,2,3,4,5,6"):
        var.infer(with_buffer([n * n for n in pn]), (1, 3, 3, 4, 5, 5))


def test_attention_without_scales():
    state = {n: t for n, t in layout("a/var_layout.json").items() if "scale_mul" not in n}
    shape = var.infer(state, (1, 2, 3, 4, 5, 6))
    assert not shape.qk_norm and shape.num_heads == 2
    assert var.infer(state, (1, 2, 3, 4, 5, 6), num_heads=8).num_heads == 8


@pytest.mark.parametrize(
    "change, message",
    [
        ({"head__weight": None}, "missing: head.weight"),
        ({"blocks__1__attn__proj__bias": None}, r"missing: blocks.1.attn.proj.bias \[128\]"),
        ({"blocks__1__attn__scale_mul_1H11": None}, "missing: blocks.1.attn.scale_mul_1H11"),
        ({"extra__weight": tensor((3, 4))}, r"unexpected: extra.weight \[3, 4\]"),
        (
            {"blocks__0__ffn__fc2__weight": tensor((128, 511))},
            r"blocks.0.ffn.fc2.weight is \[128, 511\] instead of \[128, 512\]",
        ),
        ({"word_embed__weight": tensor((128,))}, "wrong shape: word_embed.weight"),
    ],
)
def test_what_does_not_fit_is_listed(change, message):
    state = layout("a/var_layout.json", **change)
    with pytest.raises(ValueError, match=message):
        shape = var.infer(state, (1, 2, 3, 4, 5, 6))
        slots = official.network_slots(official.build_network(shape))
        mapping.check(state, slots, var.BUFFERS, "file")


def test_the_right_dict_of_a_nested_file():
    transformer, tokenizer = layout("b/var_layout.json"), layout("b/vae_layout.json")
    nested = LazyState(
        "x.pth",
        {"epoch": 3, "trainer": {"var_wo_ddp": transformer, "vae_local": tokenizer}},
    )
    assert set(official.select(nested, "transformer")) == set(transformer)
    assert set(official.select(nested, "tokenizer")) == set(tokenizer)
    with pytest.raises(ValueError, match="x.pth holds no official tokenizer.*the top has pos_"):
        official.select(LazyState("x.pth", transformer), "tokenizer")
    two = LazyState("x.pth", {"model": transformer, "ema": transformer})
    with pytest.raises(ValueError, match="2 dicts that are each a transformer: ema, model"):
        official.select(two, "transformer")


def test_buffers_are_those_of_the_official_module():
    extra = var.buffers((1, 2), width=3, depth=2)
    np.testing.assert_array_equal(extra["lvl_1L"].read(), [[0, 1, 1, 1, 1]])
    assert extra["lvl_1L"].read().dtype == np.int64
    mask = extra["attn_bias_for_masking"].read()
    assert mask.shape == (1, 1, 5, 5) and mask.dtype == np.float32
    np.testing.assert_array_equal(np.isneginf(mask[0, 0, 0]), [False, True, True, True, True])
    assert np.all(mask[0, 0, 1:] == 0)
    assert list(extra)[2:] == ["blocks.0.attn.zero_k_bias", "blocks.1.attn.zero_k_bias"]


def test_what_the_official_code_does_not_have_is_not_exported():
    shape = vqvae.infer(layout("b/vae_layout.json"), (1, 2, 4))
    plain = official.build_tokenizer(shape)
    tokenizer = plain.clone(multipliers=(1, 2))
    with pytest.raises(ValueError, match="always has multipliers"):
        official.tokenizer_tensors(tokenizer, official.abstract_tokenizer(tokenizer))
    with pytest.raises(ValueError, match="by area and bicubic, this one by .'cosine', 'bicubic'"):
        official.tokenizer_tensors(plain.clone(codec=plain.codec.clone(down="cosine")), {})
    network = official.build_network(var.infer(layout("b/var_layout.json"), (1, 2, 4)))
    other = network.transformer.clone(context=RecentLevels(1))
    with pytest.raises(ValueError, match="block-causal"):
        official.network_tensors(dataclasses.replace(network, transformer=other), {})
    other = network.transformer.clone(mixer=Mamba2(network.transformer.width))
    with pytest.raises(ValueError, match="no layer between attention and MLP"):
        official.network_tensors(dataclasses.replace(network, transformer=other), {})


@pytest.mark.parametrize("case", ["a", "b"])
def test_build_makes_the_same_modules_from_the_config(case):
    patch_nums = json.loads((GOLDENS / case / "config.json").read_text())["pn"]
    tokenizer = official.build_tokenizer(vqvae.infer(layout(f"{case}/vae_layout.json"), patch_nums))
    network = official.build_network(var.infer(layout(f"{case}/var_layout.json"), patch_nums))
    # As a checkpoint's metadata gives it back.
    config = ConfigDict(json.loads(json.dumps(transformer_config(tokenizer, network))))
    assert build.tokenizer(config) == tokenizer
    assert build.network(config) == network
    config = ConfigDict(json.loads(json.dumps(tokenizer_config(tokenizer))))
    assert build.tokenizer(config) == tokenizer


def test_description():
    lines = official.describe(layout("official/var_d16.json"), "x.pth")
    assert lines[:2] == ["kind: transformer", "parameters: 310,283,520"]
    assert "depth: 16" in lines and "qk_norm: True" in lines
    assert official.describe({"weight": tensor((1,))}, "x.pth") == []
    assert "--patch_nums" in official.describe(layout("a/var_layout.json"), "x.pth")[-1]

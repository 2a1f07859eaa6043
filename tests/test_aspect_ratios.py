"""Levels of oblong images, and what serves them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import filled

from var_jax import aspect_ratios, build
from var_jax.aspect_ratios import COUNTS, PUBLISHED, SIDES
from var_jax.codecs.bitwise import Bitwise
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.spherical import codes_of
from var_jax.transformer.rotary import Rotary2D

GOLDENS = pathlib.Path(__file__).parent / "goldens"


def test_width_comes_first():
    assert aspect_ratios.parse("16:9") == 9 / 16 and aspect_ratios.parse("3:4") == 4 / 3
    for text in ("", "16/9", "16:", "0:1", "1.5:1", "-3:4", "5:1", "1:5"):
        with pytest.raises(ValueError, match="such as 16:9 or 3:4, at most 4:1, got"):
            aspect_ratios.parse(text)


def test_square_images_have_the_levels_that_they_had():
    for sides in (SIDES[:7], SIDES, (1, 2, 3, 5), (1, 2, 4)):
        assert aspect_ratios.shapes(sides, 1.0) == tuple((n, n) for n in sides)


@pytest.fixture(scope="module")
def official():
    """What the released code has: levels of all ratios, and of some the table of positions."""
    return dict(np.load(GOLDENS / "infinity_aspect_ratios.npz"))


def test_levels_are_those_of_the_released_code(official):
    assert len(official["ratios"]) == len(PUBLISHED) == 15
    for ratio, levels in zip(official["ratios"], official["scales"], strict=True):
        for count in COUNTS:
            found = aspect_ratios.shapes(SIDES[:count], ratio)
            np.testing.assert_array_equal(found, levels[:count])


def test_the_nearest_published_ratio_is_taken():
    tall, wide = aspect_ratios.shapes(SIDES, 16 / 9), aspect_ratios.shapes(SIDES, 9 / 16)
    assert tall[-1] == (84, 48) and wide[-1] == (48, 84)
    assert wide == tuple((w, h) for h, w in tall)


def test_other_levels_are_stretched():
    assert aspect_ratios.shapes((1, 2, 3, 4, 6, 8), 0.5) == (
        (1, 1),
        (1, 3),
        (2, 4),
        (3, 6),
        (4, 8),
        (6, 11),
    )
    assert aspect_ratios.shapes((1, 2, 4), 1.25) == ((1, 1), (2, 2), (4, 4))


@pytest.mark.parametrize("ratio", [1.0, 1.25, 0.333, 0.571])
def test_positions_are_those_of_the_released_code(ratio, official):
    """At 512 px, whose cells stand on the grid of 1024 px."""
    pyramid = ScalePyramid.from_patch_nums(SIDES[:10]).oblong(ratio)
    angles = Rotary2D(64, (64, 64)).angles(pyramid, 4)
    found = np.stack([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(found, official[f"rope_{ratio}"], atol=1e-5)


def test_the_grid_of_other_sizes_is_stretched():
    assert aspect_ratios.grid((8, 8), (3, 12)) == (4, 16)
    assert aspect_ratios.grid((8, 4), (3, 12)) == (8, 4)


@pytest.mark.parametrize("patch", [1, 2])
def test_bits_of_any_levels_add_up(patch):
    """On square levels as on the codec's own; on others to a map of as many cells as the last."""
    grid = (4 * patch, 4 * patch)
    codec = Bitwise(ScalePyramid(((1, 1), (2, 2), (4, 4)), grid=grid), 3, patch)
    apply = functools.partial(codec.apply, {})
    oblong = ScalePyramid(((1, 1), (1, 3), (2, 6)))
    rng, carry, total = np.random.default_rng(0), None, 0.0
    for level, (rows, columns) in enumerate(oblong.shapes):
        bits = rng.integers(0, 2, (2, rows * columns, codec.code_dim), np.uint8)
        carry, following = apply(carry, level, jnp.asarray(bits), oblong, method="advance")
        cells = apply(jnp.asarray(bits), (patch * rows, patch * columns), method="_in_cells")
        total += jax.image.resize(codes_of(cells), (2, 2 * patch, 6 * patch, 3), "bilinear")
    assert following is None
    np.testing.assert_allclose(carry, total, atol=1e-6)


@functools.cache
def model(name):
    """A tokenizer, a network and their parameters."""
    config = load(name, "smallest")
    tokenizer, network = build.tokenizer(config), build.network(config)
    params = filled(network.init_params, 0), filled(tokenizer.init_params, 1)
    return config, tokenizer, network, jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("name", ["family/infinity", "family/flexvar"])
def test_an_oblong_image_is_drawn(name):
    config, tokenizer, network, (params, frozen) = model(name)
    decoder = build.load_decoder(config, settings={"aspect": "2:1", "top_k": 1}).decoder
    keys = jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def run(params, frozen):
        codec = frozen.get("codec", {})
        drawn = decoder(network, params, tokenizer.codec, codec, jnp.array([3, 1]), keys)
        image = tokenizer.apply({"params": frozen}, drawn.features, method="decode")
        return drawn.features, image

    features, image = run(params, frozen)
    rows, columns = aspect_ratios.shapes(config.patch_nums, 0.5)[-1]
    assert features.shape[1:3] == (rows, columns) and columns > 1.5 * rows
    stride = tokenizer.stride
    assert image.shape[1:3] == (rows * stride, columns * stride)
    assert np.isfinite(image).all() and np.ptp(image) > 0


def test_what_learned_its_positions_says_so():
    config, tokenizer, network, (params, frozen) = model("mnist5k")
    decoder = build.load_decoder(config, settings={"aspect": "2:1"}).decoder
    with pytest.raises(ValueError, match="positions that follow from coordinates serve any"):
        decoder(
            network,
            params,
            tokenizer.codec,
            frozen["codec"],
            jnp.array([3]),
            jax.random.split(jax.random.key(0), 1),
        )

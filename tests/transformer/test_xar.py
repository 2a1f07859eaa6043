"""xAR's denoiser: who sees whom, its cache, and what it is with a single entity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import filled

from var_jax import build
from var_jax.plan.flops import num_parameters, program_flops
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import rms_norm
from var_jax.transformer.rotary import angles_by_level, rotate_pairs
from var_jax.transformer.xar import XAR, EntityCache

ONE_LEVEL, LEVELS = ScalePyramid(((4, 4),)), ScalePyramid.from_patch_nums((1, 2, 3))
CODE_DIM, WIDTH, HEADS = 2, 16, 2
#: Entities are cells of a level, tokens, levels, the image.
CUTS = [(ONE_LEVEL, 2), (ScalePyramid(((2, 2),)), 2), (LEVELS, 1), (ONE_LEVEL, 1)]


def xar(pyramid=ONE_LEVEL, cells=2, **settings):
    return XAR(pyramid, 5, CODE_DIM, 1, WIDTH, HEADS, cells=cells, **settings)


@functools.cache
def params_of(pyramid, cells):
    """Not so large that attention, without a norm of its queries and keys, sees a single token."""
    module = xar(pyramid, cells)
    given = (jnp.zeros((1, pyramid.length, CODE_DIM)), jnp.zeros(1, jnp.int32))
    params = filled(lambda key: module.init(key, *given)["params"], 0)
    return jax.tree.map(lambda x: x / 2, params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def whole(pyramid, cells, noisy, times):
    params, labels = {"params": params_of(pyramid, cells)}, jnp.arange(len(noisy))
    return xar(pyramid, cells).apply(params, noisy, labels, times=times)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def by_entity(pyramid, cells, data, noisy, times):
    """States of each noisy entity after those before, read as they are at time 0."""
    module, params = xar(pyramid, cells), {"params": params_of(pyramid, cells)}
    labels, cache, found = jnp.arange(len(data)), EntityCache(), []
    parts = zip(*(module.entities.split(x) for x in (data, noisy)), strict=True)
    for k, (clean, part) in enumerate(parts):
        at = dict(levels=range(k, k + 1), cache=cache)
        found.append(module.apply(params, part, labels, times=times[:, k : k + 1], **at)[0])
        cache = module.apply(params, clean, labels, **at)[1]
    return jnp.concatenate(found, 1)


def example(pyramid, cells, seed=0):
    rng = np.random.default_rng(seed)
    noisy = rng.normal(size=(2, pyramid.length, CODE_DIM)).astype("f4")
    return noisy, rng.random((2, xar(pyramid, cells).entities.num_levels), "f4")


def test_cells_are_parts_of_the_image_row_by_row():
    module = xar()
    assert module.entities.shapes == ((2, 2),) * 4
    assert module.order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    levels = xar(LEVELS, 1)
    assert levels.entities == LEVELS and levels.order.tolist() == list(range(14))


@pytest.mark.parametrize("pyramid, cells", CUTS[:3])
def test_an_entity_sees_itself_and_those_before(pyramid, cells):
    noisy, times = example(pyramid, cells)
    before, entities = whole(pyramid, cells, noisy, times), xar(pyramid, cells).entities
    for k in range(entities.num_levels):
        changed, part = noisy.copy(), entities.level(k)
        changed[:, part.stop - 1] += 1
        moved = np.abs(whole(pyramid, cells, changed, times) - before).max(-1) > 1e-5
        assert not moved[:, : part.start].any() and moved[:, part.start :].all()
    # Times and contents of later entities, in another order.
    first = entities.level(0).stop
    later = np.random.default_rng(1).permutation(np.arange(first, pyramid.length))
    changed = np.concatenate([noisy[:, :first], noisy[:, later]], 1)
    other = np.concatenate([times[:, :1], 1 - times[:, 1:]], 1)
    found = whole(pyramid, cells, changed, other)
    np.testing.assert_array_equal(found[:, :first], before[:, :first])


@pytest.mark.parametrize("pyramid, cells", CUTS[:3])
def test_a_cached_context_is_a_clean_one_of_a_whole_pass(pyramid, cells):
    (data, times), (noisy, _) = example(pyramid, cells), example(pyramid, cells, 1)
    found, entities = by_entity(pyramid, cells, data, noisy, times), xar(pyramid, cells).entities
    for k in range(entities.num_levels):
        part = entities.level(k)
        read = np.concatenate([data[:, : part.start], noisy[:, part.start :]], 1)
        at = np.where(np.arange(entities.num_levels) < k, 0, times)
        expected = whole(pyramid, cells, read, at.astype("f4"))
        np.testing.assert_allclose(found[:, part], expected[:, part], rtol=1e-3, atol=1e-4)


def transformer_of_images(params, noisy, labels, times):
    """DiT: every token sees all, one vector of class and time modulates all (arXiv 2212.09748).

    Args: times: [B]. The two stacks, gated blocks and rotary positions are xAR's.
    """
    angles, batch = angles_by_level(ONE_LEVEL, WIDTH // HEADS), len(noisy)
    frequencies = np.exp(-np.log(1e4) * np.arange(128) / 128)
    turns = np.floor(times * 1000)[:, None] * frequencies
    waves = np.concatenate([np.cos(turns), np.sin(turns)], 1)

    def linear(part, x):
        kernel = part["kernel"].reshape(x.shape[-1], -1)
        return x @ kernel + part["bias"].reshape(-1)

    time = linear(params["time"]["out"], jax.nn.silu(linear(params["time"]["up"], waves)))
    vector = jax.nn.silu(params["class_embedding"][labels] + time)

    def block(p, x):
        six = linear(p["adaln"], vector).reshape(batch, 6, 1, WIDTH)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (six[:, i] for i in range(6))
        y, attention = rms_norm(x) * (1 + scale1) + shift1, p["attention"]
        q, k, v = (
            jnp.einsum("bnc,ckh->bnkh", y, attention["qkv_kernel"][:, i]) + attention[f"{n}_bias"]
            for i, n in enumerate("qkv")
        )
        q, k = rotate_pairs(q, angles), rotate_pairs(k, angles)
        weights = jax.nn.softmax(jnp.einsum("bqnh,bknh->bnqk", q, k) * (WIDTH // HEADS) ** -0.5)
        y = jnp.einsum("bnqk,bknh->bqnh", weights, v).reshape(x.shape)
        x = x + gamma1 * linear(attention["out"], y)
        y, mlp = rms_norm(x) * (1 + scale2) + shift2, p["mlp"]
        gate = jax.nn.gelu(linear(mlp["gate"], y), approximate=False)
        return x + gamma2 * linear(mlp["down"], gate * linear(mlp["up"], y))

    first, second = (
        jax.tree.map(lambda p: p[0], params[name]["blocks"]) for name in ("encoder", "decoder")
    )
    x = linear(params["token_projection"], noisy) + params["encoder_position"]
    x = rms_norm(block(first, rms_norm(x) * params["input_norm"])) * params["encoder_norm"]
    x = linear(params["decoder_projection"], x) + params["decoder_position"]
    return rms_norm(block(second, x)) * params["decoder_norm"]


def test_one_entity_is_a_diffusion_transformer():
    noisy, times = example(ONE_LEVEL, 1)
    expected = transformer_of_images(params_of(ONE_LEVEL, 1), noisy, np.arange(2), times[:, 0])
    found = whole(ONE_LEVEL, 1, noisy, times)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant, published", [("base", 172), ("large", 608), ("huge", 1186)])
def test_published_sizes(variant, published):
    """In millions, rounded down; of the largest, 1.1 billion is what is published."""
    network = build.network(load("family/xar", variant))
    params = jax.eval_shape(network.init_params, jax.random.key(0))
    assert num_parameters(params) // 10**6 == published


def test_operations_are_those_of_the_program():
    # One entity: implementations of the attention may compute what they then mask.
    noisy, times = example(ONE_LEVEL, 1)
    traced = whole.trace(ONE_LEVEL, 1, noisy[:1], times[:1])
    # The product that exchanges the channels of queries and keys is not the model's.
    exchanges = 2 * 2 * (2 * 16 * WIDTH * (WIDTH // HEADS))
    expected = xar(ONE_LEVEL, 1).flops(ONE_LEVEL, range(1)) + exchanges
    assert expected == pytest.approx(program_flops(traced.jaxpr), rel=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(cells=3), "cannot be cut into 3 x 3 cells"),
        (dict(pyramid=LEVELS), "cannot be cut into 2 x 2 cells"),
        (dict(cells=0), "cannot be cut into 0 x 0 cells"),
        (dict(remat="some"), "Unknown remat 'some'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        xar(**settings)
    with pytest.raises(ValueError, match="16 is not divisible by 4 times the 8 heads"):
        XAR(ONE_LEVEL, 5, CODE_DIM, 1, WIDTH, 8)

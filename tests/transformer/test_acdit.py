"""ACDiT's denoiser: who sees whom, its cache, and what it is with a single cell."""

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
from var_jax.transformer.acdit import ACDiT, _turned, skip_causal
from var_jax.transformer.layers import rms_norm

PYRAMID, CODE_DIM, WIDTH, HEADS = ScalePyramid(((4, 4),)), 2, 16, 2


def acdit(cells=2, **settings):
    return ACDiT(PYRAMID, 5, CODE_DIM, 1, WIDTH, HEADS, cells=cells, **settings)


@functools.cache
def params():
    """Of any number of cells; biases and gains too are no zeros and ones."""
    given = (jnp.zeros((1, 16, CODE_DIM)), jnp.zeros(1, jnp.int32))
    return filled(lambda key: acdit().init(key, *given)["params"], 0)


@functools.partial(jax.jit, static_argnums=0)
def whole(cells, noisy, clean, times):
    labels = jnp.arange(len(noisy))
    return acdit(cells).apply({"params": params()}, noisy, labels, times=times, clean=clean)[0]


def example(seed=0, cells=2):
    rng = np.random.default_rng(seed)
    noisy, clean = rng.normal(size=(2, 2, 16, CODE_DIM)).astype("f4")
    return noisy, clean, rng.random((2, cells**2), "f4")


def test_a_noisy_cell_sees_itself_and_the_clean_ones_before():
    noisy, clean, times = example()
    before, cells = whole(2, noisy, clean, times), acdit().entities
    for k in range(4):
        part = cells.level(k)
        changed = noisy.copy()
        changed[:, part.stop - 1] += 1
        moved = np.abs(whole(2, changed, clean, times) - before).max(-1) > 1e-5
        assert moved[:, part].all() and moved.sum() == 2 * 4
        changed = clean.copy()
        changed[:, part.stop - 1] += 1
        moved = np.abs(whole(2, noisy, changed, times) - before).max(-1) > 1e-5
        assert not moved[:, : part.stop].any() and moved[:, part.stop :].all()
        later = times.copy()
        later[:, k] = 1 - later[:, k]
        moved = np.abs(whole(2, noisy, clean, later) - before).max(-1) > 1e-5
        assert moved[:, part].all() and moved.sum() == 2 * 4


def test_a_cached_context_is_that_of_training():
    noisy, clean, times = example()
    expected, module = whole(2, noisy, clean, times), acdit()
    labels, cache, found = jnp.arange(2), module.new_cache(), []
    for k in range(4):
        at, part = dict(levels=range(k, k + 1), cache=cache), module.entities.level(k)
        run = functools.partial(module.apply, {"params": params()})
        found.append(run(noisy[:, part], labels, times=times[:, k : k + 1], **at)[0])
        cache = run(clean[:, part], labels, **at)[1]
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, rtol=1e-3, atol=1e-4)


def test_without_context_each_cell_is_the_first():
    noisy, _, times = example()
    found = acdit().apply({"params": params()}, noisy, jnp.arange(2), times=times)[0]
    first = whole(2, noisy, np.zeros_like(noisy), times)
    np.testing.assert_allclose(found[:, :4], first[:, :4], rtol=1e-4, atol=1e-5)
    assert np.abs(found - first)[:, 4:].max(-1).min() > 1e-3


def test_a_class_modulates_what_is_noisy_and_not_its_context():
    """A cache is one, whatever is asked for."""
    _, clean, _ = example()
    at = dict(levels=range(1), cache=acdit().new_cache())
    run = functools.partial(acdit().apply, {"params": params()}, clean[:, :4])
    one, other = (run(jnp.full(2, label), **at)[1] for label in (0, 3))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def diffusion_transformer(params, noisy, labels, times):
    """DiT, arXiv 2212.09748, with the norms and positions of ACDiT; times: [B]."""
    rows, columns = np.divmod(np.arange(16), 4)
    frequencies = np.tile(100.0 ** -np.linspace(0, 1, WIDTH // HEADS // 4), 2)
    turns = [axis[:, None] * frequencies for axis in (rows, columns)]
    steps = np.floor(times * 1000)[:, None] * np.exp(-np.log(1e4) * np.arange(128) / 128)
    waves = np.concatenate([np.cos(steps), np.sin(steps)], 1)

    def linear(part, x):
        kernel = part["kernel"].reshape(x.shape[-1], -1)
        return x @ kernel + (part["bias"].reshape(-1) if "bias" in part else 0)

    time = linear(params["time"]["out"], jax.nn.silu(linear(params["time"]["up"], waves)))
    vector = jax.nn.silu(params["class_embedding"][labels] + time)
    block = jax.tree.map(lambda p: p[0], params["stack"]["blocks"])
    attention, gains = block["attention"], block["norm_gains"]
    six = linear(block["adaln"], vector).reshape(len(noisy), 6, 1, WIDTH)
    gamma1, gamma2, scale1, scale2, shift1, shift2 = (six[:, i] for i in range(6))
    x = linear(params["token_projection"], noisy)
    y = rms_norm(x) * gains[0] * (1 + scale1) + shift1
    q, k, v = (
        jnp.einsum("bnc,ckh->bnkh", y, attention["qkv_kernel"][:, i]) + attention[f"{n}_bias"]
        for i, n in enumerate("qkv")
    )
    q, k = (_turned(rms_norm(t) * attention[f"{n}_gain"], *turns) for t, n in ((q, "q"), (k, "k")))
    weights = jax.nn.softmax(jnp.einsum("bqnh,bknh->bnqk", q, k) * (WIDTH // HEADS) ** -0.5)
    y = jnp.einsum("bnqk,bknh->bqnh", weights, v).reshape(x.shape)
    x = x + gamma1 * linear(attention["out"], y)
    y = rms_norm(x) * gains[1] * (1 + scale2) + shift2
    x = x + gamma2 * linear(block["mlp"]["down"], jax.nn.gelu(linear(block["mlp"]["up"], y)))
    scale, shift = jnp.split(linear(params["final_modulation"], vector)[:, None], 2, -1)
    return rms_norm(x) * params["final_norm"] * (1 + scale) + shift


def test_one_cell_is_a_diffusion_transformer():
    noisy, clean, times = example(cells=1)
    found = whole(1, noisy, clean, times)
    expected = diffusion_transformer(params(), noisy, np.arange(2), times[:, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(whole(1, noisy, clean + 1, times), found)
    _, segments = skip_causal(acdit(1).entities)
    assert sum(segment.rows for segment in segments) == 16, "No token is read twice."


@pytest.mark.parametrize(
    "variant, millions", [("base", 130), ("large", 457), ("xlarge", 674), ("huge", 950)]
)
def test_sizes(variant, millions):
    """Rounded down; the names in the official code say 132, 460, 677 and 954."""
    network = build.network(load("family/acdit", variant))
    found = jax.eval_shape(network.init_params, jax.random.key(0))
    assert num_parameters(found) // 10**6 == millions


def test_operations_are_those_of_the_program():
    # One cell: implementations of the attention may compute what they then mask.
    noisy, clean, times = example(cells=1)
    traced = whole.trace(1, noisy[:1], clean[:1], times[:1])
    expected = acdit(1).flops(PYRAMID, range(1))
    assert expected == pytest.approx(program_flops(traced.jaxpr), rel=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(pyramid=ScalePyramid.from_patch_nums((1, 2))), "ACDiT draws the cells of one level"),
        (dict(cells=3), "cannot be cut into 3 x 3 cells"),
        (dict(num_heads=8), "16 is not divisible by 4 times the 8 heads"),
        (dict(remat="some"), "Unknown remat 'some'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    given = dict(pyramid=PYRAMID, num_heads=HEADS) | settings
    with pytest.raises(ValueError, match=message):
        ACDiT(num_classes=5, code_dim=CODE_DIM, depth=1, width=WIDTH, **given)

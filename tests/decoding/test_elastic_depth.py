import jax
import numpy as np
import pytest
from recipes import load
from small_network import CLASSES, CODEC, PYRAMID, codec_params, generate, model

from var_jax import build
from var_jax.decoding import base
from var_jax.decoding.elastic_depth import ElasticDepth, spaced_blocks
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling
from var_jax.transformer.cache import Cache

LABELS = np.arange(6) % CLASSES
RULE, SAMPLING = LinearGuidance(1.0), CategoricalSampling(0, 0.0)


def draw(decoder):
    return generate(decoder, LABELS, model(3))


def test_blocks_are_spaced_evenly_with_both_ends():
    assert spaced_blocks(8, 30) == (0, 4, 8, 12, 16, 20, 24, 29)
    assert spaced_blocks(2, 30) == (0, 29)
    assert spaced_blocks(5, 5) == (0, 1, 2, 3, 4)
    for count in (1, 6):
        with pytest.raises(ValueError, match=f"num_blocks is {count}, but the model has 5"):
            spaced_blocks(count, 5)


@pytest.mark.parametrize("num_blocks, num_whole", [(3, 1), (2, 3)])
def test_all_blocks_or_all_levels_is_the_plain_decoder(num_blocks, num_whole):
    found = draw(ElasticDepth(num_blocks, num_whole, RULE, SAMPLING))
    np.testing.assert_array_equal(found.targets, draw(NextScale(RULE, SAMPLING)).targets)


def test_steps_agree_with_a_pass_over_the_fine_levels():
    """Cached, level by level, and at once; other blocks give other hidden states."""
    network, params = model(3)
    keys = jax.random.split(jax.random.key(0), len(LABELS))
    tokens = np.random.default_rng(0).integers(0, 32, (len(LABELS), PYRAMID.length))
    state = base.start(network, LABELS.astype(np.int32), keys, False, PYRAMID)
    stepped = []
    for k, target in enumerate(PYRAMID.split(tokens.astype(np.int32))):
        if k == 1:
            state = state.replace(cache=state.cache.of_blocks((0, 2)), blocks=(0, 2))
        (hidden,), state = base.hidden_states(network, params, state)
        stepped.append(hidden)
        state = base.add(CODEC, codec_params(), target, target, state)
    inputs = [state.inputs[k] for k in (1, 2)]
    labels = LABELS.astype(np.int32)
    _, cache = network.hidden(params, None, labels, levels=range(1), cache=Cache())
    fine = np.concatenate(inputs, 1)
    kept = cache.of_blocks((0, 2))
    found, _ = network.hidden(params, fine, labels, levels=range(1, 3), cache=kept, runs=((0, 2),))
    expected = np.concatenate(stepped[1:], 1)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    whole, _ = network.hidden(params, fine, labels, levels=range(1, 3), cache=cache)
    assert np.abs(np.asarray(whole) - expected).max() > 0.01 * np.abs(expected).max()


def test_the_number_of_levels_is_checked():
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"num_whole is {count}, but the pyramid has 3"):
            draw(ElasticDepth(2, count))


def test_the_config_builds():
    decoder = build.decoder(load("family/variant", "d30"))
    assert isinstance(decoder, ElasticDepth) and decoder.num_blocks == 16

import jax
import numpy as np
import pytest
import scipy.fft
from recipes import load
from small_network import CLASSES, CODEC, PYRAMID, codec_params, generate, model

from var_jax import build
from var_jax.decoding import base
from var_jax.decoding.collaborative import Collaborative
from var_jax.decoding.elastic_depth import ElasticDepth
from var_jax.decoding.guidance import (
    ConstantGuidance,
    IntervalGuidance,
    LayerGuidance,
    LinearGuidance,
    LooksBack,
    PerLevelGuidance,
)
from var_jax.decoding.next_scale import NextScale
from var_jax.decoding.spatial_guidance import SpatialGuidance, enlarged
from var_jax.heads.categorical import CategoricalSampling

LABELS = np.arange(12) % CLASSES
LINEAR, NONE = LinearGuidance(2.0), ConstantGuidance(0.0)


def tokens(guidance):
    return generate(NextScale(guidance, CategoricalSampling(0, 0.0)), LABELS).targets


def test_an_interval_is_its_rule_inside_and_none_outside():
    rule = IntervalGuidance(LINEAR, 1, 1)
    assert [rule.weight(k, PYRAMID) for k in range(3)] == [0.0, 1.0, 0.0]
    np.testing.assert_array_equal(tokens(rule), tokens(PerLevelGuidance((0.0, 1.0, 0.0))))
    np.testing.assert_array_equal(tokens(IntervalGuidance(LINEAR)), tokens(LINEAR))
    for first, last in ((2, 1), (0, 3), (-1, 2)):
        with pytest.raises(ValueError, match=r"levels are 0\.\.2"):
            IntervalGuidance(LINEAR, first, last).weight(0, PYRAMID)


def test_a_mix_inside_of_the_network():
    inside = LayerGuidance(LINEAR, (0,))
    # No level is guided but the last one: the others are as without.
    none = tokens(NONE)
    last = tokens(LayerGuidance(PerLevelGuidance((0.0, 0.0, 3.0)), (0, -1)))
    assert (last[:, :-16] == none[:, :-16]).all() and (last != none).any()
    for after in ((), (2,), (-3,)):
        with pytest.raises(ValueError, match=r"but the model has 2; give some of 0\.\.1"):
            LayerGuidance(LINEAR, after).mixed_after(2)
    assert LayerGuidance(LINEAR, (-1, 0, 1)).mixed_after(2) == (0, 1)
    decoder = ElasticDepth(2, 1, inside, CategoricalSampling(0, 0.0))
    with pytest.raises(ValueError, match="choose another guidance, or neither a cache policy"):
        generate(decoder, LABELS)


def test_without_strength_it_is_the_rule():
    rule = SpatialGuidance(LINEAR, 0.0)
    assert isinstance(rule, LooksBack) and not isinstance(LINEAR, LooksBack)
    np.testing.assert_array_equal(tokens(rule), tokens(LINEAR))
    steered = tokens(SpatialGuidance(LINEAR, 1.0))
    np.testing.assert_array_equal(steered[:, :1], tokens(LINEAR)[:, :1])
    assert (steered != tokens(LINEAR)).any()
    np.testing.assert_array_equal(tokens(SpatialGuidance(LINEAR, (5.0, 1.0, 1.0))), steered)


@pytest.mark.parametrize("small, large", [((1, 1), (2, 2)), ((3, 4), (5, 8)), ((13, 13), (16, 16))])
def test_low_frequencies_are_the_coarse_ones_scaled(small, large):
    x = np.random.default_rng(0).normal(size=(2, *small, 3)).astype(np.float32)
    found = np.asarray(enlarged(x, large))

    def spectrum(y):
        return scipy.fft.dctn(y, axes=(1, 2), norm="ortho")

    scale = np.sqrt(np.prod(large) / np.prod(small))
    low = spectrum(found)[:, : small[0], : small[1]]
    np.testing.assert_allclose(low, scale * spectrum(x), atol=2e-5)
    np.testing.assert_allclose(enlarged(np.ones_like(x), large), 1.0, atol=1e-5)
    np.testing.assert_allclose(enlarged(x, small), x, atol=1e-5)


def test_high_frequencies_are_those_of_a_linear_interpolation():
    x = np.random.default_rng(1).normal(size=(1, 4, 4, 1)).astype(np.float32)
    linear = jax.image.resize(x, (1, 8, 8, 1), "bilinear")
    difference = scipy.fft.dctn(np.asarray(enlarged(x, (8, 8)) - linear), axes=(1, 2), norm="ortho")
    assert np.abs(difference[:, 4:]).max() < 1e-5 and np.abs(difference[:, :, 4:]).max() < 1e-5
    assert np.abs(difference[:, :4, :4]).max() > 0.01


@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_mixed_hidden_states_give_the_papers_logits(cfg):
    """l + beta (l - l0), in logits, of two levels in a row."""
    network, params = model()
    rule, beta = ConstantGuidance(cfg), 0.7
    keys = jax.random.split(jax.random.key(0), 2)
    labels = np.array([0, 2], np.int32)

    def mixed_logits(hiddens, weights):
        logits = [network.head.apply({"params": params["head"]}, h) for h in hiddens]
        return sum(w * np.asarray(x) for w, x in zip(weights, logits, strict=True))

    found = {}
    for name, guidance in (("plain", rule), ("steered", SpatialGuidance(rule, (0.0, 0.0, beta)))):
        state, found[name] = base.start(network, labels, keys, cfg != 0, PYRAMID), []
        for size in PYRAMID.sizes:
            hiddens, mix, state = base.conditions(network, params, state, guidance)
            assert sum(mix) == pytest.approx(1)
            found[name].append(mixed_logits(hiddens, mix))
            drawn = np.arange(2 * size).reshape(2, size) % 32
            state = base.add(CODEC, codec_params(), drawn, drawn, state)
    plain, steered = found["plain"], found["steered"]
    np.testing.assert_array_equal(steered[1], plain[1])
    coarse = plain[1].reshape(2, 2, 2, -1)
    prior = np.asarray(enlarged(coarse, (4, 4))).reshape(plain[2].shape)
    expected = plain[2] + beta * (plain[2] - prior)
    np.testing.assert_allclose(steered[2], expected, atol=2e-4 * np.abs(expected).max())


def test_equal_constant_logits_change_nothing():
    """Where a level repeats a constant of the level before, it is left as it is."""
    before = np.tile(np.float32([3.0, -1.0]), (1, 4, 1))
    own = np.tile(np.float32([3.0, -1.0]), (1, 16, 1))
    carried = SpatialGuidance(LINEAR, 1.0).carried(before, 2, PYRAMID)
    np.testing.assert_allclose(own + 5.0 * (own - carried), own, atol=1e-5)


def test_a_state_takes_along_what_it_looks_back_at():
    network, params = model()
    keys = jax.random.split(jax.random.key(0), 3)
    state = base.start(network, np.array([0, 1, 2], np.int32), keys, True, PYRAMID)
    _, _, state = base.conditions(network, params, state, SpatialGuidance(LINEAR, 1.0))
    moved = state.reindex(np.array([2, 0]))
    np.testing.assert_array_equal(moved.before, np.asarray(state.before)[[2, 0]])


def test_the_second_of_two_models_starts_unsteered():
    network, params = model()
    sampling = CategoricalSampling(0, 0.0)
    both = Collaborative(network, 1, SpatialGuidance(LINEAR, 1.0), sampling)
    found = generate(both, LABELS, own_params={"refiner": params}).targets
    one = SpatialGuidance(LINEAR, (0.0, 0.0, 1.0))
    np.testing.assert_array_equal(found, tokens(one))


def test_a_config_puts_it_around_what_cfg_says():
    config = load("mnist5k")
    with config.unlocked():
        config.sampling.guidance = dict(kind="ssg", beta=0.5)
    rule = build.decoder(config).guidance
    assert rule == SpatialGuidance(LinearGuidance(config.sampling.cfg), 0.5)
    with config.unlocked():
        config.sampling.guidance = dict(kind="interval", first=1)
    assert build.decoder(config).guidance == IntervalGuidance(rule.rule, 1)
    with config.unlocked(), config.ignore_type():
        config.sampling.guidance = "var_jax.decoding.guidance:ConstantGuidance"
    with pytest.raises(ValueError, match="cfg is set, but .*ConstantGuidance"):
        build.decoder(config)


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match=r"beta of the guidance is \(0.0, -0.1"):
        SpatialGuidance(LINEAR, (0.0, -0.1, 0.0))

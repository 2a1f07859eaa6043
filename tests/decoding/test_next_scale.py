import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.decoding.guidance import (
    ConstantGuidance,
    LinearGuidance,
    PerLevelGuidance,
    TenStepGuidance,
)
from var_jax.decoding.images import ImageSampler, sample_keys
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalHead, CategoricalSampling
from var_jax.network import Network, sampling_params
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 4))


PLAIN = LinearGuidance(2.0)


def decoder(guidance=PLAIN, top_k=0, top_p=0.9, **settings):
    return NextScale(guidance, CategoricalSampling(top_k, top_p, **settings))


DECODER = decoder()


@pytest.fixture(scope="module")
def model():
    codec = ResidualVQ(PYRAMID, 32, 4, phi_sharing=2)
    tokenizer = VQVAE(
        codec, 1, channels=8, multipliers=(1, 1), num_res_blocks=1, attention=False, norm_groups=4
    )
    var = VAR(PYRAMID, num_classes=3, code_dim=4, depth=2, width=32, num_heads=2)
    head = CategoricalHead(32, 32, init_factor=20.0)
    images = jnp.zeros((1, 8, 8, 1))
    network = Network(var, head)

    def init():
        return sharding.unbox(
            {
                "tokenizer": tokenizer.init(jax.random.key(0), images)["params"],
                **network.init_params(jax.random.key(1)),
            }
        )

    params = jax.jit(init)()
    frozen = params.pop("tokenizer")
    params = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )
    return network, tokenizer, frozen, params


def draw(model, labels, decoder=DECODER, batch_size=None, mesh=None, seed=7, **kwargs):
    *modules, frozen, params = model
    sample = ImageSampler(*modules, frozen, decoder, mesh, **kwargs)
    found = [s for _, s in sample.batches(params, labels, seed, batch_size or len(labels))]
    return (
        np.concatenate([s.images for s in found]),
        np.concatenate([s.tokens for s in found]),
        found,
    )


def test_a_sample_is_the_same_in_every_batch_and_on_every_number_of_devices(model):
    labels = np.arange(50) % 3
    images, tokens, _ = draw(model, labels)
    for batch_size in (1, 8):
        other_images, other_tokens, _ = draw(model, labels[:9], batch_size=batch_size)
        np.testing.assert_array_equal(other_tokens, tokens[:9])
        assert np.abs(other_images.astype(int) - images[:9]).max() <= 1  # Rounding at a half.
    assert jax.device_count() == 8
    _, eight, _ = draw(model, labels, batch_size=8, mesh=sharding.make_mesh())
    np.testing.assert_array_equal(eight, tokens)
    # And no two draw the same numbers: where all codes are as likely, all maps differ.
    _, free, _ = draw(model, labels, decoder(LinearGuidance(1.5), 900, 0.96, temperature=1e4))
    assert len({row.tobytes() for row in free}) == 50


def test_parameters_in_the_computing_type_give_the_same(model):
    network, tokenizer, frozen, params = model
    narrow = Network(network.transformer.clone(dtype=jnp.bfloat16), network.head)
    cast = sampling_params(narrow, params)
    blocks = cast["transformer"]["blocks"]
    assert blocks["mlp"]["up"]["kernel"].dtype == blocks["adaln"]["bias"].dtype == jnp.bfloat16
    assert blocks["attention"]["log_scale"].dtype == jnp.float32
    assert cast["transformer"]["position"].dtype == jnp.float32
    assert cast["head"] is params["head"]
    labels = np.arange(12) % 3
    found = [draw((narrow, tokenizer, frozen, p), labels) for p in (params, cast)]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_array_equal(found[0][0], found[1][0])
    # In float32 there is nothing to cast.
    jax.tree.map(np.testing.assert_array_equal, sampling_params(network, params), params)


def test_the_second_call_compiles_nothing(model, caplog):
    *modules, frozen, params = model
    sample = ImageSampler(*modules, frozen, DECODER)
    index = np.arange(4)
    sample(params, [0, 1, 2, 0], 1, index)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        sample(params, [2, 1, 0, 0], 2, index + 4)
    assert not [r for r in caplog.records if "ompil" in r.getMessage()]


def manual_logits(model, tokens, labels):
    """Teacher-forced logits of given tokens."""
    network, tokenizer, frozen, params = model
    inputs = tokenizer.codec.apply({"params": frozen["codec"]}, tokens, method="teacher_inputs")
    hidden, _ = network.hidden(params, inputs, labels)
    return network.head.apply({"params": params["head"]}, hidden)


@pytest.mark.parametrize("guidance", [LinearGuidance(0.0), LinearGuidance(2.0)])
def test_greedy_generation_agrees_with_teacher_forcing(model, guidance):
    labels = np.array([0, 1, 2])
    _, tokens, _ = draw(model, labels, decoder(guidance, 1, 0.96))
    logits = manual_logits(model, tokens, labels)
    uncond = manual_logits(model, tokens, np.full(3, 3))
    for k in range(PYRAMID.num_levels):
        t, level = guidance.weight(k, PYRAMID), PYRAMID.level(k)
        mixed = (1 + t) * logits[:, level] - t * uncond[:, level]
        np.testing.assert_array_equal(mixed.argmax(-1), tokens[:, level])


def test_guidance_weights():
    four = ScalePyramid.from_patch_nums((1, 2, 3, 4))
    assert [LinearGuidance(1.5).weight(k, four) for k in range(4)] == [0, 0.5, 1.0, 1.5]
    assert ConstantGuidance(2.0).weight(0, four) == 2.0
    assert PerLevelGuidance((0.0, 1.0)).weight(1, four.prefix(2)) == 1.0
    with pytest.raises(ValueError, match="2 weights, but the pyramid has 3 levels"):
        PerLevelGuidance((0.0, 1.0)).weight(0, PYRAMID)


def test_ten_steps_of_guidance():
    short, long = (ScalePyramid.from_patch_nums(range(1, n + 1)) for n in (5, 13))
    rule = TenStepGuidance(2.0, max_side=12)
    linear = [LinearGuidance(2.0).weight(k, short) for k in range(5)]
    assert [rule.weight(k, short) for k in range(5)] == linear
    weights = [rule.weight(k, long) for k in range(13)]
    assert weights[0] == 0 and weights[9] == 2.0 and weights[11] > weights[10] > 2.0
    assert weights[12] == 2.0  # Of a side that training has not seen.
    assert rule.weight(0, short.prefix(1)) == 0


def test_unguided_late_levels_do_not_change_the_early_ones(model):
    labels = np.array([0, 1, 2])
    _, early, _ = draw(model, labels, decoder(PerLevelGuidance((0.0, 2.0, 0.0)), 900))
    _, full, _ = draw(model, labels, decoder(PerLevelGuidance((0.0, 2.0, 2.0)), 900))
    np.testing.assert_array_equal(early[:, :5], full[:, :5])
    assert (early[:, 5:] != full[:, 5:]).any()


def test_settings_can_differ_by_level(model):
    labels = np.array([0, 1, 2, 0])
    _, greedy_start, _ = draw(model, labels, decoder(top_k=(1, 0, 0)))
    _, greedy, _ = draw(model, labels, decoder(top_k=1))
    np.testing.assert_array_equal(greedy_start[:, :1], greedy[:, :1])
    assert (greedy_start[:, 1:] != greedy[:, 1:]).any()
    with pytest.raises(ValueError, match="top_p has 2 values"):
        draw(model, labels, decoder(top_p=(0.5, 0.9)))


def test_partial_images_end_with_the_image(model):
    labels = np.array([0, 1])
    images, _, found = draw(model, labels, keep_partial=True)
    assert found[0].partial.shape == (2, 3, 8, 8, 1)
    np.testing.assert_array_equal(found[0].partial[:, -1], images)
    smooth = draw(model, labels, decoder(smooth=True))[0]
    assert np.abs(smooth.astype(int) - images).max() > 1


def test_labels_out_of_range_are_refused(model):
    with pytest.raises(ValueError, match=r"0\.\.3"):
        draw(model, np.array([4]))


def test_a_decoder_may_draw_the_first_levels_only(model):
    labels = np.array([0, 1, 2])
    guidance = ConstantGuidance(1.0)
    _, whole, _ = draw(model, labels, decoder(guidance))
    short = dataclasses.replace(decoder(guidance), pyramid=PYRAMID.prefix(2))
    images, tokens, _ = draw(model, labels, short)
    np.testing.assert_array_equal(tokens, whole[:, :5])
    assert images.shape == (3, 8, 8, 1)


def test_a_pyramid_that_nothing_serves_is_refused(model):
    other = dataclasses.replace(DECODER, pyramid=ScalePyramid.from_patch_nums((1, 3, 4)))
    with pytest.raises(ValueError, match="positions were learned for the levels"):
        draw(model, np.array([0]), other)


@pytest.mark.slow
def test_settings_that_are_arrays_draw_the_same_in_one_program(model):
    network, tokenizer, frozen, params = model
    labels, keys = jnp.array([2, 0]), sample_keys(7, jnp.arange(2))

    @jax.jit
    def tokens(settings):
        cfg, *rest = jax.tree.map(tuple, settings, is_leaf=lambda x: isinstance(x, jax.Array))
        drawn = NextScale(PerLevelGuidance(cfg), CategoricalSampling(*rest))(
            network, params, tokenizer.codec, frozen["codec"], labels, keys
        )
        return drawn.targets

    for cfg, top_k, top_p, temperature in (
        ((0.0, 1.0, 2.0), 0, 0.9, 1.0),
        ((0.0, 0.0, 0.0), 1, 0.0, 1.0),
        ((3.0, 0.0, 0.0), (5, 0, 2), (0.0, 1.0, 0.5), (1.0, 2.0, 0.3)),
    ):
        guidance, sampling = PerLevelGuidance(cfg), CategoricalSampling(top_k, top_p, temperature)
        static = NextScale(guidance, sampling)(
            network, params, tokenizer.codec, frozen["codec"], labels, keys
        )
        rows = [np.broadcast_to(x, 3) for x in (cfg, top_k, top_p, temperature)]
        arrays = [jnp.asarray(x, jnp.int32 if i == 1 else jnp.float32) for i, x in enumerate(rows)]
        np.testing.assert_array_equal(tokens(arrays), static.targets)
    assert tokens._cache_size() == 1

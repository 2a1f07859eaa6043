"""Masked refinement: plain generation in the limit, and what it keeps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import CLASSES, CODE_DIM, CODEC, PYRAMID, VOCAB, codec_params, filled, generate

from var_jax import build
from var_jax.codecs.own_level import own_inputs
from var_jax.context import OwnScale
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.masked import MaskedRefinement, least_confident
from var_jax.decoding.next_scale import NextScale
from var_jax.fields import Field
from var_jax.heads.bitwise import BitwiseHead
from var_jax.heads.categorical import CategoricalHead, CategoricalSampling
from var_jax.network import Network
from var_jax.transformer.masked_branch import MaskedBranch
from var_jax.transformer.var import VAR

LABELS = np.arange(6) % CLASSES
#: Level 1 has 4 tokens; level 2, which has 16, is not refined.
COUNTS = ((1,), (2, 2))
PLAIN = (LinearGuidance(2.0), CategoricalSampling(0, 0.9))


def network(**changes):
    transformer = VAR(PYRAMID, CLASSES, CODE_DIM, 2, 32, 2, context=OwnScale())
    branch = MaskedBranch(transformer, 1)
    made = Network(transformer, CategoricalHead(VOCAB, 32, init_factor=20.0), branch)
    return dataclasses.replace(made, **changes)


@functools.cache
def model(branch_seed=1):
    """With another branch for each seed."""
    params = filled(network().init_params, 0)
    return network(), {**params, "masked": filled(network().init_params, branch_seed)["masked"]}


@functools.cache
def draw(counts, branch_seed=1, count=6):
    decoder = MaskedRefinement(*PLAIN, counts)
    return generate(decoder, LABELS[:count], model(branch_seed))


def test_one_pass_a_level_is_next_scale_generation():
    expected = generate(NextScale(*PLAIN), LABELS, model(), keep_partial=True)
    decoder = MaskedRefinement(*PLAIN, ((1,), (4,)))
    jax.tree.map(
        np.testing.assert_array_equal,
        generate(decoder, LABELS, model(), keep_partial=True),
        expected,
    )


def test_the_confident_tokens_stay_and_the_branch_draws_the_others():
    first, level = draw(((1,), (4,))).targets, PYRAMID.level(1)
    refined = [draw(COUNTS, seed).targets for seed in (1, 2)]
    changed = np.zeros((len(LABELS), 4), bool)
    for tokens in refined:
        np.testing.assert_array_equal(tokens[:, :1], first[:, :1])
        changed |= tokens[:, level] != first[:, level]
    assert changed.any() and (changed.sum(1) <= 2).all()
    # Those that changed are the least likely two.
    net, params = model()

    def log_prob(params):
        inputs = CODEC.apply({"params": codec_params()}, first, method="teacher_inputs")
        null = np.full_like(LABELS, CLASSES)
        hiddens = tuple(net.hidden(params, inputs, y)[0][:, level] for y in (LABELS, null))
        settings, t = PLAIN[1].at(1, PYRAMID), PLAIN[0].weight(1, PYRAMID)
        args = hiddens, (1 + t, -t), first[:, level], settings
        return net.head.apply({"params": params["head"]}, *args, method="log_prob")

    rank = np.argsort(np.argsort(np.asarray(jax.jit(log_prob)(params)), 1), 1)
    assert not changed[rank >= 2].any()


def test_an_example_does_not_hang_on_its_batch():
    np.testing.assert_array_equal(draw(COUNTS, count=2).targets, draw(COUNTS).targets[:2])


def test_the_least_confident_are_taken_among_those_that_are_open():
    confidence = jnp.array([[3.0, 1.0, 2.0, 1.0]])
    for among, count, expected in (
        ([1, 1, 1, 1], 2, [0, 1, 0, 1]),
        ([1, 1, 1, 1], 1, [0, 1, 0, 0]),
        ([1, 0, 1, 1], 2, [0, 0, 1, 1]),
    ):
        found = least_confident(confidence, jnp.array([among], bool), count)
        np.testing.assert_array_equal(found, np.array([expected], bool))


def test_what_levels_add_alone_adds_up():
    """At the last level nothing is resized, so there it is the difference that the level makes."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, VOCAB, (2, PYRAMID.length)), jnp.int32)
    variables = {"params": codec_params()}
    sums = CODEC.apply(variables, tokens, method="features_by_level")
    own = own_inputs(CODEC, codec_params(), tokens, PYRAMID)
    last = (sums[-1] - sums[-2]).reshape(2, -1, CODE_DIM)
    np.testing.assert_allclose(own[:, PYRAMID.level(2)], last, atol=1e-5)
    mean = sums[0].mean((1, 2))
    np.testing.assert_allclose(own[:, 0], mean, atol=1e-5)


def test_what_does_not_fit_is_refused():
    def refuse(message, counts=COUNTS, **changes):
        with pytest.raises(ValueError, match=message):
            made = network(**changes)
            generate(MaskedRefinement(*PLAIN, counts), LABELS, (made, model()[1]))

    refuse(r"settles \[1, 3\] tokens, but the first levels have \[1, 4\]", ((1,), (1, 2)))
    refuse("numbers of one or more", ((1,), (0, 4)))
    refuse(r"settles \[1, 4, 16, 1\]", ((1,), (4,), (16,), (1,)))
    refuse("needs a network with model.masked_blocks", masked=None)
    bits = Field("bits", (4,), "uint8", num_values=2)
    refuse("which BitwiseHead does not give", head=BitwiseHead(bits, 32))


@pytest.mark.parametrize("variant", ["", "smallest", "d16", "d30"])
def test_the_variants_are_known(variant):
    config = load("family/hmar_masked", variant)
    build.check_config(config)
    made = build.network(config)
    assert made.masked.depth == config.model.masked_blocks

"""VA-pi: what it draws, how it is rewarded, and what follows for the gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import CODEC, PYRAMID, codec_params, filled, model
from test_contrastive import assert_close, largest

from var_jax import build
from var_jax.objectives.pixel_policy import PixelPolicy, advantages, policy_loss
from var_jax.tokenizer.vqvae import VQVAE

TOKENIZER = VQVAE(CODEC, 1, 8, (1,), 1, False, norm_groups=4)
NETWORK, PARAMS = model(depth=1)
OBJECTIVE = PixelPolicy(NETWORK, TOKENIZER, draws=3)
FROZEN = jax.tree.map(
    jnp.asarray,
    {
        "tokenizer": {**filled(TOKENIZER.init_params, 3), "codec": codec_params()},
        "reference": PARAMS,
    },
)
TOKENS = np.random.default_rng(1).integers(0, CODEC.vocab_size, (2, PYRAMID.length))
BATCH = {"label": jnp.array([0, 2]), "tokens": jnp.asarray(TOKENS, jnp.int32)}
KEYS = jax.vmap(jax.random.key)(jnp.arange(2))


@functools.cache
def step(kl_weight=0.0):
    """Parameters and frozen ones -> value, metrics and gradient."""
    loss = dataclasses.replace(OBJECTIVE, kl_weight=kl_weight).loss

    @jax.jit
    def run(params, frozen):
        return jax.value_and_grad(loss, has_aux=True)(params, frozen, (), BATCH, KEYS, 0)

    def found(params, frozen=FROZEN):
        (value, aux), grads = jax.device_get(run(params, frozen))
        return value, aux.metrics, grads

    return found


def teacher_forced(params):
    """Hidden states of a step's pass, and the keys of its draws."""
    draw_keys, pass_keys = jax.vmap(jax.random.split, out_axes=1)(KEYS)
    return OBJECTIVE.likelihood.forward(params, FROZEN, BATCH, pass_keys).hidden, draw_keys


@jax.jit
def drawn():
    """Tokens of a step, and their rewards."""
    hidden, keys = teacher_forced(PARAMS)
    tokens = OBJECTIVE.draw(PARAMS, hidden, keys)
    return tokens, OBJECTIVE.rewards(FROZEN, BATCH, BATCH["tokens"], tokens)


@jax.jit
def expected_gradient(tokens, weights):
    """Of a tenth of the mean cross entropy, less the draws' log-probabilities by their weights."""

    def log_prob(params, tokens):
        head = params["head"]["projection"]
        logits = teacher_forced(params)[0] @ head["kernel"] + head["bias"]
        every = jax.nn.log_softmax(logits)[:, None]
        return jnp.take_along_axis(every, tokens[..., None], -1)[..., 0].mean(-1)

    def loss(params):
        policy = -(log_prob(params, tokens) * weights).mean()
        return policy - 0.1 * log_prob(params, BATCH["tokens"][:, None]).mean()

    return jax.grad(loss)(PARAMS)


def test_the_gradient_is_that_of_the_draws_by_their_advantages():
    tokens, rewards = map(np.asarray, drawn())
    assert tokens.shape == (2, 3, PYRAMID.length) and (rewards < 0).all()
    assert len({row.tobytes() for row in tokens.reshape(6, -1)}) == 6
    value, metrics, grads = step()(PARAMS)
    # At ratios of 1 the policy's part is minus the mean advantage, which is none.
    assert value == pytest.approx(0.1 * metrics["loss_mean"], rel=1e-6)
    assert metrics["reward"] == pytest.approx(rewards.mean(), rel=1e-5)
    centred = rewards - rewards.mean(1, keepdims=True)
    expected = jax.device_get(
        expected_gradient(tokens, centred / rewards.std(1, ddof=1, keepdims=True))
    )
    assert_close(grads, expected, largest(expected))


def test_draws_that_decode_alike_leave_the_likelihood_alone():
    """As a decoder of zeros has them."""
    blind = {**jax.tree.map(jnp.zeros_like, FROZEN["tokenizer"]), "codec": codec_params()}
    _, metrics, grads = step()(PARAMS, {**FROZEN, "tokenizer": blind})
    assert metrics["reward"] == metrics["reward_spread"] == 0
    expected = jax.device_get(expected_gradient(drawn()[0], np.zeros((2, 3), np.float32)))
    assert_close(grads, expected, largest(expected))


def test_at_the_reference_the_divergence_is_0_and_has_no_gradient():
    assert dataclasses.replace(OBJECTIVE, kl_weight=50.0).frozen_parts().keys() == FROZEN.keys()
    (plain, _, free), (value, _, bound) = step()(PARAMS), step(50.0)(PARAMS)
    assert value == pytest.approx(plain, rel=1e-6)
    assert_close(bound, free, largest(free))
    other = filled(NETWORK.init_params, 5)
    assert step(50.0)(other)[0] > step()(other)[0] + 1


def test_advantages_are_deviations_from_the_group():
    assert advantages(jnp.array([[0.0, 2.0]])) == pytest.approx(np.array([[-0.5, 0.5]]) * 2**0.5)
    rewards = np.random.default_rng(3).normal(-0.1, 0.01, (5, 8)).astype(np.float32)
    found = advantages(jnp.asarray(rewards))
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(found, 1, ddof=1), 1, rtol=1e-3)
    assert not np.any(advantages(jnp.full((2, 3), -0.5)))


def test_the_loss_in_closed_form():
    """Ratios of 1/2, 1 and 2 of a good and of a bad map: a ratio counts until it has gone far
    enough in the direction that its map is pushed to."""
    log_prob = jnp.log(jnp.array([[0.5, 1.0, 2.0]] * 2))
    before, advantage = jnp.zeros((2, 3)), jnp.array([1.0, -3.0])
    good, bad = -(0.5 + 1 + 1.2), 3 * (0.8 + 1 + 2)
    assert policy_loss(log_prob, before, advantage) == pytest.approx((good + bad) / 6)
    gradient = jax.grad(policy_loss)(log_prob, before, advantage)
    np.testing.assert_allclose(gradient, np.array([[-0.5, -1, 0], [0, 3, 6]]) / 6, rtol=1e-6)
    # Of the reference 1, 2 and 1/2 times as likely as it is.
    reference = log_prob + jnp.log(jnp.array([1.0, 2.0, 0.5]))
    divergence = (0 + (2 - np.log(2) - 1) + (0.5 + np.log(2) - 1)) / 3
    found = policy_loss(log_prob, before, 0 * advantage, reference, kl_weight=0.3)
    assert found == pytest.approx(0.3 * divergence, rel=1e-6)


def test_rewards_compare_with_what_the_tokens_decode_to_or_with_the_picture():
    own = jnp.stack([BATCH["tokens"]] * 2, 1)
    image = np.random.default_rng(2).integers(0, 256, (2, *TOKENIZER.image_shape), np.uint8)
    from_images = dataclasses.replace(OBJECTIVE, from_images=True)

    @jax.jit
    def run(batch):
        shown = TOKENIZER.apply(
            {"params": FROZEN["tokenizer"]}, batch["tokens"], method="decode_tokens"
        )
        both = (o.rewards(FROZEN, batch, batch["tokens"], own) for o in (OBJECTIVE, from_images))
        return shown, *both

    shown, cached, compared = jax.device_get(run({**BATCH, "image": image}))
    assert np.abs(cached).max() < 1e-9
    expected = -np.square(shown - (image / 127.5 - 1)).mean((1, 2, 3))
    np.testing.assert_allclose(compared, np.stack([expected] * 2, 1), rtol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="give 2 draws or more, not 1"):
        dataclasses.replace(OBJECTIVE, draws=1)
    config = load("family/refiner", "smallest")
    with config.unlocked():
        config.train.objective = "va_pi"
    module = build.tokenizer(config)
    with pytest.raises(ValueError, match="RefinerHead does not give; choose model.head"):
        build.objective(config, build.LoadedTokenizer(module, None, "", config), False)


@pytest.mark.parametrize("variant", ["", "smallest", "d16", "d20", "d24", "d30"])
def test_every_variant_builds(variant):
    config = load("family/va_pi", variant)
    build.check_config(config)
    module = build.tokenizer(config)
    made = build.objective(config, build.LoadedTokenizer(module, None, "", config), False)
    assert isinstance(made, PixelPolicy) and made.network.transformer.drop_path_rate == 0

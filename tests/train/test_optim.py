import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from var_jax.objectives.base import Aux
from var_jax.train.optim import (
    SCHEDULES,
    OptimizerConfig,
    decay_mask,
    learning_rate_schedule,
    make_group_optimizer,
    make_optimizer,
    weight_decay_schedule,
)
from var_jax.train.state import TrainState
from var_jax.train.step import make_train_step


def official_lin0(step, warmup, num_steps, start, end):
    """The formula of the official trainer, with its constants."""
    if step < warmup:
        return start + (1 - start) * step / warmup
    passed = (step - warmup) / (num_steps - 1 - warmup)
    if passed < 0.05:
        return 1.0
    return end + (1 - end) * (1 - passed) / 0.95


def test_lin0_is_the_official_schedule():
    config = OptimizerConfig(3e-4, warmup_steps=20, end_factor=0.1)
    schedule = learning_rate_schedule(config, 1000)
    for step in (0, 1, 19, 20, 40, 68, 69, 70, 500, 999):
        expected = 3e-4 * official_lin0(step, 20, 1000, 0.005, 0.1)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules_start_at_the_peak_and_end_at_the_end_factor(name):
    config = OptimizerConfig(1.0, schedule=name, warmup_steps=10, end_factor=0.2)
    schedule = learning_rate_schedule(config, 100)
    np.testing.assert_allclose([schedule(10), schedule(99)], [1.0, 0.2], rtol=1e-5)
    values = [float(schedule(s)) for s in range(10, 100)]
    assert values == sorted(values, reverse=True)


def test_weight_decay_follows_half_a_cosine():
    schedule = weight_decay_schedule(OptimizerConfig(1.0, weight_decay_end=0.09), 101)
    expected = 0.09 + (0.05 - 0.09) * (0.5 + 0.5 * math.cos(math.pi * 0.5))
    np.testing.assert_allclose(
        [schedule(0), schedule(50), schedule(100)], [0.05, expected, 0.09], rtol=1e-5
    )


def test_decay_leaves_out_what_the_official_groups_leave_out():
    params = {
        "class_embedding": 0,
        "position": 0,
        "start_position": 0,
        "level": 0,
        "blocks": {
            "attention": {"qkv_kernel": 0, "q_bias": 0, "v_bias": 0, "log_scale": 0},
            "adaln": {"offset": 0, "kernel": 0, "bias": 0},
        },
    }
    decaying = {
        "/".join(p.key for p in path)
        for path, value in jax.tree_util.tree_leaves_with_path(decay_mask(params))
        if value
    }
    assert decaying == {"class_embedding", "blocks/attention/qkv_kernel", "blocks/adaln/kernel"}


def test_a_step_is_adamw_with_clipping():
    config = OptimizerConfig(0.1, "constant", clip_norm=1.0, weight_decay=0.5)
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    grads = {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([4.0])}
    tx = make_optimizer(config, 10)
    updates, _ = tx.update(grads, tx.init(params), params, step=0)
    new = optax.apply_updates(params, updates)
    # The first Adam step has length 1 in each coordinate with a gradient, whatever the clipping.
    np.testing.assert_allclose(new["kernel"], [1.0 - 0.1 - 0.05, -2.0 + 0.1], rtol=1e-5)
    np.testing.assert_allclose(new["bias"], [2.9], rtol=1e-5)


def test_a_skipped_update_does_not_hold_back_the_schedule():
    class Line:
        """The gradient of w is the batch's x."""

        def loss(self, params, frozen, stats, batch, keys, step):
            value = (params["w"] * batch["x"]).sum()
            return value, Aux({"loss": value})

        def after_update(self, params, ema, stats, carry, key, step):
            return params, ema, stats

    config = OptimizerConfig(1.0, "linear", warmup_steps=4, weight_decay=0)
    optimizer, rate = make_optimizer(config, 10), learning_rate_schedule(config, 10)
    params = {"w": jnp.zeros(())}
    zero = jnp.int32(0)
    state = TrainState(zero, params, optimizer.init(params), None, (), zero)
    step = jax.jit(make_train_step(Line(), optimizer))
    for x in (np.nan, np.nan, 2.0):
        state, metrics = step(state, {}, {"x": jnp.float32([x]), "index": jnp.arange(1)})
    # Adam's first update has length 1.
    np.testing.assert_allclose(state.params["w"], -rate(2), rtol=1e-5)
    assert metrics["skipped"] == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_of_a_python_step_is_computed_on_the_host(name):
    schedule = learning_rate_schedule(OptimizerConfig(3e-4, name, warmup_steps=3), 20)
    on_host = [schedule(step) for step in range(20)]
    assert all(isinstance(rate, np.floating) for rate in on_host)
    np.testing.assert_allclose(on_host, jax.vmap(schedule)(jnp.arange(20)), rtol=1e-6)


def test_groups_have_their_own_settings():
    tx = make_group_optimizer(
        {
            "a": OptimizerConfig(1.0, "constant", weight_decay=0),
            "b": OptimizerConfig(0.5, "constant", weight_decay=0),
        },
        10,
    )
    params = {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(2)}}
    updates, _ = tx.update(params, tx.init(params), params, step=0)
    np.testing.assert_allclose(updates["a"]["w"], -1.0, rtol=1e-5)
    np.testing.assert_allclose(updates["b"]["w"], -0.5, rtol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'step'"):
        learning_rate_schedule(OptimizerConfig(1.0, "step"), 10)
    with pytest.raises(ValueError, match="warmup_steps 10"):
        learning_rate_schedule(OptimizerConfig(1.0, warmup_steps=10), 10)

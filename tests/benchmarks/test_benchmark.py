"""Every part of a small config can be timed, and what is printed follows from what is measured."""

import jax
import pytest
from commands import import_command
from recipes import load

from var_jax import build
from var_jax.parallel import sharding
from var_jax.plan import programs

benchmark = import_command("benchmarks.benchmark")


@pytest.fixture(scope="module")
def config():
    return load("mnist5k", "smallest")


def test_a_program_is_timed(config):
    one = sharding.make_mesh(devices=jax.devices()[:1])
    program = programs.train_step(config, one, 16)
    result = benchmark.time_program(program, seconds=0.0, repeats=3)
    assert result["images"] == 16 and result["seconds"]["runs"] == 3
    assert result["seconds"]["low"] <= result["seconds"]["median"] <= result["seconds"]["high"]
    assert result["images_per_second"] == 16 / result["seconds"]["median"]
    # Three forward passes by the model's formula, and little beside them.
    assert 0.8 < result["program_flops"] / result["model_flops"] < 1.2


def test_attention_counts_visible_keys_only(config):
    mesh = build.make_mesh(config)
    program = benchmark.attention_program(config, mesh, 8, "xla")
    # Levels of 1, 4, 16, 16 tokens see 1, 5, 21, 37 keys; width 64.
    pairs = 1 * 1 + 4 * 5 + 16 * 21 + 16 * 37
    assert program.model_flops == 7 * 2 * 8 * 64 * pairs
    q, k, v, scale = programs.made_arguments(program)
    out = jax.eval_shape(program.function, q, k, v, scale)
    assert [x.shape for x in out] == [(8, 37, 1, 64)] * 3


def test_input(config):
    result = benchmark.time_input(config, 32, seconds=0.0)
    assert result["images"] == 32 and result["images_per_second"] > 0

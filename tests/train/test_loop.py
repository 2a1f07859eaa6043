"""The loop on a problem that costs nothing: linear regression."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.checkpoint import Checkpointer
from var_jax.objectives.base import Aux
from var_jax.parallel import sharding
from var_jax.train import log as train_log
from var_jax.train import loop, optim
from var_jax.train.experiment import Evaluation, Experiment, TrainSettings
from var_jax.train.log import TrainingDiverged
from var_jax.train.metrics import read_metrics

BATCH = 8


@dataclasses.dataclass(frozen=True)
class Regression:
    """y = x w with a random draw an example, a running mean as stats, and noise after updates."""

    def init_params(self, key):
        init = nn.with_logical_partitioning(nn.initializers.normal(), ("embed", None))
        return {"kernel": init(key, (8, 1), jnp.float32)}

    def init_stats(self):
        return jnp.zeros(())

    def loss(self, params, frozen, stats, batch, keys, step):
        noise = jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys)
        error = batch["x"] @ params["kernel"] + 0.01 * noise - batch["x"] @ frozen["target"]
        value = jnp.square(error).mean()
        return value, Aux({"loss": value, "by_output": jnp.square(error).mean(0)}, batch["x"][:, 0])

    def after_update(self, params, ema, stats, carry, key, step):
        noise = 1e-3 * jax.random.normal(key, (8, 1))
        # Weighted, so that the examples' order matters.
        seen = (carry * jnp.arange(len(carry))).sum()
        return {"kernel": params["kernel"] + noise}, ema, stats + seen


def make_batch(step, poison=()):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(BATCH, 8)).astype(np.float32)
    if step in poison:
        x[3] = np.nan
    index = np.arange(step * BATCH, (step + 1) * BATCH)
    return {"x": x, "index": index}


def norm(state, step):
    return Evaluation({"norm": jnp.abs(state.params["kernel"]).sum()})


def run(
    workdir,
    num_steps=10,
    poison=(),
    stop_at=None,
    devices=1,
    preset="replicated",
    evaluator=norm,
    **settings,
):
    def batches(start):
        for step in range(start, 10**9):
            yield make_batch(step, poison)

    config = optim.OptimizerConfig(0.1, warmup_steps=1, weight_decay=0.1)
    mesh_shape = dict(fsdp=-1, data=1) if preset == "fsdp" else {}
    options = dict(log_every=2, save_every=4, ema_decay=0.9) | settings
    experiment = Experiment(
        name="regression",
        objective_at=lambda step: Regression(),
        optimizer=optim.make_optimizer(config, 10),
        frozen={"target": np.ones((8, 1), np.float32)},
        batches=batches,
        settings=TrainSettings(num_steps=num_steps, batch_size=BATCH, **options),
        mesh=sharding.make_mesh(devices=jax.devices()[:devices], **mesh_shape),
        preset=preset,
        metadata={"kind": "test"},
        learning_rate=optim.learning_rate_schedule(config, 10),
        evaluators=[evaluator],
    )
    return loop.train(experiment, workdir, lambda step: step == stop_at)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_resume_equals_uninterrupted_to_the_bit(tmp_path):
    straight = run(tmp_path / "straight")
    for stop in (3, 4, 7):
        stopped = run(tmp_path / f"stop{stop}", stop_at=stop)
        assert int(stopped.step) == stop
        resumed = run(tmp_path / f"stop{stop}")
        assert_equal(resumed, straight)
        lines = read_metrics(tmp_path / f"stop{stop}")
        steps = [m["step"] for m in lines]
        assert steps == sorted(steps)
        assert lines[-1]["eval/norm"] == read_metrics(tmp_path / "straight")[-1]["eval/norm"]


KILLABLE = """
import sys, time
sys.path[:0] = sys.argv[2:]
import test_loop

def slow_batch(step, poison):
    print(step, flush=True)
    time.sleep(0.02)
    return make_batch(step, poison)

make_batch, test_loop.make_batch = test_loop.make_batch, slow_batch
test_loop.run(sys.argv[1], num_steps=60, save_every=2)
"""


def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path):
    """KILL_POINTS=20 in the environment makes it a soak test."""
    points = int(os.environ.get("KILL_POINTS", "3"))
    here = pathlib.Path(__file__)
    command = [
        sys.executable,
        "-c",
        KILLABLE,
        str(tmp_path / "killed"),
        here.parent,
        here.parents[2],
    ]

    def start():
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True
        )

    rng = np.random.default_rng(points)
    for _ in range(points):
        child = start()
        # Some steps further than the last time, at any moment of a step or of a save.
        for _ in range(int(rng.integers(1, 8))):
            child.stdout.readline()
        time.sleep(rng.uniform(0, 0.06))
        child.send_signal(signal.SIGKILL)
        child.communicate()
    child = start()
    assert child.wait() == 0, child.stderr.read()

    straight = run(tmp_path / "straight", num_steps=60, save_every=2)
    steps = {}
    for name in ("killed", "straight"):
        with Checkpointer(tmp_path / name, read_only=True) as saved:
            steps[name] = saved.restore(jax.eval_shape(lambda: straight))
    assert steps["killed"][2] == steps["straight"][2] == 60
    assert_equal(steps["killed"][0], steps["straight"][0])
    times = ("images_per_second", "images_per_second_per_chip", "data_wait_ms", "goodput")
    metrics = [
        [
            {k: v for k, v in m.items() if k not in times and not k.endswith("_seconds")}
            for m in lines
        ]
        for lines in map(read_metrics, (tmp_path / "killed", tmp_path / "straight"))
    ]
    assert metrics[0] == metrics[1]


def test_an_evaluator_that_fails_costs_no_work_and_does_not_fail_again(tmp_path):
    straight = run(tmp_path / "straight", evaluate_every=3)

    def failing(state, step):
        if step == 6:
            raise OSError("the reference is gone")
        return norm(state, step)

    settings = dict(evaluate_every=3, save_every=100, evaluator=failing)
    with pytest.raises(OSError, match="the reference is gone"):
        run(tmp_path / "failed", **settings)
    with Checkpointer(tmp_path / "failed", read_only=True) as saved:
        assert saved.latest_step() == 6  # Saved although no multiple of save_every: evaluated.
    assert_equal(run(tmp_path / "failed", **settings), straight)


def test_the_log_says_where_the_time_goes(tmp_path):
    run(tmp_path, evaluate_every=3)
    last = [line for line in read_metrics(tmp_path) if "goodput" in line][-1]
    parts = ("compilation", "checkpoint", "evaluation", "data_wait")
    assert all(last[f"{part}_seconds"] > 0 for part in parts) and 0 <= last["goodput"] < 1


def test_a_finished_run_stays_as_it_is(tmp_path):
    first = run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert_equal(run(tmp_path), first)
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("preset", ["replicated", "fsdp"])
def test_eight_devices_equal_one(tmp_path, preset):
    one = run(tmp_path / "one")
    eight = run(tmp_path / "eight", devices=8, preset=preset)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, eight)
    # And what eight wrote, one goes on from.
    state = run(tmp_path / "eight", num_steps=10)
    assert int(state.step) == 10


def test_microbatches_equal_the_large_batch(tmp_path):
    one = run(tmp_path / "one")
    four = run(tmp_path / "four", microbatches=4)
    np.testing.assert_allclose(one.params["kernel"], four.params["kernel"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.stats, four.stats, rtol=1e-5)


def test_a_bad_batch_changes_nothing_and_is_counted(tmp_path, caplog):
    before = run(tmp_path / "a", num_steps=3)
    with caplog.at_level("WARNING"):
        after = run(tmp_path / "b", num_steps=4, poison=(3,))
    for name in ("params", "opt_state", "ema", "stats"):
        assert_equal(getattr(before, name), getattr(after, name))
    assert int(after.step) == 4 and int(after.skipped) == 1
    assert read_metrics(tmp_path / "b")[-2]["skipped"] == 1
    assert "samples 24..31" in caplog.text
    recovered = run(tmp_path / "c", num_steps=6, poison=(3,))
    assert int(recovered.skipped) == 0


def test_a_run_that_diverges_stops_and_names_the_last_good_step(tmp_path):
    with pytest.raises(TrainingDiverged, match="3 updates in a row.*step 2"):
        run(tmp_path, poison=range(2, 10), max_skipped=3)


def test_a_loss_spike_is_reported_with_its_samples(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(train_log, "_SPIKE_WINDOW", 5)
    settings = TrainSettings(20, BATCH, log_every=0)
    experiment = Experiment("x", None, None, None, settings, sharding.make_mesh(), "fsdp", {})
    log = train_log.TrainLog(experiment, None, 0)
    with caplog.at_level("WARNING"):
        for step, loss in enumerate([1.0, 1.1, 0.9, 1.0, 1.0, 9.0]):
            log.add(step, dict(loss=loss, gradient_norm=1.0, skipped=0, skipped_in_row=0), 0.0)
        log.flush()
    assert "Step 5" in caplog.text and "samples 40..47" in caplog.text


def test_another_tokenizer_is_refused(tmp_path):
    run(tmp_path, num_steps=2)
    with Checkpointer(tmp_path) as checkpointer:
        saved = checkpointer.read_metadata()
    with pytest.raises(ValueError, match="another workdir"):
        loop._check_same_tokenizer(saved, {"tokenizer_fingerprint": "abc"}, tmp_path)


def test_metrics_are_json_lines_and_damage_is_passed_over(tmp_path):
    run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    named = {"loss", "by_output/0", "learning_rate", "images_per_second", "data_wait_ms"}
    assert named <= set(lines[0])
    path.write_text(path.read_text() + '{"step": 99, "lo')
    assert [m["step"] for m in read_metrics(tmp_path)] == [m["step"] for m in lines]


def test_a_batch_that_does_not_divide_is_refused_before_anything(tmp_path):
    with pytest.raises(ValueError, match="Batch size 8"):
        run(tmp_path, microbatches=3)

"""Joining, preflight and stopping; two real processes where it takes them."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
from ports import free_port

from var_jax.parallel import distributed
from var_jax.parallel.distributed import Cluster, PreflightError

ROOT = pathlib.Path(__file__).parents[2]


def test_single_process_checks(tmp_path, monkeypatch):
    # JAX looks for a cluster only before its first computation, which other tests have made.
    monkeypatch.setattr(distributed, "_join_by_jax", lambda deadline_seconds: None)
    assert distributed.initialize(workdir=tmp_path / "run", data_paths=[tmp_path]) is None
    with pytest.raises(PreflightError, match="Cannot read the data at .*missing"):
        distributed.initialize(data_paths=[tmp_path / "missing"])
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="Cannot write to"):
        distributed.initialize(workdir=tmp_path / "file" / "run", data_paths=[tmp_path / "file"])
    with pytest.raises(PreflightError, match="or none of them"):
        distributed.initialize(coordinator="localhost:1")


def test_clusters_are_read_from_the_environment(monkeypatch):
    monkeypatch.setattr(distributed, "has_tpu_chips", lambda: True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    monkeypatch.setenv("TPU_WORKER_ID", "2")
    cluster = distributed.detect_cluster()
    assert cluster == Cluster("a:8482", 4, 2, ("a", "b", "c", "d"))
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "first:8080")
    assert distributed.detect_cluster() == Cluster("first:8482", 8, 6, ())
    # A TPU VM: the metadata server.
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name)
    monkeypatch.delenv("MEGASCALE_SLICE_ID")
    monkeypatch.delenv("MEGASCALE_COORDINATOR_ADDRESS")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    answers = {
        "worker-network-endpoints": "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2",
        "agent-worker-number": "1",
        "tpu-env": "ZONE: 'us-east5-a'\nMEGASCALE_NUM_SLICES: ''",
    }
    monkeypatch.setattr(distributed, "_instance_attribute", answers.get)
    assert distributed.detect_cluster() == Cluster("10.0.0.1:8482", 2, 1, ("10.0.0.1", "10.0.0.2"))
    monkeypatch.setattr(distributed, "has_tpu_chips", lambda: False)
    assert distributed.detect_cluster() is None


def test_chips_are_not_taken_from_the_disks_and_network_cards_of_their_maker(tmp_path):
    def add(name, vendor, kind):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")

    add("0000:00:03.0", "0x1ae0", "0x020000")
    add("0000:00:04.0", "0x1ae0", "0x010802")
    add("0000:00:05.0", "0x10de", "0x120000")
    assert not distributed.has_tpu_chips(str(tmp_path))
    add("0000:00:06.0", "0x1ae0", "0x120000")
    assert distributed.has_tpu_chips(str(tmp_path))
    assert not distributed.has_tpu_chips(str(tmp_path / "no_bus"))


def test_a_command_for_one_host_does_not_wait_for_others(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(distributed, "detect_cluster", lambda: None)
    distributed.check_one_host()
    monkeypatch.setattr(distributed, "detect_cluster", lambda: Cluster("a:1", 4, 2, ()))
    with pytest.raises(PreflightError, match="is one of 4 hosts of a TPU slice"):
        distributed.check_one_host()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    distributed.check_one_host()


def test_stop_signal_of_one_process():
    before = signal.getsignal(signal.SIGTERM)
    with distributed.StopSignal() as stop:
        assert not stop.requested(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(1) and stop.requested(2)
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


PREAMBLE = """
    import os, signal, sys, time
    import jax, jax.numpy as jnp, numpy as np
    import flax.linen as nn
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    from var_jax.parallel import arrays, distributed, sharding
    from var_jax.checkpoint import Checkpointer
    process, coordinator, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]

    def join(seconds=60):
        try:
            distributed.initialize(workdir=workdir, coordinator=coordinator, num_processes=2,
                                   process_id=process, deadline_seconds=seconds,
                                   heartbeat_seconds=10)
        except distributed.PreflightError as error:
            sys.exit(str(error))
"""


def start(process, coordinator, workdir, code):
    env = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        PYTHONPATH=str(ROOT),
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )
    text = textwrap.dedent(PREAMBLE) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-u", "-c", text, str(process), coordinator, str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def run_both(workdir, code):
    coordinator = f"localhost:{free_port()}"
    children = [start(i, coordinator, workdir, code) for i in range(2)]
    ends = [child.communicate() for child in children]
    return [(child.returncode, *end) for child, end in zip(children, ends, strict=True)]


def printed(out, word):
    return [line for line in out.splitlines() if line.startswith(word)]


def test_a_missing_process_ends_the_run(tmp_path):
    child = start(0, f"localhost:{free_port()}", tmp_path, "join(seconds=3)")
    _, err = child.communicate()
    assert child.returncode == 1
    assert "1 of 2 processes did not come within 3 s: process 1" in err


TRAIN = """
    join()
    mesh = sharding.make_mesh(data=2, fsdp=4)
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed", "mlp"))
    make = lambda key: {"w": init(key, (16, 8)), "step": jnp.int32(0)}
    state, shardings = sharding.init_sharded(make, jax.random.key(0), mesh=mesh, preset="fsdp")

    def step(state, x):
        loss, grad = jax.value_and_grad(lambda w: jnp.mean(jnp.square(x @ w)))(state["w"])
        return {"w": state["w"] - 0.1 * grad, "step": state["step"] + 1}, loss

    step = jax.jit(step, out_shardings=(shardings, None))
    saver = Checkpointer(workdir)
    first = saver.latest_step() or 0
    if first:
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                              state, shardings)
        state, metadata, first = saver.restore(target)
        assert metadata["note"] == "two processes"
    with sharding.activate(mesh, "fsdp"), distributed.StopSignal() as stop:
        for i in range(first, LAST):
            x = np.random.default_rng(i).normal(size=(16, 16)).astype(np.float32)
            rows = sharding.batch_sharding(mesh)
            batch = arrays.global_rows(x[process * 8 : process * 8 + 8], rows, 16)
            state, loss = step(state, batch)
            print("loss", i + 1, float(loss).hex())
            HOOK
            saver.check()
            stopping = stop.requested(i + 1)
            if stopping or (i + 1) % 4 == 0:
                saver.save(i + 1, state, {"note": "two processes"})
            if stopping:
                print("stopped", i + 1)
                break
    saver.close()
    print("weights", float(jnp.sum(state["w"])).hex())
"""


def train(last, hook=""):
    return TRAIN.replace("LAST", str(last)).replace("HOOK", hook)


def test_two_processes_train_save_resume_and_pass_over_damage(tmp_path):
    whole = run_both(tmp_path / "whole", train(12))
    assert [end[0] for end in whole] == [0, 0], whole[0][2][-2000:] + whole[1][2][-2000:]
    losses = printed(whole[0][1], "loss")
    assert len(losses) == 12 and losses == printed(whole[1][1], "loss")

    run_both(tmp_path / "parts", train(8))
    # The newest step is damaged: both processes take the one before.
    newest = tmp_path / "parts" / "checkpoints" / "8"
    largest = max((newest / "state").rglob("d/*"), key=lambda f: f.stat().st_size)
    os.truncate(largest, 10)
    resumed = run_both(tmp_path / "parts", train(12))
    assert [end[0] for end in resumed] == [0, 0], resumed[0][2][-2000:] + resumed[1][2][-2000:]
    assert printed(resumed[0][1], "loss") == losses[4:]
    assert printed(resumed[1][1], "weights") == printed(whole[0][1], "weights")
    assert newest.with_name("8.unreadable").is_dir()


def test_sigterm_on_one_of_two_stops_and_saves_on_both(tmp_path):
    hook = "time.sleep(0.05); i == 20 and process == 1 and os.kill(os.getpid(), signal.SIGTERM)"
    ends = run_both(tmp_path, train(2000, hook))
    assert [end[0] for end in ends] == [0, 0], ends[0][2][-2000:] + ends[1][2][-2000:]
    stopped = [printed(end[1], "stopped") for end in ends]
    assert stopped[0] == stopped[1] and len(stopped[0]) == 1
    step = int(stopped[0][0].split()[1])
    assert (tmp_path / "checkpoints" / str(step)).is_dir()


def test_one_of_two_killed_ends_the_other_and_both_resume(tmp_path):
    whole = run_both(tmp_path / "whole", train(12))
    hook = "i == 6 and process == 1 and os.kill(os.getpid(), signal.SIGKILL)"
    first, second = run_both(tmp_path / "killed", train(12, hook))
    assert second[0] == -signal.SIGKILL
    # The survivor does not wait for ever, and says which one is gone.
    assert first[0] == -signal.SIGABRT
    assert "tasks are unhealthy (stopped sending heartbeats):\n1\n" in first[2]
    resumed = run_both(tmp_path / "killed", train(12))
    assert [end[0] for end in resumed] == [0, 0], resumed[0][2][-2000:] + resumed[1][2][-2000:]
    assert printed(resumed[0][1], "loss")[-5:] == printed(whole[0][1], "loss")[-5:]
    assert printed(resumed[1][1], "weights") == printed(whole[0][1], "weights")


def test_what_the_hosts_found_must_be_equal(tmp_path):
    code = """
        join()
        distributed.check_agreement({"images": "10", "list of classes": "a"})
        try:
            distributed.check_agreement({"images": str(10 + process), "list of classes": "a"})
        except distributed.PreflightError as error:
            print("problem", error)
    """
    ends = run_both(tmp_path, code)
    assert [end[0] for end in ends] == [0, 0], ends[0][2][-2000:] + ends[1][2][-2000:]
    problems = [printed(end[1], "problem") for end in ends]
    assert problems[0] == problems[1] and len(problems[0]) == 1
    assert "The images is 11 on process 1 (" in problems[0][0]

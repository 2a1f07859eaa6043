"""Checkpoints: equal bytes on any mesh; nothing good is lost whatever happens to the files."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import DAMAGE, truncate_array
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from var_jax import checkpoint
from var_jax.checkpoint import Checkpointer, CheckpointError, files
from var_jax.parallel import sharding


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: object
    ema: dict | None = None


def specs(mesh):
    return {"codec": {"book": P()}, "transformer": {"w": P("fsdp", "tensor"), "b": P()}}


def make_state(step, mesh, rows=64):
    rng = np.random.default_rng(step)
    values = {
        "codec": {"book": rng.normal(size=(8, 4)).astype(np.float32)},
        "transformer": {
            "w": rng.normal(size=(rows, 8)).astype(np.float32),
            "b": rng.normal(size=(3,)).astype(jnp.bfloat16),
        },
    }
    params = jax.tree.map(
        lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), values, specs(mesh)
    )
    tx = optax.adamw(1e-3)
    opt_state = jax.tree.map(lambda x: x + 1, tx.init(params))
    count = jax.device_put(jnp.int32(step), NamedSharding(mesh, P()))
    return State(count, params, opt_state, jax.tree.map(lambda x: x * 2, params))


def abstract(mesh, rows=64):
    state = jax.eval_shape(lambda: make_state_on_host(rows))

    def place(path, leaf):
        spec = P("fsdp", "tensor") if leaf.shape == (rows, 8) else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, state)


def make_state_on_host(rows):
    params = {
        "codec": {"book": jnp.zeros((8, 4))},
        "transformer": {"w": jnp.zeros((rows, 8)), "b": jnp.zeros((3,), jnp.bfloat16)},
    }
    return State(jnp.int32(0), params, optax.adamw(1e-3).init(params), params)


def mesh_of(data=1, fsdp=1, tensor=1):
    return sharding.make_mesh(data, fsdp, tensor, jax.devices()[: data * fsdp * tensor])


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def save_steps(path, steps, mesh=None, **options):
    with Checkpointer(path, **options) as saver:
        for step in steps:
            saver.save(step, make_state(step, mesh or mesh_of(2, 4)), {"config": {"depth": 2}})


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 8, 1), (2, 2, 2)])
def test_saved_on_eight_devices_restored_on_any_mesh(tmp_path_factory, shape):
    path = tmp_path_factory.getbasetemp() / "eight"
    if not path.exists():
        save_steps(path, [7])
    mesh = mesh_of(*shape)
    state, metadata, step = Checkpointer(path, read_only=True).restore(abstract(mesh))
    assert step == 7 and int(state.step) == 7 and metadata["config"] == {"depth": 2}
    assert_equal(state, make_state(7, mesh_of()))
    assert state.params["transformer"]["w"].sharding.spec == P("fsdp", "tensor")
    assert isinstance(state.opt_state, tuple) and isinstance(state, State)


def test_one_part_is_restored_alone(tmp_path):
    save_steps(tmp_path, [3])
    reader = Checkpointer(tmp_path, read_only=True)
    expected = make_state(3, mesh_of())
    params, _, step = reader.restore_params()
    assert step == 3
    assert_equal(params, expected.params)
    ema, _, _ = reader.restore_params("ema", as_numpy=True)
    assert isinstance(ema["transformer"]["w"], np.ndarray)
    assert_equal(ema, expected.ema)
    codec, _, _ = reader.restore_params("params/codec")
    assert_equal(codec, expected.params["codec"])
    mesh = mesh_of(1, 4)
    target = {
        "w": jax.ShapeDtypeStruct((64, 8), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp"))),
        "b": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=NamedSharding(mesh, P())),
    }
    part, _, _ = reader.restore_params("params/transformer", target)
    assert part["w"].dtype == jnp.bfloat16 and part["w"].sharding.spec == P("fsdp")
    np.testing.assert_array_equal(part["w"], expected.params["transformer"]["w"].astype("bfloat16"))
    with pytest.raises(KeyError, match="no 'params/vae': params holds codec, transformer"):
        reader.restore_params("params/vae")


def test_retention_keeps_newest_and_best(tmp_path):
    mesh = mesh_of()
    with Checkpointer(tmp_path, max_to_keep=2, best_metric="fid") as saver:
        for step, fid in [(1, 9.0), (2, 4.0), (3, 5.0), (4, None), (5, float("nan")), (6, None)]:
            assert saver.save(step, make_state(step, mesh), {})
            saver.note_metrics(step, {} if fid is None else {"fid": fid})
        saver.wait()
        assert saver.steps() == [2, 5, 6] and saver.best_step() == 2
    # What is best is known to the next run of the same command too.
    with Checkpointer(tmp_path, max_to_keep=1, best_metric="fid") as saver:
        assert saver.best_step() == 2
        saver.save(7, make_state(7, mesh), {})
        saver.wait()
        assert saver.steps() == [2, 7]


def test_a_step_is_saved_once(tmp_path):
    mesh = mesh_of()
    with Checkpointer(tmp_path) as saver:
        assert saver.save(10, make_state(10, mesh), {})
        assert saver.save(12, make_state(12, mesh), {})
        assert not saver.save(12, make_state(12, mesh), {})
        with pytest.raises(ValueError, match="not JSON"):
            saver.save(20, make_state(20, mesh), {"config": object()})
    assert Checkpointer(tmp_path, read_only=True).steps() == [10, 12]


def test_metadata_inspect_and_paths(tmp_path):
    save_steps(tmp_path, [4, 8])
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "8"):
        seen = checkpoint.inspect(path)
        assert (seen.step, seen.steps, seen.passed_over) == (8, [4, 8], {})
    assert seen.metadata["packages"]["jax"] == jax.__version__
    assert abs(seen.metadata["wall_time"] - time.time()) < 600
    assert seen.arrays["params"]["transformer"]["b"] == jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    assert checkpoint.inspect(tmp_path, step=4).step == 4
    assert Checkpointer(tmp_path / "checkpoints" / "4").restore(abstract(mesh_of()))[2] == 4
    assert Checkpointer(tmp_path, read_only=True).read_metadata()["step"] == 8
    with pytest.raises(FileNotFoundError, match=r"step 5 in .*; there are \[4, 8\]"):
        Checkpointer(tmp_path, read_only=True).restore(abstract(mesh_of()), step=5)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        Checkpointer(tmp_path / "empty").restore(abstract(mesh_of()))


def test_another_state_is_an_error_and_no_damage(tmp_path):
    save_steps(tmp_path, [1, 2])
    with Checkpointer(tmp_path) as reader:
        with pytest.raises(ValueError, match=r"params/transformer/w has shape \(64, 8\) there"):
            reader.restore(abstract(mesh_of(), rows=32))
        with pytest.raises(ValueError, match="is not wanted here"):
            reader.restore(abstract(mesh_of()).replace(ema=None))
        assert reader.steps() == [1, 2]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_step_is_passed_over(tmp_path, damage, caplog):
    save_steps(tmp_path, [1, 2])
    DAMAGE[damage](tmp_path / "checkpoints" / "2")
    with Checkpointer(tmp_path, read_only=True) as reader:
        with pytest.raises(CheckpointError, match="2 cannot be read"):
            reader.restore(abstract(mesh_of(2, 4)), step=2)
        params, _, step = reader.restore_params()
        assert step == 1
        assert reader.steps() == [1, 2]
    # What only looks does the same, as far as it shows without reading the arrays.
    if damage not in ("truncated_unlisted", "no_list_no_arrays"):
        seen = checkpoint.inspect(tmp_path)
        assert seen.step == 1 and seen.metadata["step"] == 1 and list(seen.passed_over) == [2]
        assert "\n" not in seen.passed_over[2] and seen.passed_over[2].endswith(".")
        with pytest.raises(CheckpointError, match="2 cannot be read: ") as error:
            checkpoint.inspect(tmp_path / "checkpoints" / "2")
        assert "\n" not in str(error.value)
    with Checkpointer(tmp_path) as saver:
        state, _, step = saver.restore(abstract(mesh_of(2, 4)))
        assert step == 1
        assert_equal(state, make_state(1, mesh_of()))
        assert "passed over" in caplog.text
        # The run goes on, writes the step anew, and the damaged files are still there.
        assert saver.save(2, make_state(2, mesh_of()), {})
        saver.wait()
        assert saver.restore(abstract(mesh_of()))[2] == 2
    assert (tmp_path / "checkpoints" / "2.unreadable").is_dir()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
def test_orbax_bookkeeping_lost(tmp_path, name):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / name).unlink(missing_ok=True)
    with Checkpointer(tmp_path) as saver:
        assert saver.restore(abstract(mesh_of()))[2] in (1, 2)


def test_no_readable_step_stops_the_run(tmp_path):
    save_steps(tmp_path, [1])
    truncate_array(tmp_path / "checkpoints" / "1")
    for read in (checkpoint.inspect, lambda path: Checkpointer(path).restore(abstract(mesh_of()))):
        with pytest.raises(CheckpointError, match="None of the checkpoints .* another workdir"):
            read(tmp_path)


def test_reading_a_good_checkpoint_warns_of_nothing(tmp_path, caplog):
    save_steps(tmp_path, [1, 2])
    caplog.clear()
    with Checkpointer(tmp_path, read_only=True) as reader:
        reader.restore(abstract(mesh_of()))
        reader.restore_params("params", as_numpy=True)
    assert not caplog.text


def test_foreign_files_stay(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "a.txt").write_text("mine")
    (folder / "99.orbax-checkpoint-tmp").mkdir()
    save_steps(tmp_path, range(1, 6), mesh_of(), max_to_keep=1)
    assert (folder / "notes" / "a.txt").read_text() == "mine"
    assert (folder / "99.orbax-checkpoint-tmp").is_dir()
    assert Checkpointer(tmp_path).steps() == [5]


def test_unwritable_workdir_fails_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot write to .*check that the path exists"):
        Checkpointer(tmp_path / "file" / "run")


def test_errors_of_the_writer_stop_the_run(tmp_path, monkeypatch):
    mesh = mesh_of()
    with Checkpointer(tmp_path) as saver:
        saver.save(1, make_state(1, mesh), {})
        saver.wait()

        def fail(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("orbax.checkpoint._src.path.atomicity.AtomicRenameTemporaryPath.finalize",
                            fail)  # fmt: skip
        monkeypatch.setattr("orbax.checkpoint._src.path.atomicity.CommitFileTemporaryPath.finalize",
                            fail)  # fmt: skip
        saver.save(2, make_state(2, mesh), {})
        with pytest.raises(CheckpointError, match="step 2 .*No space left.*last good step is 1"):
            for _ in range(1000):
                saver.check()
                time.sleep(0.01)
        monkeypatch.undo()
        assert saver.steps() == [1]
        assert saver.restore(abstract(mesh))[2] == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_full_disk_loses_no_good_checkpoint(small_disk):
    mesh = mesh_of()
    saver = Checkpointer(small_disk)
    saver.save(1, make_state(1, mesh), {})
    saver.wait()
    with pytest.raises(CheckpointError, match="step 2 .*; the last good step is 1"):
        saver.save(2, make_state(2, mesh, rows=65536), {})
        saver.wait()
    saver.close()
    state, _, step = Checkpointer(small_disk, read_only=True).restore(abstract(mesh))
    assert step == 1
    assert_equal(state, make_state(1, mesh))


SAVE_FOREVER = """
    import sys, jax.numpy as jnp
    from var_jax.checkpoint import Checkpointer
    saver = Checkpointer(sys.argv[1], max_to_keep=2)
    latest = saver.latest_step()
    target = {"step": jnp.int32(0), "w": jnp.zeros((512, 512))}
    if latest is not None:
        state, metadata, latest = saver.restore(target)
        assert int(state["step"]) == latest == metadata["step"]
        assert (state["w"] == latest).all()
    for step in range((latest or 0) + 1, 10000):
        saver.save(step, {"step": jnp.int32(step), "w": jnp.full((512, 512), float(step))}, {})
        print(step, flush=True)
"""


def test_kill_during_save(tmp_path):
    env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(pathlib.Path(__file__).parents[2]))
    progress = 0
    for attempt in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVE_FOREVER), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        first = child.stdout.readline()
        assert first, child.stderr.read()
        for _ in range(2):
            child.stdout.readline()
        time.sleep(0.017 * attempt)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        target = {"step": jnp.int32(0), "w": jnp.zeros((512, 512))}
        state, metadata, step = Checkpointer(tmp_path, read_only=True).restore(target)
        assert int(first) == progress + 1 and step >= int(first) + 1
        assert int(state["step"]) == step == metadata["step"]
        np.testing.assert_array_equal(state["w"], float(step))
        progress = step


def test_fingerprint_sees_names_shapes_types_and_bytes():
    tree = {"a": np.arange(6, dtype=np.float32), "b": {"c": np.ones((2, 2), np.int32)}}
    expected = checkpoint.fingerprint(tree)
    mesh = mesh_of(1, 2)
    sharded = dict(tree, a=jax.device_put(tree["a"], NamedSharding(mesh, P("fsdp"))))
    assert checkpoint.fingerprint(sharded) == expected
    assert checkpoint.fingerprint({"b": tree["b"], "a": tree["a"]}) == expected
    for other in (
        {"x": tree["a"], "b": tree["b"]},
        dict(tree, a=tree["a"].reshape(2, 3)),
        dict(tree, a=tree["a"].astype(np.float64)),
        dict(tree, a=tree["a"] + np.float32(1e-6)),
    ):
        assert checkpoint.fingerprint(other) != expected


def test_sizes_are_recorded(tmp_path):
    save_steps(tmp_path, [1])
    folder = epath.Path(tmp_path) / "checkpoints" / "1"
    sizes = json.loads((folder / "files.json").read_text())
    assert any(name.startswith("state/") for name in sizes) and "metadata/metadata" in sizes


def test_in_a_bucket_a_step_counts_when_its_last_file_is_there(bucket):
    path = epath.Path(bucket) / "checkpoint" / "run"
    save_steps(path, [1, 2, 3])
    folder = path / "checkpoints"
    # A save that was cut off: all of a step's files but the one that is written last.
    for name in ("metadata/metadata", "files.json"):
        (folder / "4" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "4" / name).write_bytes((folder / "3" / name).read_bytes())
    assert files.complete_steps(folder) == [1, 2, 3]
    (folder / "3" / "state" / "manifest.ocdbt").unlink()
    with Checkpointer(path) as checkpointer:
        state, _, step = checkpointer.restore(abstract(mesh_of(1, 4)))
        assert step == 2
        assert_equal(state, make_state(2, mesh_of()))
        assert checkpointer.steps() == [1, 2]
        # Moved object by object, and whole at the end.
        assert (folder / "3.unreadable" / "files.json").exists()
        assert not (folder / "3" / "files.json").exists()
        assert checkpointer.save(4, make_state(4, mesh_of()), {})
    assert files.complete_steps(folder) == [1, 2, 4]

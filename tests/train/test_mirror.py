"""Metrics of a run in a bucket: continued by another machine, and never in the way of training."""

import logging
import os
import pathlib
import sys
import threading
import time
import types

import numpy as np
import pytest
from etils import epath

from var_jax.train import mirror
from var_jax.train.metrics import MetricWriter, read_metrics
from var_jax.train.mirror import Mirror


class Target:
    """A gs:// folder on a disk, whose uploads fail or hang as long as the test wants."""

    def __init__(self, folder, gate, failures):
        self._folder, self._gate, self._failures = folder, gate, failures

    def __truediv__(self, name):
        return Target(self._folder / name, self._gate, self._failures)

    def write_bytes(self, data):
        self._gate.wait()
        if self._failures:
            raise OSError(self._failures.pop())
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._folder.write_bytes(data)


@pytest.fixture
def opened():
    gate = threading.Event()
    gate.set()
    yield gate
    gate.set()


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def test_a_run_in_a_bucket_goes_on_where_another_machine_left_it(bucket):
    workdir = epath.Path(bucket) / "mirror" / "run"
    writer = MetricWriter(workdir)
    for step in range(4):
        writer.write(step, {"loss": float(step)})
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    writer.image(4, "samples", picture)
    writer.copy_soon()
    wait_for(lambda: len(read_metrics(workdir)) == 4)
    local = writer._folder
    # The first machine is gone; the checkpoint was of step 3.
    second = MetricWriter(workdir, start_step=3)
    assert second._folder != local
    second.write(3, {"loss": 30.0})
    second.write(4, {"loss": 40.0})
    second.close()
    assert [m["loss"] for m in read_metrics(workdir)] == [0.0, 1.0, 2.0, 30.0, 40.0]
    assert (workdir / "samples" / "samples_00000004.png").exists()
    assert len(list((workdir / "tensorboard").iterdir())) in (1, 2)  # One a second and host.
    assert not second._folder.exists()
    writer.close()


def test_a_hanging_upload_holds_up_neither_the_writer_nor_the_end(tmp_path, opened, caplog):
    opened.clear()
    copier = Mirror(Target(tmp_path, opened, []), every=0.01, patience=0.2)
    (copier.folder / "metrics.jsonl").write_text("a\n")
    copier.copy_soon()
    with open(copier.folder / "metrics.jsonl", "a") as file:
        file.write("b\n")
    with caplog.at_level(logging.ERROR):
        copier.close()
    assert "did not end within" in caplog.text and str(copier.folder) in caplog.text
    assert (copier.folder / "metrics.jsonl").read_text() == "a\nb\n"


def test_a_failed_upload_is_warned_of_and_tried_again(tmp_path, opened, caplog):
    failures = ["no such bucket"]
    copier = Mirror(Target(tmp_path, opened, failures), every=0.01)
    (copier.folder / "deep").mkdir()
    with caplog.at_level(logging.WARNING):
        (copier.folder / "deep" / "file").write_text("a")
        wait_for(lambda: (tmp_path / "deep" / "file").exists())
        (copier.folder / "deep" / "file").write_text("ab")
        copier.close()
    assert "no such bucket" in caplog.text and "trying again" in caplog.text
    assert (tmp_path / "deep" / "file").read_text() == "ab"
    assert not copier.folder.exists()


def test_what_cannot_be_uploaded_at_the_end_is_kept_and_named(
    tmp_path, opened, caplog, monkeypatch
):
    monkeypatch.setattr(mirror, "_LAST_PAUSES", (0, 0))
    copier = Mirror(Target(tmp_path, opened, ["gone", "gone"]), every=1000)
    (copier.folder / "metrics.jsonl").write_text("a\n")
    with caplog.at_level(logging.ERROR):
        copier.close()
    assert "gone" in caplog.text and str(copier.folder) in caplog.text
    assert (copier.folder / "metrics.jsonl").exists() and not os.listdir(tmp_path)


def test_only_what_has_changed_is_copied_again(tmp_path, opened):
    copier = Mirror(Target(tmp_path, opened, []), every=0.01)
    for name in ("a", "b"):
        (copier.folder / name).write_text(name)
    wait_for(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    pathlib.Path(tmp_path / "a").unlink()
    (copier.folder / "b").write_text("longer")
    copier.close()
    assert sorted(os.listdir(tmp_path)) == ["b"] and (tmp_path / "b").read_text() == "longer"


def test_one_run_of_weights_and_biases_goes_on_with_local_files(bucket, monkeypatch):
    begun = []
    fake = types.SimpleNamespace(
        util=types.SimpleNamespace(generate_id=lambda: "abc"),
        init=lambda **given: begun.append(given),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        MetricWriter(epath.Path(bucket) / "mirror" / "wandb", wandb_project="p").close()
    assert [given["id"] for given in begun] == ["abc", "abc"]
    assert all(os.path.isdir(given["dir"]) for given in begun)

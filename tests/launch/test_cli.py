"""What every command sets before JAX starts."""

import logging
import os

import pytest
from commands import import_command
from jaxlib import version

cli = import_command("launch.cli")


@pytest.mark.skipif(version.__version_info__[:2] != (0, 10), reason="other jaxlib")
def test_cpu_convolutions_are_chosen_once_and_never_over_the_users_choice(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    cli.prefer_fast_cpu_convolutions()
    cli.prefer_fast_cpu_convolutions()
    chosen = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
    assert os.environ["XLA_FLAGS"] == f"--a=1 {chosen}"

    mine = "--xla_cpu_experimental_ynn_fusion_type="
    monkeypatch.setenv("XLA_FLAGS", mine)
    cli.prefer_fast_cpu_convolutions()
    assert os.environ["XLA_FLAGS"] == mine


def test_no_flag_where_an_accelerator_may_read_it(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object())
    cli.prefer_fast_cpu_convolutions()
    assert os.environ["XLA_FLAGS"] == ""


def test_a_library_in_a_clone_of_the_packages_name_is_not_taken_for_ours(monkeypatch):
    monkeypatch.setattr(cli, "_PACKAGES", ("/home/me/var_jax/launch/", "/home/me/var_jax/var_jax/"))

    def kept(path, level):
        record = logging.LogRecord("absl", level, f"/home/me/var_jax/{path}", 1, "m", (), None)
        return cli._is_worth_reading(record)

    orbax = ".venv/lib/python3.11/site-packages/orbax/checkpoint/manager.py"
    assert kept("var_jax/train/loop.py", logging.INFO) and kept("launch/train.py", logging.INFO)
    assert not kept(orbax, logging.INFO) and not kept(orbax, logging.WARNING)
    assert kept(orbax, logging.ERROR)


def test_what_gcsfs_raises_is_not_printed_as_well():
    def kept(error):
        info = (type(error), error, None) if error else None
        record = logging.LogRecord("gcsfs", logging.ERROR, "gcsfs/retry.py", 1, "m", (), info)
        return cli._is_worth_reading(record)

    assert kept(None) and not kept(OSError("no route"))

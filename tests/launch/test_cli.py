"""What every command sets before JAX starts."""

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

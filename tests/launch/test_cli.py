"""What every command sets before JAX starts."""

import logging
import os
import subprocess
import sys
import types

import pytest
from commands import import_command
from recipes import load

from launch import log
from var_jax.evaluation.generated import image_files
from var_jax.parallel import distributed

cli = import_command("launch.cli")

CHOSEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def test_cpu_convolutions_are_chosen_once_and_never_over_the_users_choice(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    cli.prefer_fast_cpu_convolutions()
    cli.prefer_fast_cpu_convolutions()
    assert os.environ["XLA_FLAGS"] == f"--a=1 {CHOSEN}"

    mine = "--xla_cpu_experimental_ynn_fusion_type="
    monkeypatch.setenv("XLA_FLAGS", mine)
    cli.prefer_fast_cpu_convolutions()
    assert os.environ["XLA_FLAGS"] == mine


DEVICES = """
import sys
from launch import cli
def main():
    import jax
    if sys.argv[1] == "jit":
        jax.jit(lambda x: x + 1)(1)
    elif sys.argv[1] == "bug":
        assert jax.devices() == []
    jax.devices()
cli.run(lambda how: main(), words=["how"])
"""


@pytest.mark.parametrize(
    "how, platform, words",
    [
        ("list", "cuda", "JAX_PLATFORMS='cuda'"),
        ("jit", "cuda", "JAX_PLATFORMS='cuda'"),
        ("list", "tpu", "JAX_PLATFORMS='tpu'"),
        ("list", "nonsense", "'nonsense' is not in the list of known backends"),
        ("bug", "cpu", "Traceback"),
    ],
)
def test_a_platform_that_is_not_there_is_one_sentence(how, platform, words):
    env = {**os.environ, "JAX_PLATFORMS": platform, "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, how], env=env, capture_output=True, text=True
    )
    assert done.returncode != 0 and words in done.stderr, done.stderr
    if how != "bug":
        assert "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("Error: JAX finds no device") and last.endswith(".")


def test_ranges_are_those_of_image_files():
    assert tuple(image_files.RANGES) == cli.VALUE_RANGES


@pytest.mark.parametrize("chips", [True, False])
def test_no_flag_where_a_tpu_may_read_it(monkeypatch, chips):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(distributed, "has_tpu_chips", lambda: chips)
    cli.prefer_fast_cpu_convolutions()
    assert os.environ["XLA_FLAGS"] == ("" if chips else CHOSEN)


def test_a_library_in_a_clone_of_the_packages_name_is_not_taken_for_ours(monkeypatch):
    monkeypatch.setattr(log, "_PACKAGES", ("/home/me/var_jax/launch/", "/home/me/var_jax/var_jax/"))

    def kept(path, level):
        record = logging.LogRecord("absl", level, f"/home/me/var_jax/{path}", 1, "m", (), None)
        return log._is_worth_reading(record)

    orbax = ".venv/lib/python3.11/site-packages/orbax/checkpoint/manager.py"
    assert kept("var_jax/train/loop.py", logging.INFO) and kept("launch/train.py", logging.INFO)
    assert not kept(orbax, logging.INFO) and not kept(orbax, logging.WARNING)
    assert kept(orbax, logging.ERROR)


def test_what_gcsfs_raises_is_not_printed_as_well():
    def kept(error):
        info = (type(error), error, None) if error else None
        record = logging.LogRecord("gcsfs", logging.ERROR, "gcsfs/retry.py", 1, "m", (), info)
        return log._is_worth_reading(record)

    assert kept(None) and not kept(OSError("no route"))


def test_help_has_the_flags_that_commands_share():
    run = subprocess.run(
        [sys.executable, "-m", "launch.evaluate", "--help"], capture_output=True, text=True
    )
    for name in ("--checkpoint", "--cfg", "--inception", "--[no]allow_mismatched_reference"):
        assert f"  {name}:" in run.stdout


def test_any_setting_of_the_samples_can_come_from_the_command_line(monkeypatch):
    names = ("cfg", "cfg_schedule", "top_k", "top_p", "temperature", "smooth", "aspect", "sampling")

    def decoder(**given):
        values = {name: types.SimpleNamespace(value=given.get(name)) for name in names}
        monkeypatch.setattr(cli.flags, "FLAGS", values)
        return cli.decoder(load("mnist5k"), "").decoder

    text = '{"processors": [{"kind": "green_list", "key": 3}], "top_k": 7, "cfg": 2.5}'
    made = decoder(sampling=text, top_k=["9"])
    assert made.sampling.processors[0].key == 3 and made.guidance.cfg == 2.5
    assert made.sampling.top_k == 9  # A flag of its own comes last.
    assert decoder(aspect="2:1").pyramid.shapes == ((1, 1), (1, 3), (3, 6), (3, 6))
    for wrong, words in (("{", "which is not JSON"), ("[1]", "JSON of keys and values"),
                         ('{"topk": 1}', "unknown key 'topk'")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            decoder(sampling=wrong)

"""All commands and configs take paths in the same spellings."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from ml_collections import ConfigDict
from recipes import load

from var_jax import build

ROOT = pathlib.Path(__file__).parents[2]
#: Flags that name places, in whatever command.
NAMES = (
    "checkpoint|folder|images|inception|json|lpips|lpips_linear|official|output|path"
    "|plot|reference|samples|token_cache|tokenizer|tokens|train|vae|val|val_labels|workdir"
)
COMMANDS = sorted((ROOT / "launch").glob("*.py")) + sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: f"{file.parent.name}.{file.stem}")
def test_every_flag_that_names_a_place_resolves_it(file):
    text = file.read_text()
    assert not re.findall(rf'DEFINE_string\(\s*"(?:{NAMES})"', text)
    assert "add_argument" not in text


PROGRAM = """
from absl import flags
from ml_collections import config_flags
from launch import cli

config = config_flags.DEFINE_config_file("config")
place = cli.define_path("place", None, "A place.")
other = cli.define_path("other", "", "Another.")

def main():
    print(place.value, config.value.token_cache, config.value.data.options.path, sep="\\n")
    assert other.value == config.value.tokenizer_checkpoint == ""

cli.run(main)
"""


@pytest.mark.parametrize(
    "given, expected",
    [
        ("~/a b/", "HOME/a b"),
        ("link/x", "CWD/link/x"),
        ("runs//x/", "CWD/runs/x"),
        ("gs://bucket/run/", "gs://bucket/run"),
    ],
)
def test_flags_and_config_keys_mean_the_same(tmp_path, given, expected):
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    cwd.mkdir()
    (cwd / "link").symlink_to(home)
    command = [
        *(sys.executable, "-c", PROGRAM, f"--config={ROOT}/configs/var_imagenet256.py:d16"),
        *(f"--place={given}", f"--config.token_cache={given}"),
        *(f"--config.data.options.path={given}", "--compilation_cache="),
    ]
    env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True)
    expected = expected.replace("HOME", str(home)).replace("CWD", str(cwd))
    assert result.stdout.splitlines() == [expected] * 3


def test_a_key_that_is_no_path_is_named():
    config = ConfigDict({"evaluation": {"fid": {"reference": "s3://bucket/ref.npz"}}})
    with pytest.raises(ValueError, match=r"config.evaluation.fid.reference: .*s3://bucket"):
        build.resolve_paths(config)
    build.resolve_paths(ConfigDict({"data": {"options": {}}}))


def test_networks_of_a_decoder_are_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load("family/code", "smallest")
    build.resolve_paths(config)
    assert config.sampling.decoder.refiner == ""
    config.sampling.decoder.refiner = "runs//small/"
    build.resolve_paths(config)
    assert config.sampling.decoder.refiner == str(tmp_path / "runs" / "small")

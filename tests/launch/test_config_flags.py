"""Configs from the command line: one sentence about what is wrong, and hosts that agree."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import flags
from commands import import_command
from ml_collections import config_flags
from ports import free_port

from var_jax import build

cli = import_command("launch.cli")
ROOT = pathlib.Path(__file__).parents[2]
MNIST = str(ROOT / "configs" / "mnist5k.py")


@pytest.fixture
def parse(monkeypatch):
    """Reads a command line of flags, as the commands do."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values["config"].parser = cli._ConfigParser(values["config"].parser)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["command", *argv])
        values(["command", *argv])
        build.check_config(holder.value)
        return holder.value

    return run


def test_a_known_key_that_the_file_leaves_out_can_be_set(parse):
    config = parse(
        f"--config={MNIST}",
        "--config.tokenizer_train.wandb_project=p",
        "--config.evaluation.fid.num_samples=7",
        "--config.train.optimizer.weight_decay_end=0.1",
        "--config.data.transform.flip",
        "--noconfig.tokenizer.attention",
        "--config.model.class_drop_rate",
        "0.2",
        "--config.train.batch_size=48",
    )
    assert config.tokenizer_train.wandb_project == "p"
    assert config.evaluation.to_dict() == {"fid": {"num_samples": 7}}
    assert config.train.optimizer.weight_decay_end == 0.1
    assert config.data.transform.flip is True and config.tokenizer.attention is False
    assert config.model.class_drop_rate == 0.2 and config.train.batch_size == 48


def test_a_kind_that_the_file_leaves_out_opens_its_section(parse):
    config = parse(
        f"--config={MNIST}",
        "--config.train.adapter.rank=4",
        "--config.train.adapter.kind=lora",
        "--config.train.objective=cca",
        "--config.model.mixer.kind",
        "mamba2",
    )
    assert config.train.adapter.to_dict() == {"kind": "lora", "rank": 4}
    assert config.train.objective == "cca" and config.model.mixer.kind == "mamba2"


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            ["--config.tokenizer_train.wandb_projct=p"],
            "config.tokenizer_train has the unknown key 'wandb_projct'; did you mean 'wandb_proj",
        ),
        (["--config.sampels.cfg=1"], "config has the unknown key 'sampels'; did you mean 'sampl"),
        (["--config.train.batch_size=many"], "--config.train.batch_size=many"),
        (["--config.evaluation.fid.batch_size=many"], "--config.evaluation.fid.batch_size=many"),
        (["--config.train.batch_size.x=1"], "train.batch_size is a value and has nothing inside"),
        (["--config.train=1"], "--config.train=1"),
        (["--config.data.options.path=x"], "config.data.options has the unknown key 'path'"),
    ],
)
def test_what_is_not_known_is_one_sentence(parse, argv, message):
    with pytest.raises((flags.Error, ValueError), match="^[^\n]*$") as error:
        parse(f"--config={MNIST}", *argv)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "path, message",
    [
        (f"{MNIST}:tiny", "Unknown variant 'tiny' of mnist5k; choose '' or 'smallest'"),
        (str(ROOT / "configs" / "emoji64.py") + ":tiny", "takes 0 positional arguments but 1 was"),
        ("nowhere.py", "There is no config file nowhere.py"),
    ],
)
def test_a_file_or_variant_that_is_not_there_is_one_sentence(parse, path, message):
    with pytest.raises(flags.Error, match="^[^\n]*$") as error:
        parse(f"--config={path}")
    assert message in str(error.value)


def start(workdir, *argv):
    env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "launch.train", f"--workdir={workdir}", *argv]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_keys_of_a_kind_can_be_set(parse):
    given = f"--config={ROOT}/configs/family/flowar.py:smallest"
    assert parse(given, "--config.model.head.net_heads=4").model.head.net_heads == 4


def test_keys_of_a_kind_that_is_given_alone_can_be_set(parse, tmp_path):
    text = pathlib.Path(MNIST).read_text()
    assert text.count("    return config\n") == 1
    context = '    config.model.context = "recent_levels"\n    return config\n'
    (tmp_path / "x.py").write_text(text.replace("    return config\n", context))
    given = f"--config={tmp_path}/x.py:smallest"
    found = parse(given, "--config.model.context.num_previous=2").model.context
    assert found.to_dict() == {"kind": "recent_levels", "num_previous": 2}


def test_a_config_may_lie_in_the_home_directory(parse, monkeypatch, tmp_path):
    shutil.copy(MNIST, tmp_path / "x.py")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("--config=~/x.py:smallest").train.num_steps == 4


def test_the_configs_are_found_from_elsewhere(parse, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse("--config=configs/mnist5k.py:smallest").train.num_steps == 4
    own = tmp_path / "configs" / "mnist5k.py"
    own.parent.mkdir()
    own.write_text(pathlib.Path(MNIST).read_text().replace("num_steps=4,", "num_steps=7,"))
    assert parse("--config=configs/mnist5k.py:smallest").train.num_steps == 7


def test_the_command_ends_with_one_line(tmp_path):
    child = start(tmp_path, f"--config={MNIST}", "--config.train.ema_dacay=0.999")
    _, err = child.communicate()
    assert child.returncode == 2 and not list(tmp_path.iterdir())
    (line,) = err.strip().splitlines()
    assert line.startswith("Error: ") and "'ema_dacay'; did you mean 'ema_decay'?" in line


def test_hosts_with_different_configs_do_not_start(tmp_path):
    common = [f"--config={MNIST}", f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    other = ["--config.seed=1", "--config.train.log_every=3", "--allow_config_change"]
    children = [
        start(tmp_path, *common, "--process_id=0"),
        start(tmp_path, *common, "--process_id=1", *other),
    ]
    for child in children:
        _, err = child.communicate()
        assert child.returncode == 2, err
        (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert "setting config.seed is 1 on process 1 (" in line and "but 0 on 1 of 2" in line
        assert "setting config.train.log_every is 3 on process 1" in line
        assert "flag --allow_config_change is True on process 1" in line
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]

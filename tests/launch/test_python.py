"""Which Python the scripts take: the newest or the oldest that works, or the user's."""

import pathlib
import re
import stat
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def add_python(path, minor):
    """A stand-in that agrees to be Python 3.`minor`; None for pyenv's command of no version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\ncase "$*" in *"(3, {minor})"*) exit 0 ;; esac\nexit 1\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def call(tmp_path, script, **env):
    places = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PYENV_ROOT": str(tmp_path / "pyenv")}
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=places | env, capture_output=True, text=True
    )


def find(tmp_path, which):
    done = call(tmp_path, f"source launch/python.sh; find_python {which}")
    return done.stdout.strip().removeprefix(f"{tmp_path}/") if done.returncode == 0 else None


@pytest.fixture
def hidden(tmp_path):
    """No Python of the system's own, of any version that is looked for."""
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        add_python(tmp_path / "bin" / name, None)
    return tmp_path


def test_newest_and_oldest_of_the_path_and_of_pyenv(hidden):
    assert find(hidden, "newest") is None and find(hidden, "oldest") is None
    add_python(hidden / "bin" / "python3", 12)
    assert find(hidden, "newest") == find(hidden, "oldest") == "bin/python3"
    add_python(hidden / "pyenv/versions/3.13.0/bin/python", 13)
    add_python(hidden / "pyenv/versions/3.10.13/bin/python", 10)
    assert find(hidden, "newest") == "pyenv/versions/3.13.0/bin/python"
    add_python(hidden / "bin" / "python3.11", 11)
    assert find(hidden, "oldest") == "bin/python3.11"


def test_the_users_choice_wins_and_is_checked(hidden):
    add_python(hidden / "bin" / "python3", 12)
    script = "source launch/environment.sh demo"
    mine = hidden / "mine"
    mine.write_text(f'#!/bin/sh\ncase "$1" in -m) echo "$*" > {hidden}/made; exit 7 ;; esac\n')
    mine.chmod(0o755)
    venv = str(hidden / "venv")
    done = call(hidden, f"set -e; {script}", PYTHON=str(mine), VENV=venv)
    assert done.returncode == 7 and (hidden / "made").read_text() == f"-m venv {venv}\n"
    add_python(mine, 10)
    done = call(hidden, script, PYTHON=str(mine), VENV=venv)
    assert done.returncode == 1 and "set PYTHON to one" in done.stderr


def test_without_any_it_is_one_sentence(hidden):
    done = call(hidden, "source launch/environment.sh demo", VENV=str(hidden / "venv"))
    assert done.returncode == 1
    assert done.stderr == "var_jax needs Python 3.11, 3.12 or 3.13; set PYTHON to one.\n"


def test_scripts_and_package_name_the_same_versions():
    asked = re.search(r'python_requires=">=3.(\d+),<3.(\d+)"', (ROOT / "setup.py").read_text())
    low, high = map(int, asked.groups())
    script = (ROOT / "launch/python.sh").read_text()
    minors = " ".join(str(minor) for minor in range(high - 1, low - 1, -1))
    assert f"minors=({minors})" in script
    check = f"(3, {low}) <= sys.version_info < (3, {high})"
    assert check in (ROOT / "launch/environment.sh").read_text()

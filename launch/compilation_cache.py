"""Where compiled programs are kept, so that a run that starts again need not compile."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

#: Of the default folder; the program that has not been used for longest goes first.
_MAX_BYTES = 4 * 2**30


def use_local(folder: str | None) -> None:
    """Turns the cache on for a process by itself.

    Args:
      folder: local or gs://; '' for no cache. None: JAX's own choice, $JAX_COMPILATION_CACHE_DIR,
        else a folder of this user and this kind of machine. Whoever may write there decides what
        this process runs.
    """
    import jax

    from var_jax.paths import cache_directory

    if folder is not None:
        _use(folder)
    elif not jax.config.values["jax_compilation_cache_dir"]:
        _use(str(cache_directory() / "compiled" / _machine()), _MAX_BYTES)


def use_shared(folder: str | None, workdir: str | None) -> None:
    """The same where processes work together; each calls it before anything is compiled.

    Process 0 alone writes to JAX's cache, so it serves the others only from a place that all of
    them see, as they see the workdir. From a place of its own, process 0 would find a program
    that the others have to compile, while on GPUs they wait for each other's part of that work.

    Args:
      folder: as for `use_local`.
      workdir: of the run; without one there is no cache by default.
    """
    import jax

    if folder is None and jax.process_count() > 1 and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _use(os.path.join(workdir, ".compiled") if workdir else "")


def _use(folder: str, max_bytes: int = -1) -> None:
    import jax

    jax.config.update("jax_compilation_cache_dir", folder or None)
    jax.config.update("jax_compilation_cache_max_size", max_bytes)


def _machine() -> str:
    """A name of this kind of machine: homes are shared, programs for CPUs are not."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"

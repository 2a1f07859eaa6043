"""For every test: eight CPU devices, set before JAX starts its backends; shapes checked."""

import gc
import os

# Without LLVM's costly passes, in commands too: tests compile more than they compute. XLA's own
# passes, the partitioner's among them, do all their work.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import bucket as local_bucket
import jaxtyping
import pytest
from ports import free_port

jaxtyping.install_import_hook("var_jax", "shapes.checked")  # of what is imported from here on

from launch import cli  # noqa: E402

# Programs are large graphs of objects that live on: to go through them often is a twentieth of all.
gc.set_threshold(100_000, 50, 100)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
cli.prefer_fast_cpu_convolutions()


@pytest.fixture
def unchecked():
    """No check of shapes: what functions say by themselves, as users see it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def bucket():
    """gs://bucket on localhost, for this process and for commands that inherit its environment."""
    with local_bucket.serve(free_port()) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"gs://{local_bucket.NAME}"

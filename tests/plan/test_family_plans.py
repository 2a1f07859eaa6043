"""The programs of every method on a slice that is not there."""

import methods
import pytest
from slices import mesh_on

from var_jax.parallel import sharding
from var_jax.plan import programs

pytest.importorskip("libtpu")


@pytest.mark.parametrize("method", methods.each(methods.METHODS))
def test_what_trains_evaluates_and_draws_is_lowered_for_a_slice(tmp_path, method):
    """The compiler's part is in test_compile_for_tpu.py."""
    config = methods.smallest(method, methods.prepare(tmp_path, method))
    config.evaluation.update(likelihood=True, samples_per_class=2)
    mesh = mesh_on(data=1, fsdp=2, tensor=2)
    found = {"train": programs.train_step(config, mesh), **programs.evaluation(config, mesh)}
    assert found.keys() == {"train", "likelihood", "samples"}
    for program in found.values():
        with sharding.activate(mesh, program.preset):
            program.function.lower(*program.args)

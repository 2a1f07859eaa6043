"""Programs with the shapes of their arguments: those of a run, on its devices or on a slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from slices import mesh_on

from var_jax import build
from var_jax.build import evaluators
from var_jax.decoding import images
from var_jax.evaluation import during_training, token_likelihood
from var_jax.parallel import sharding
from var_jax.plan import compile_plan, programs
from var_jax.plan.hlo.traffic import Traffic
from var_jax.plan.topology import devices


def small(**axes):
    config = recipes.load("mnist5k", "smallest")
    config.mesh.update(data=-1, **axes)
    config.sharding = "fsdp"
    config.evaluation = dict(
        likelihood=True,
        samples_per_class=2,
        max_classes=3,
        reconstructions=2,
        fid=dict(inception="", reference="", num_samples=100, batch_size=20),
    )
    return config


def zeros(tree):
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), tree)


class Seen(Exception):
    """A run came to its compiled function."""


def test_what_is_planned_is_what_a_training_evaluates_with(monkeypatch):
    """Each evaluator calls its program with arrays of the planned shapes, laid out as planned."""
    config = small(fsdp=4)
    mesh = build.make_mesh(config)
    planned = programs.evaluation(config, mesh, from_images=True)
    # Six samples are filled up to what eight devices divide; the FID draws more at once.
    assert {name: p.images for name, p in planned.items()} == {
        "likelihood": 16,
        "samples": 8,
        "samples of the FID": 24,
        "reconstruction": 16,
        "features of the FID": 24,
    }
    seen = []
    makers = ((images, "jit_sampling"), (token_likelihood, "jit_token_sums"),
              (during_training, "jit_reconstruction"))  # fmt: skip
    for module, name in makers:

        def recording(*args, **options):
            def call(*arguments):
                seen.append(arguments)
                raise Seen

            return call

        monkeypatch.setattr(module, name, recording)

    state, params, _ = planned["samples"].beside
    module = build.tokenizer(config)
    tokenizer = build.LoadedTokenizer(module, zeros(params), "", config)
    objective = build.objective(config, tokenizer, from_images=True)
    config.evaluation.fid = None
    held_out = build.pipeline(
        config, build.source(config, "val"), config.train.batch_size, train=False, mesh=mesh
    )
    made = evaluators.transformer_evaluators(
        config,
        build.evaluation_settings(config, "train"),
        tokenizer,
        objective,
        build.place_frozen(objective, config, mesh, tokenizer),
        held_out,
        mesh,
    )
    state = zeros(state)
    for evaluator, name in zip(made, ("likelihood", "samples", "reconstruction"), strict=True):
        with pytest.raises(Seen):
            evaluator(state, 1)
        found, expected = seen.pop(), planned[name].args
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for x, plan in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert (x.shape, x.dtype) == (plan.shape, jnp.zeros((), plan.dtype).dtype)
            assert x.sharding.is_equivalent_to(plan.sharding, x.ndim)


def test_samples_of_a_picture_and_of_the_fid_are_one_program_where_they_are_equally_many():
    config = small(fsdp=1)
    config.evaluation.fid.batch_size = 8
    planned = programs.evaluation(config, build.make_mesh(config))
    assert planned["samples and samples of the FID"].images == 8


def test_a_reference_lies_as_what_trains_does_beside_the_evaluations_too():
    config = small(fsdp=8)
    mesh = build.make_mesh(config)
    plain = programs.train_step(config, mesh)
    with config.unlocked():
        config.train.objective = dict(kind="cca")
    against = programs.train_step(config, mesh)
    state, frozen, _ = against.args
    assert jax.tree.map(lambda x: x.sharding, frozen["reference"]) == jax.tree.map(
        lambda x: x.sharding, state.params
    )
    # Two passes of the reference; both models read each example under two conditions.
    assert against.model_flops == plain.model_flops * 8 / 3
    with config.unlocked():
        config.evaluation.fid = None
    reference = [x.shape for x in jax.tree.leaves(frozen["reference"])]
    for name, program in programs.evaluation(config, mesh).items():
        shapes = [x.shape for x in jax.tree.leaves(program.beside)]
        count = len(jax.tree.leaves(state))
        assert shapes[count : count + len(reference)] == reference, name


@pytest.mark.parametrize("axes", [{"fsdp": 1}, {"fsdp": 4}])
def test_sampling_exchanges_nothing_but_parameters(axes):
    """Not the pairs of a class and no class, the caches or the samples."""
    pytest.importorskip("libtpu")
    config = small(**axes)
    mesh = mesh_on("v5e:2x2", data=-1, **axes)
    program = programs.sample(config, mesh, 8)
    with sharding.activate(mesh, program.preset):
        text = program.function.lower(*program.args).compile().as_text()
    gathered, others = 0.0, 0.0
    for collective in Traffic(text).collectives():
        if collective.kind == "all-gather":
            gathered += collective.sent_bytes
        else:
            others += collective.sent_bytes
    # Beside cut parameters go the vectors of the classes, once, whose table and products are cut.
    assert others <= 0.05 * gathered
    assert (gathered > 0) == (axes["fsdp"] > 1)


def test_a_full_size_evaluation_fits_beside_its_training():
    pytest.importorskip("libtpu")
    config = recipes.load("var_imagenet256", "d16")
    mesh = build.make_mesh(config, devices("v6e:8x8"))
    program = programs.evaluation(config, mesh)["likelihood"]
    plan = compile_plan.make_plan(program)
    assert plan.fits and plan.mesh == {"data": 4, "fsdp": 16, "tensor": 1}
    # The optimizer's two moments, and networks that are whole on every chip.
    state, tokenizer, inception = program.beside
    moments = compile_plan.device_bytes(state.opt_state)
    whole = compile_plan.device_bytes((tokenizer, inception))
    assert moments + whole - 2**24 < plan.beside_bytes < plan.total_bytes < 2 * 2**30

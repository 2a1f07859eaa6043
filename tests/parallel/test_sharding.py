"""Meshes, rules and their checks; constraints that are in force in the compiled program."""

import ast
import functools
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from var_jax.parallel import arrays, sharding
from var_jax.train.step import jit_train_step

#: Axes and preset of each way to place the same state.
MESHES = [
    ({"data": 8}, "replicated"),
    ({"data": 2, "fsdp": 4}, "fsdp"),
    ({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp_tensor"),
]


def boxed(names, *shape):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def tiny_mesh(**axes):
    return sharding.make_mesh(**axes, devices=jax.devices()[:8])


class Stack(nn.Module):
    """Two scanned blocks with the logical names of a transformer."""

    width: int = 16

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            width: int

            @nn.compact
            def __call__(self, x, _):
                init = nn.initializers.normal(0.1)
                up = self.param(
                    "up", nn.with_logical_partitioning(init, ("embed", "mlp")), (self.width, 32)
                )
                down = self.param(
                    "down", nn.with_logical_partitioning(init, ("mlp", "embed")), (32, self.width)
                )
                x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
                hidden = nn.with_logical_constraint(
                    jnp.tanh(x @ up), ("batch", "length", "act_mlp")
                )
                return x + hidden @ down, None

        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=2,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return blocks(self.width, name="blocks")(x, None)[0]


def init_params(key, width=16):
    return Stack(width).init(key, jnp.zeros((1, 4, width)))["params"]


@pytest.mark.parametrize(
    "axes, expected",
    [
        ({}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 1, "tensor": -1}, (1, 1, 8)),
    ],
)
def test_mesh_shapes(axes, expected):
    mesh = tiny_mesh(**axes)
    assert tuple(mesh.shape.values()) == expected
    assert mesh.axis_names == sharding.MESH_AXES
    assert sharding.is_concrete(mesh)


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"fsdp": 3}, "does not fit 8 devices"),
        ({"data": 2, "fsdp": 2}, "does not fit 8 devices"),
        ({"tensor": 0}, "tensor has size 0"),
        ({"dcn_data": 2}, "belong to 1 TPU slice"),
    ],
)
def test_mesh_errors(axes, message):
    with pytest.raises(ValueError, match=message):
        tiny_mesh(**axes)


def test_every_preset_has_a_rule_for_every_name():
    for name, rules in sharding.PRESETS.items():
        assert tuple(n for n, _ in rules) == sharding.LOGICAL_NAMES
        assert sharding.resolve_rules(name) == sharding.resolve_rules(rules) == rules
    with pytest.raises(ValueError, match="Unknown sharding preset 'zero3'"):
        sharding.resolve_rules("zero3")
    with pytest.raises(ValueError, match="unknown logical axis 'hidden'"):
        sharding.resolve_rules((("hidden", "fsdp"),))
    with pytest.raises(ValueError, match="unknown mesh axis 'model'"):
        sharding.resolve_rules((("embed", "model"),))


def test_specs_of_a_scanned_stack():
    abstract = jax.eval_shape(init_params, jax.random.key(0))
    mesh = tiny_mesh(data=2, fsdp=2, tensor=2)
    specs = jax.tree.map(lambda s: s.spec, sharding.abstract_shardings(abstract, mesh, "fsdp"))
    assert specs["blocks"] == {"up": P(None, "fsdp"), "down": P(None, None, "fsdp")}
    specs = jax.tree.map(
        lambda s: s.spec, sharding.abstract_shardings(abstract, mesh, "fsdp_tensor")
    )
    assert specs["blocks"] == {"up": P(None, "fsdp", "tensor"), "down": P(None, "tensor", "fsdp")}
    specs = jax.tree.map(
        lambda s: s.spec, sharding.abstract_shardings(abstract, mesh, "replicated")
    )
    assert set(specs["blocks"].values()) == {P()}


def topology_like_mesh(data, fsdp, tensor):
    """A mesh of any size, which needs no devices for the checks."""
    return jax.sharding.AbstractMesh((data, fsdp, tensor), sharding.MESH_AXES)


def test_a_dimension_that_does_not_divide_names_what_would_work():
    tree = {"blocks": {"mlp": {"kernel": boxed(("layers", "embed", "mlp"), 30, 1920, 7680)}}}
    with pytest.raises(ValueError) as error:
        sharding.abstract_shardings(tree, topology_like_mesh(1, 256, 1), "fsdp")
    message = str(error.value)
    assert "blocks/mlp/kernel" in message and "dimension 1 ('embed') has size 1920" in message
    assert "fsdp=256" in message and message.endswith("can be 1, 2, 4, 8, 16, 32, 64, 128.")


def test_heads_that_do_not_divide():
    tree = {"q": boxed(("embed", "heads", "head_dim"), 1920, 30, 64)}
    with pytest.raises(ValueError, match=r"'heads'\) has size 30, which tensor=8.*can be 1, 2\."):
        sharding.abstract_shardings(tree, topology_like_mesh(4, 8, 8), "fsdp_tensor")


def test_unknown_and_colliding_names():
    mesh = tiny_mesh(data=1, fsdp=8)
    with pytest.raises(ValueError, match="w: dimension 1 has the logical axis name 'hidden'"):
        sharding.abstract_shardings({"w": boxed(("embed", "hidden"), 8, 8)}, mesh, "fsdp")
    with pytest.raises(ValueError, match=r"w: dimensions 0 \('conv_out'\) and 1 \('embed'\)"):
        sharding.abstract_shardings({"w": boxed(("conv_out", "embed"), 8, 8)}, mesh, "fsdp")
    with pytest.raises(ValueError, match="w has shape .* but 1 logical"):
        sharding.abstract_shardings({"w": boxed(("embed",), 8, 8)}, mesh, "fsdp")


def test_all_problems_are_reported_once():
    tree = {"a": boxed(("embed",), 12), "b": boxed(("embed",), 12), "c": boxed(("embed",), 9)}
    with pytest.raises(ValueError) as error:
        sharding.abstract_shardings(tree, tiny_mesh(data=1, fsdp=8), "fsdp")
    assert len(str(error.value).splitlines()) == 2


def test_state_is_born_sharded_and_equal_on_every_mesh():
    # Wide enough that a device's rows fill the vectors of a CPU, 8 numbers, as those of every
    # model do: in rows of 4 the compiler of jax 0.12 fuses other products and sums of the normal
    # distribution's inverse than in longer ones, which changes the last two bits.
    init = functools.partial(init_params, width=32)
    reference = sharding.unbox(jax.jit(init)(jax.random.key(3)))
    for axes, preset in MESHES:
        mesh = tiny_mesh(**axes)
        state, shardings = sharding.init_sharded(init, jax.random.key(3), mesh=mesh, preset=preset)
        jax.tree.map(np.testing.assert_array_equal, reference, state)
        assert jax.tree.map(lambda x: x.sharding, state) == shardings
    shard = state["blocks"]["up"].addressable_shards[0].data
    assert shard.shape == (2, 16, 16)


def test_unbox_takes_abstract_trees_while_a_mesh_is_active():
    with sharding.activate(tiny_mesh(data=1, fsdp=8), "fsdp"):
        tree = sharding.unbox(jax.eval_shape(init_params, jax.random.key(0)))
    assert tree["blocks"]["up"].shape == (2, 16, 32)


def compiled_text(mesh, preset, active=True):
    abstract = jax.eval_shape(init_params, jax.random.key(0))
    params = sharding.abstract_state(abstract, mesh, preset)
    x = jax.ShapeDtypeStruct((8, 4, 16), jnp.float32, sharding=sharding.batch_sharding(mesh))
    fn = jax.jit(lambda p, x: Stack().apply({"params": p}, x))
    if not active:
        lowered = fn.lower(params, x)
    else:
        with sharding.activate(mesh, preset):
            lowered = fn.lower(params, x)
    return lowered.as_text(), lowered


def test_constraints_are_in_the_program():
    mesh = tiny_mesh(data=2, fsdp=2, tensor=2)
    text, lowered = compiled_text(mesh, "fsdp_tensor")
    constraints = re.findall(r"sdy\.sharding_constraint .*", text)
    assert any('{"data", "fsdp"}, {}, {"tensor"}' in c for c in constraints)
    assert any('{"data", "fsdp"}, {}, {}' in c for c in constraints)
    hlo = lowered.compile().as_text()
    # Hidden units of one device: batch 8/4, length 4, mlp 32/2; the weights are gathered.
    assert re.search(r"f32\[(2,4|8),16\]\S* tanh\(", hlo)
    assert "all-gather" in hlo
    text, _ = compiled_text(mesh, "fsdp_tensor", active=False)
    assert "sdy.sharding_constraint" not in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flax_drops_constraints_under_the_old_mesh_context():
    """The pitfall that activate() exists for: if this fails, flax has changed."""
    mesh = tiny_mesh(data=2, fsdp=4)
    with mesh, nn.logical_axis_rules(sharding.PRESETS["fsdp"]):
        text, _ = compiled_text(mesh, "fsdp", active=False)
    assert "sdy.sharding_constraint" not in text


def test_constraints_are_in_a_program_for_topology_devices():
    pytest.importorskip("libtpu")
    from var_jax.plan import topology

    mesh = sharding.make_mesh(data=2, fsdp=4, devices=topology.devices("v5e:2x4"))
    assert not sharding.is_concrete(mesh)
    text, _ = compiled_text(mesh, "fsdp")
    assert re.search(r'sdy\.sharding_constraint .*\{"data", "fsdp"\}, \{\}, \{\}', text)


@pytest.mark.parametrize(
    "num_devices, axes, shape",
    [
        (4, {}, (1, 4, 1)),
        (8, {}, (1, 8, 1)),
        (24, {}, (3, 8, 1)),
        (64, {}, (4, 16, 1)),
        (256, {}, (16, 16, 1)),
        (256, {"tensor": 4}, (4, 16, 4)),
        (8, {"tensor": 4}, (1, 2, 4)),
        # An axis that is given is as it is given.
        (8, {"fsdp": 1}, (8, 1, 1)),
        (64, {"data": 2}, (2, 32, 1)),
    ],
)
def test_a_mesh_whose_parameters_are_cut_over_at_most_16_devices(num_devices, axes, shape):
    devices = np.repeat(jax.devices()[:1], num_devices)
    mesh = sharding.make_mesh(**{"data": -1, "fsdp": -1, **axes}, max_fsdp=16, devices=devices)
    assert tuple(mesh.shape.values()) == shape


def test_mesh_over_two_slices():
    pytest.importorskip("libtpu")
    from var_jax.plan import topology

    devices = topology.devices("v5e:2x4", num_slices=2)
    mesh = sharding.make_mesh(data=-1, fsdp=4, devices=devices)
    assert tuple(mesh.shape.values()) == (4, 4, 1)
    slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)[..., 0]
    # Parameters are cut inside a slice; only the data axis crosses.
    np.testing.assert_array_equal(slices, np.repeat([[0], [0], [1], [1]], 4, axis=1))
    mesh = sharding.make_mesh(data=-1, fsdp=-1, max_fsdp=16, devices=devices)
    assert tuple(mesh.shape.values()) == (2, 8, 1)
    with pytest.raises(ValueError, match="does not split over 2 TPU slices"):
        sharding.make_mesh(data=1, fsdp=16, devices=devices)
    with pytest.raises(ValueError, match="belong to 2 TPU slice"):
        sharding.make_mesh(data=-1, fsdp=4, devices=devices, dcn_data=1)


def test_batches():
    mesh = tiny_mesh(data=2, fsdp=4)
    assert sharding.check_batch(64, mesh) == 8
    assert sharding.check_batch(64, mesh, microbatches=2) == 4
    with pytest.raises(ValueError, match="multiple of 8"):
        sharding.check_batch(12, mesh)
    assert [sharding.padded_batch(size, mesh) for size in (1, 8, 9)] == [8, 8, 16]


def test_steps_agree_between_meshes():
    def step(params, x):
        def loss(p):
            return jnp.mean(Stack().apply({"params": p}, x) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    x = np.random.default_rng(0).normal(size=(8, 4, 16)).astype(np.float32)
    losses = []
    for axes, preset in MESHES:
        mesh = tiny_mesh(**axes)
        params, shardings = sharding.init_sharded(
            init_params, jax.random.key(0), mesh=mesh, preset=preset
        )
        with sharding.activate(mesh, preset):
            run = jax.jit(step, out_shardings=(shardings, None))
            batch = arrays.global_rows(x, sharding.batch_sharding(mesh), len(x))
            values = []
            for _ in range(5):
                params, value = run(params, batch)
                values.append(float(value))
        losses.append(values)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-5)


def test_every_name_in_the_source_is_known():
    """Flax takes an unknown name in a constraint for 'do not shard', without a word."""
    root = pathlib.Path(sharding.__file__).parents[1]
    calls = ("with_logical_constraint", "with_logical_partitioning")
    seen = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            function = getattr(node, "func", None)
            if getattr(function, "attr", None) not in calls:
                continue
            names = node.args[1]
            if isinstance(names, ast.Tuple):
                found = {n.value for n in names.elts if isinstance(n, ast.Constant)} - {None}
                assert found <= set(sharding.LOGICAL_NAMES), f"{file}: {found}"
                seen |= found
    assert {"batch", "act_embed", "heads"} <= seen


def test_large_products_of_a_training_step_gather_the_matrix_on_tpu():
    pytest.importorskip("libtpu")
    from var_jax.plan import topology

    # 1 GiB of activations: by default XLA cuts this product into a loop over parts of the matrix.
    mesh = sharding.make_mesh(fsdp=4, devices=topology.devices("v5e:2x2"))

    def array(spec, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    def step(kernel, frozen, batch):
        grad = jax.grad(lambda w: jnp.square(batch @ w).mean())(kernel)
        return kernel - grad, {"largest": jnp.abs(grad).max()}

    kernel = array(P(None, "fsdp"), 4096, 4096)
    args = kernel, {}, array(P("fsdp", None), 4 * 32768, 4096)
    function = jit_train_step(step, kernel.sharding, mesh)
    text = function.lower(*args).compile().as_text()
    assert "all-gather" in text and "collective-permute" not in text
    assert sharding.compiler_options(sharding.make_mesh()) is None

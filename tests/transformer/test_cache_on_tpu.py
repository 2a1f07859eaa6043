"""What the TPU compiler makes of the cache."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from slices import array, mesh_on

from var_jax.parallel import sharding
from var_jax.plan.hlo import loops
from var_jax.plan.hlo.parser import Program
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import Cache
from var_jax.transformer.var import VAR

pytest.importorskip("libtpu")


def test_no_block_copies_the_keys_of_all_blocks():
    pyramid = ScalePyramid.from_patch_nums((1, 2, 3, 5))
    model = VAR(pyramid, 10, 8, depth=3, width=256, num_heads=4, dtype=jnp.bfloat16)
    mesh = mesh_on("v5e:2x2", data=-1)
    inputs = array(mesh, P(("data", "fsdp")), 8, pyramid.length, 8)
    labels = jax.ShapeDtypeStruct((8,), jnp.int32)
    params = jax.eval_shape(
        lambda x, given: nn.meta.unbox(model.init(jax.random.key(0), x, given)), inputs, labels
    )

    def draw(params, inputs, given):
        cache, hidden = Cache(), []
        for k, part in enumerate(pyramid.split(inputs)):
            read = None if k == 0 else part + hidden[-1].mean()
            out, cache = model.apply(params, read, given, levels=range(k, k + 1), cache=cache)
            hidden.append(out)
        return hidden

    with sharding.activate(mesh, "fsdp"):
        text = jax.jit(draw).lower(params, inputs, labels).compile().as_text()
    assert "cached_attention" in text
    program = Program(text)
    for name, times in loops.run_counts(program).items():
        copied = [i.type for i in program.computations[name].values() if i.opcode == "copy"]
        assert times == 1 or not [kind for kind in copied if kind.startswith("bf16[3,")], copied

"""What is called float32 is summed in float32, also where the networks compute in bfloat16.

Nothing runs here: the tables name functions, and their jaxprs say how they would compute.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import optax
import pytest
from jax.experimental.pallas import tpu as pltpu

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.context import BlockCausal, key_segments
from var_jax.heads.categorical import CategoricalHead, LevelSampling
from var_jax.kernels.block_attention import pallas_tpu, reference, xla
from var_jax.objectives.base import Aux
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.life import CodebookLife, kmeans_init
from var_jax.quantizers.nearest import nearest_codes
from var_jax.tokenizer.discriminator import PatchDiscriminator
from var_jax.tokenizer.layers import GroupNorm
from var_jax.tokenizer.lpips import LPIPS
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train.state import create
from var_jax.train.step import make_train_step
from var_jax.transformer.layers import layer_norm, modulate

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 4))
SUMS = {"dot_general", "conv_general_dilated", "reduce_sum", "cumsum", "scatter-add"}
#: These compute nothing: they move, choose or convert numbers.
MOVES = {
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "gather",
    "get", "masked_load", "pad", "reshape", "rev", "select_n", "slice", "split", "squeeze", "swap",
    "transpose",
}  # fmt: skip


def bf16(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def keys(count):
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))


def applied(module, *args, method=None):
    """The module as a function of its parameters and args, and both."""
    init = functools.partial(module.init, method=method) if method else module.init
    params = nn.unbox(jax.eval_shape(init, jax.random.key(0), *args))
    return functools.partial(module.apply, method=method), (params, *args)


def equations(jaxpr):
    """All equations, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        if not inner:
            yield equation
        for sub in inner:
            yield from equations(sub)


def is_narrow(variable):
    dtype = getattr(variable.aval, "dtype", None)
    return dtype in (jnp.bfloat16, jnp.float16)


ATTENTION = {
    "reference": reference.block_attention,
    "xla": xla.block_attention,
    "whole_row": functools.partial(
        pallas_tpu.block_attention, max_rows=128, interpret=pltpu.InterpretParams()
    ),
    "streaming": functools.partial(
        pallas_tpu.block_attention, max_rows=0, interpret=pltpu.InterpretParams()
    ),
}


def attention(name):
    segments = key_segments(PYRAMID, BlockCausal())
    qkv = (bf16(2, PYRAMID.length, 2, 64),) * 3

    def attend(q, k, v, log_scale):
        return ATTENTION[name](q, k, v, segments, log_scale=log_scale)

    return attend, (*qkv, f32(2))


def head_sample():
    head = CategoricalHead(16, 32, dtype=jnp.bfloat16)
    _, (params, _) = applied(head, f32(2, 4, 32))
    settings = LevelSampling(0, PYRAMID, top_k=9, top_p=0.9, smooth=True)

    def sample(params, hidden, keys):
        return head.apply(params, (hidden, hidden), (2.5, -1.5), keys, settings, method="sample")

    return sample, (params, f32(2, 4, 32), keys(2))


def codec(method, *args):
    return applied(ResidualVQ(PYRAMID, 16, 4, 1), *args, method=method)


@dataclasses.dataclass(frozen=True)
class Plain:
    """A loss without sums of its own."""

    def init_params(self, key):
        return {"kernel": jnp.ones((4,))}

    def init_stats(self):
        return ()

    def loss(self, params, frozen, stats, batch, keys, step):
        value = (params["kernel"] * batch["x"]).mean()
        return value, Aux({"loss": value})

    def after_update(self, params, ema, stats, carry, key, step):
        return params, ema, stats


def train_step():
    optimizer = optax.adam(1e-3)
    state = jax.eval_shape(lambda k: create(Plain(), optimizer, k, ema=True), jax.random.key(0))
    step = make_train_step(Plain(), optimizer, microbatches=2, ema_decay=0.9)
    return step, (state, {}, {"x": bf16(8, 4), "index": i32(8)})


def usage_metrics():
    life = CodebookLife()
    metrics = lambda stats, tokens: life.metrics(stats, tokens, PYRAMID)  # noqa: E731
    return metrics, (jax.eval_shape(lambda: life.init_stats(PYRAMID, 16)), i32(2, PYRAMID.length))


# What computes in float32 from end to end: name, function and arguments, and whether its products
# must be exact on a TPU too.
FLOAT32 = [
    *((f"attention_{name}", functools.partial(attention, name), False) for name in ATTENTION),
    ("layer_norm", lambda: (layer_norm, (bf16(2, 3, 8),)), False),
    ("modulate", lambda: (modulate, (bf16(2, 3, 8), bf16(2, 8), bf16(2, 8))), False),
    ("group_norm", lambda: applied(GroupNorm(4, jnp.bfloat16), bf16(2, 4, 4, 8)), True),
    (
        "loss_of_the_head",
        lambda: applied(
            CategoricalHead(16, 32, 0.1, dtype=jnp.bfloat16),
            f32(2, 4, 32),
            i32(2, 4),
            method="loss",
        ),
        False,
    ),
    ("sampling_of_the_head", head_sample, False),
    ("nearest_codes", lambda: (nearest_codes, (f32(9, 4), f32(16, 4))), True),
    ("codec_encode", lambda: codec("encode", bf16(2, 4, 4, 4)), True),
    ("codec_quantize", lambda: codec("quantize", bf16(2, 4, 4, 4)), True),
    ("codec_decode", lambda: codec("decode", i32(2, 21)), True),
    ("codec_teacher_inputs", lambda: codec("teacher_inputs", i32(2, 21)), True),
    (
        "kmeans",
        lambda: (lambda x: kmeans_init(jax.random.key(0), x, 16), (f32(99, 4),)),
        True,
    ),
    ("code_usage", usage_metrics, True),
    ("average_and_accumulation", train_step, True),
]


@pytest.mark.parametrize(
    ("made", "exact"), [row[1:] for row in FLOAT32], ids=[r[0] for r in FLOAT32]
)
def test_computes_in_float32(made, exact):
    function, args = made()
    narrow, rounded, sums = [], [], 0
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        name = equation.primitive.name
        sums += name in SUMS
        if name not in MOVES and any(map(is_narrow, equation.outvars)):
            narrow.append(f"{name} of {equation.outvars[0].aval}")
        if name in ("dot_general", "conv_general_dilated"):
            precision = equation.params["precision"]
            if precision not in (
                jax.lax.Precision.HIGHEST,
                (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST),
            ):
                rounded.append(f"{name} of {equation.outvars[0].aval}")
    assert sums
    assert not narrow, f"computed in half precision: {narrow}"
    assert not exact or not rounded, f"rounded to bfloat16 on a TPU: {rounded}"


def narrow_sums(jaxpr, variable):
    """The sums in half precision that `variable` is made of: those met first on the way back."""
    for equation in jaxpr.eqns:
        if variable not in equation.outvars:
            continue
        name = equation.primitive.name
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        if inner and any(e.primitive.name in SUMS for e in equations(inner[0])):
            return narrow_sums(inner[0], inner[0].outvars[equation.outvars.index(variable)])
        if name in SUMS:
            return [str(variable.aval)] * is_narrow(variable)
        inputs = [v for v in equation.invars if not isinstance(v, jax.extend.core.Literal)]
        return [s for v in inputs for s in narrow_sums(jaxpr, v)]
    return []


def tokenizer(method, *args):
    codec = ResidualVQ(PYRAMID, 16, 4, 1)
    settings = dict(channels=8, multipliers=(1, 2), num_res_blocks=1, norm_groups=4)
    module = VQVAE(codec, dtype=jnp.bfloat16, **settings)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), f32(1, 8, 8, 3)))
    return functools.partial(module.apply, method=method), (params, *args)


def reconstruction():
    function, args = tokenizer(None, f32(2, 8, 8, 3))
    return lambda *args: function(*args).reconstruction, args


# What a network in bfloat16 ends in, called float32: the last sums.
RESULTS = {
    "logits": lambda: applied(CategoricalHead(16, 32, dtype=jnp.bfloat16), f32(2, 4, 32)),
    "logits_of_the_discriminator": lambda: applied(
        PatchDiscriminator(8, 1, dtype=jnp.bfloat16), f32(2, 16, 16, 3)
    ),
    "features": lambda: tokenizer("features", f32(2, 8, 8, 3)),
    "reconstruction": reconstruction,
    "decoded_pixels": lambda: tokenizer("decode_tokens", i32(2, 21)),
    "perceptual_distance": lambda: applied(
        LPIPS(dtype=jnp.bfloat16), f32(2, 16, 16, 3), f32(2, 16, 16, 3)
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_float32_numbers_not_bfloat16_ones_in_a_float32_array(name):
    function, args = RESULTS[name]()
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    (out,) = jaxpr.outvars
    assert out.aval.dtype == jnp.float32
    assert not narrow_sums(jaxpr, out)

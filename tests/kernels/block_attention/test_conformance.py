"""Every implementation of block attention against the float64 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from var_jax.context import (
    BlockCausal,
    Columns,
    KeySegment,
    OwnNeighbourhood,
    RecentLevels,
    key_segments,
)
from var_jax.kernels.block_attention import (
    best_implementation,
    block_attention,
    pallas_tpu,
    reference,
    xla,
)
from var_jax.pyramid import PATCH_NUMS, ScalePyramid

PATCHES = {14: (1, 2, 3), 91: (1, 2, 3, 4, 5, 6), 680: PATCH_NUMS[256], 2240: PATCH_NUMS[512]}
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2}
INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")

BACKENDS = {
    "xla": xla.block_attention,
    "whole_row": functools.partial(pallas_tpu.block_attention, max_rows=256, interpret=INTERPRET),
    "streaming": functools.partial(pallas_tpu.block_attention, max_rows=0, interpret=INTERPRET),
}
# L, B, N, dtype, L2-normalised, context. The long rows run once for each kernel: emulating
# them takes seconds.
CASES = [
    (14, 3, 1, jnp.float32, False, BlockCausal()),
    (91, 1, 3, jnp.float32, True, RecentLevels(0)),
    (91, 2, 3, jnp.bfloat16, True, RecentLevels(1)),
    (680, 1, 1, jnp.float32, True, BlockCausal()),
    (680, 1, 2, jnp.bfloat16, False, BlockCausal()),
    (2240, 1, 1, jnp.float32, False, BlockCausal()),
]


def _check(attend, segments, shape, num_keys, dtype, normalized):
    """Compares the result and all gradients of attend with float64."""
    batch, num_queries, heads, dim = shape
    rng = np.random.default_rng(0)
    draw = lambda n: jnp.asarray(rng.normal(size=(batch, n, heads, dim)), dtype)  # noqa: E731
    args = [draw(num_queries), draw(num_keys), draw(num_keys)]
    if normalized:
        args.append(jnp.asarray(np.log(4) + rng.normal(size=heads) / 2, jnp.float32))
    do = draw(num_queries)

    def run(function, args, do):
        def call(q, k, v, log_scale=None):
            return function(q, k, v, segments, scale=0.25 / dim**0.5, log_scale=log_scale)

        out, vjp = jax.vjp(call, *args)
        return out, *vjp(do)

    got = jax.jit(functools.partial(run, attend))(args, do)
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in args]
        want = run(reference.block_attention, wide, np.asarray(do, np.float64))
        want = [np.asarray(x) for x in want]
    for name, a, b in zip(("out", "dq", "dk", "dv", "dlog_scale"), got, want, strict=False):
        error = np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b))
        assert error < TOLERANCE[dtype], f"{name}: relative error {error}"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_float64(backend, case):
    length, batch, heads, dtype, normalized, context = case
    segments = key_segments(ScalePyramid.from_patch_nums(PATCHES[length]), context)
    _check(BACKENDS[backend], segments, (batch, length, heads, 64), length, dtype, normalized)
    if backend != "xla":
        assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_neighbourhoods_agree_with_float64(dtype):
    pyramid = ScalePyramid.from_patch_nums(PATCHES[680])
    # All levels, and one alone, as it is drawn.
    for levels in (range(10), range(8, 9)):
        segments = key_segments(pyramid, OwnNeighbourhood(8), levels)
        length = sum(s.rows for s in segments)
        _check(xla.block_attention, segments, (1, length, 1, 64), length, dtype, True)


def test_bands_leave_out_most_of_what_no_query_sees():
    pyramid = ScalePyramid.from_patch_nums(PATCHES[680])
    segments = key_segments(pyramid, OwnNeighbourhood(8), range(8, 10))
    groups = xla.row_groups(segments)
    computed = sum(sum(s.rows for s in group) * (hi - lo) for group, lo, hi in groups)
    whole = sum(n * n for n in pyramid.sizes[8:])
    assert (sum(s.pairs for s in segments), computed, whole) == (20825, 66688, 94097)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_level_over_a_cache(backend):
    segments = (KeySegment(25, 0, 55),)
    _check(BACKENDS[backend], segments, (1, 25, 2, 64), 55, jnp.float32, True)


@pytest.mark.parametrize("head_dim", [16, 40, 128])
def test_other_head_dims(head_dim):
    segments = key_segments(ScalePyramid.from_patch_nums((1, 2, 3)), BlockCausal())
    _check(BACKENDS["whole_row"], segments, (1, 14, 3, head_dim), 14, jnp.float32, True)


@pytest.mark.parametrize("normalized", [False, True])
def test_zero_vectors_stay_finite(normalized):
    segments = (KeySegment(3, 0, 4),)
    log_scale = jnp.array([10.0]) if normalized else None
    for backend in ("xla", "whole_row"):
        loss = lambda q, k: (  # noqa: E731
            BACKENDS[backend](q, k, jnp.ones((1, 4, 1, 64)), segments, log_scale=log_scale).sum()  # noqa: B023
        )
        grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(
            jnp.zeros((1, 3, 1, 64)), jnp.ones((1, 4, 1, 64))
        )
        assert all(np.isfinite(g).all() for g in grads)


def test_none_picks_by_backend():
    assert best_implementation("cpu", jnp.bfloat16) == "xla"
    assert best_implementation("tpu", jnp.float32) == "pallas_tpu"
    assert best_implementation("gpu", jnp.bfloat16) == "cudnn"
    assert best_implementation("gpu", jnp.float32) == "xla"
    assert best_implementation("tpu", jnp.bfloat16, near=True) == "xla"
    assert best_implementation("gpu", jnp.bfloat16, near=True) == "cudnn"


def test_explicit_implementation_never_falls_back():
    q = jnp.zeros((1, 4, 1, 64), jnp.bfloat16)
    segments = (KeySegment(4, 0, 4),)
    with pytest.raises(ValueError, match="interpret"):
        block_attention(q, q, q, segments, implementation="pallas_tpu")
    with pytest.raises(TypeError, match="cudnn"):
        full = q.astype(jnp.float32)
        block_attention(full, full, full, segments, implementation="cudnn")
    with pytest.raises(ValueError, match="choose one of"):
        block_attention(q, q, q, segments, implementation="flash")
    near = (KeySegment(4, 0, 4, Columns(4, 3)),)
    with pytest.raises(ValueError, match="'pallas_tpu' .* no neighbourhoods"):
        block_attention(q, q, q, near, implementation="pallas_tpu")


def test_arguments_that_do_not_fit(unchecked):
    q = jnp.zeros((1, 4, 2, 8))
    with pytest.raises(ValueError, match="describe 3 queries"):
        block_attention(q, q, q, (KeySegment(3, 0, 4),))
    with pytest.raises(ValueError, match="interval"):
        block_attention(q, q, q, (KeySegment(4, 0, 5),))
    with pytest.raises(ValueError, match="whole rows of 3"):
        block_attention(q, q, q, (KeySegment(4, 0, 3, Columns(3, 1)),))
    with pytest.raises(ValueError, match="one entry"):
        block_attention(q, q, q, (KeySegment(4, 0, 4),), log_scale=jnp.zeros(3))
    with pytest.raises(TypeError, match="float16"):
        half = q.astype(jnp.float16)
        pallas_tpu.block_attention(half, half, half, (KeySegment(4, 0, 4),))


def test_heads_that_a_mesh_does_not_divide():
    mesh = jax.sharding.AbstractMesh((2, 1, 4), ("data", "fsdp", "tensor"))
    q = jnp.zeros((2, 4, 6, 64), jnp.bfloat16)
    with (
        jax.sharding.use_abstract_mesh(mesh),
        pytest.raises(ValueError, match="6 attention heads"),
    ):
        block_attention(q, q, q, (KeySegment(4, 0, 4),), implementation="pallas_tpu")

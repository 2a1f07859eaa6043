"""What cuDNN is asked for computes block attention; XLA answers in its place here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.context import (
    BlockCausal,
    KeySegment,
    OwnNeighbourhood,
    RecentLevels,
    key_segments,
)
from var_jax.kernels.block_attention import cudnn, reference
from var_jax.pyramid import ScalePyramid

LEVELS = ScalePyramid.from_patch_nums((1, 2, 3, 4, 5, 6))


@pytest.fixture(name="calls")
def calls_fixture(monkeypatch):
    """The lengths (of queries, of keys) of each call."""
    calls = []
    attend = jax.nn.dot_product_attention

    def answer(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        calls.append((q.shape[1], k.shape[1]))
        return attend(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    return calls


@pytest.mark.parametrize(
    "segments, num_keys, min_rows, num_calls",
    [
        (key_segments(LEVELS, BlockCausal()), 91, 1, 6),
        (key_segments(LEVELS, BlockCausal()), 91, 30, 3),
        (key_segments(LEVELS, BlockCausal()), 91, 256, 1),
        (key_segments(LEVELS, RecentLevels(0)), 91, 1, 6),
        (key_segments(LEVELS, RecentLevels(1)), 91, 20, 3),
        (key_segments(LEVELS, OwnNeighbourhood(3, 3)), 91, 256, 4),
        ((KeySegment(25, 0, 55),), 55, 256, 1),
        ((KeySegment(1, 0, 3),), 3, 256, 1),
    ],
)
def test_agrees_with_float64(calls, segments, num_keys, min_rows, num_calls):
    num_queries = sum(s.rows for s in segments)
    rng = np.random.default_rng(0)
    lengths = (num_queries, num_keys, num_keys, num_queries)
    q, k, v, do = (jnp.asarray(rng.normal(size=(1, n, 2, 64)), jnp.bfloat16) for n in lengths)
    log_scale = jnp.asarray(np.log(4) + rng.normal(size=2) / 2, jnp.float32)

    def run(attend, args, do):
        out, vjp = jax.vjp(lambda *args: attend(*args[:3], segments, log_scale=args[3]), *args)
        return out, *vjp(do)

    attend = functools.partial(cudnn.block_attention, min_rows=min_rows)
    got = jax.jit(functools.partial(run, attend))([q, k, v, log_scale], do)
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in (q, k, v, log_scale)]
        want = run(reference.block_attention, wide, np.asarray(do, np.float64))
        want = [np.asarray(x) for x in want]
    for name, a, b in zip(("out", "dq", "dk", "dv", "dlog_scale"), got, want, strict=True):
        error = np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b))
        assert error < 1e-2, f"{name}: relative error {error}"
    # JAX refuses to differentiate cuDNN's attention at odd lengths.
    assert len(calls) == num_calls
    assert not any(n % 2 for lengths in calls for n in lengths)


def test_the_published_pyramids_need_few_calls(calls):
    for size, lengths in (
        (256, [(424, 424), (256, 680)]),
        (512, [(316, 316), (324, 640), (576, 1216), (1024, 2240)]),
    ):
        calls.clear()
        pyramid = ScalePyramid.for_image_size(size)
        q = jax.ShapeDtypeStruct((1, pyramid.length, 1, 64), jnp.bfloat16)
        segments = key_segments(pyramid, BlockCausal())
        jax.eval_shape(lambda q, s=segments: cudnn.block_attention(q, q, q, s), q)
        assert calls == lengths

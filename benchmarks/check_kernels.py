"""Checks and times this machine's attention and convolution, at the shapes that are trained.

    python -m benchmarks.check_kernels --json kernels.json

Each implementation that runs here computes the result and all gradients of normally distributed
inputs; the error is the largest difference from the same in float64, over the largest value. Times
are of the result alone and of it with all gradients. `cudnn N` computes levels of fewer than N
rows in one call.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import flags, logging
from etils import epath

from benchmarks.rates import time_runs
from launch import cli

_SECONDS = flags.DEFINE_float("seconds", 0.2, "Time to spend on timing each.", 0.0)
_SHAPES = flags.DEFINE_list(
    "shapes", None, "Names in attention_cases, and convolution; None: all of them."
)
_BATCH = flags.DEFINE_integer("batch_size", 0, "Instead of the shapes'.", 0)
_JSON = cli.define_path("json", None, "File for the results.")

#: Images on one device whose attention is timed, by the name of the shape.
BATCH = {"train_256": 64, "train_512": 16, "train_1024": 1}


def attention_cases(dtype: Any) -> dict[str, Any]:
    """The real shapes of attention on one device: training, and levels of sampling."""
    import jax.numpy as jnp

    from var_jax.kernels.block_attention import shapes

    half = dtype == jnp.bfloat16
    names = BATCH if half else ("train_256",)
    cases = {name: dataclasses.replace(shapes.SHAPES[name], batch=BATCH[name]) for name in names}
    for level in (3, 5, 7, 8, 9) if half else (9,):
        cases[f"decode_256_{level}"] = shapes.decoding(256, level, 128, 16)
    return cases


def implementations(platform: str, shape: Any, dtype: Any) -> dict[str, Callable[..., Any]]:
    """Block attention by name, as far as it runs on a platform in a dtype."""
    import jax.numpy as jnp

    from var_jax.kernels.block_attention import cudnn, xla

    found = {"xla": xla.block_attention}
    if platform != "gpu" or dtype != jnp.bfloat16:
        return found
    if len(shape.segments) == 1:
        return {**found, "cudnn": cudnn.block_attention}
    # Levels of fewer rows are computed together; in the last case all of them are.
    for rows in (128, 256, *([shape.num_queries + 1] if shape.num_queries < 4096 else [])):
        found[f"cudnn {rows}"] = functools.partial(cudnn.block_attention, min_rows=rows)
    return found


def attention_inputs(shape: Any, dtype: Any) -> tuple[list[Any], Any]:
    """q, k, v, log_scale and the gradient of the result; log_scale spread as in training."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 5)
    rows = (shape.num_queries, shape.num_keys, shape.num_keys, shape.num_queries)
    q, k, v, do = (
        jax.random.normal(key, (shape.batch, n, shape.num_heads, shape.head_dim), dtype)
        for key, n in zip(keys, rows, strict=False)
    )
    log_scale = jnp.log(4.0) + jax.random.normal(keys[4], (shape.num_heads,)) / 2
    return [q, k, v, log_scale], do


def reference_gradients(segments: Any, args: list[Any], do: Any) -> list[Any]:
    """Result and gradients in float64, one example and head at a time."""
    import jax
    import jax.numpy as jnp

    from var_jax.kernels.block_attention import reference

    batch, _, heads, _ = args[0].shape

    def one(args, do, i):
        b, n = i // heads, i % heads
        *arrays, cotangent = (x[b, None, :, n, None].astype(jnp.float64) for x in (*args[:3], do))

        def call(q, k, v, log_scale):
            return reference.block_attention(q, k, v, segments, log_scale=log_scale)

        out, vjp = jax.vjp(call, *arrays, args[3][n, None].astype(jnp.float64))
        return out, *vjp(cotangent)

    @jax.jit
    def run(args, do):
        return jax.lax.map(functools.partial(one, args, do), jnp.arange(batch * heads))

    with jax.enable_x64(True):
        *arrays, scales = run(args, do)
        # [B N, 1, L, 1, H] -> [B, L, N, H]
        arrays = [x[:, 0, :, 0].reshape(batch, heads, *x.shape[2::2]) for x in arrays]
        return [*(x.swapaxes(1, 2) for x in arrays), scales.reshape(batch, heads).sum(0)]


def largest_error(got: Iterable[Any], want: Iterable[Any]) -> float:
    """Largest difference over the largest value, over all arrays."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def error(a, b):
        return jnp.abs(a.astype(jnp.float64) - b).max() / jnp.abs(b).max()

    with jax.enable_x64(True):
        return max(float(error(a, b)) for a, b in zip(got, want, strict=True))


def compile_all(jobs: Sequence[tuple[Any, Sequence[Any]]]) -> list[Any]:
    """The compiled functions of (jitted function, arguments), at once; an error in the place of
    one that does not compile."""

    def compiled(job):
        function, args = job
        try:
            return function.lower(*args).compile()
        except Exception as error:  # One that fails must not hide the others.
            logging.exception("Compiling")
            return error

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(compiled, jobs))


def check_attention(shape: Any, dtype: Any, seconds: float) -> dict[str, dict[str, Any]]:
    """By implementation: error of the result and of the gradients, and milliseconds; no gradients
    where the shape is one level of sampling."""
    import jax

    args, do = attention_inputs(shape, dtype)
    want = reference_gradients(shape.segments, args, do)
    attends = implementations(jax.default_backend(), shape, dtype)
    training = len(shape.segments) > 1
    jobs: list[tuple[Any, Sequence[Any]]] = []
    for attend in attends.values():

        def forward(q, k, v, log_scale, attend=attend):
            return attend(q, k, v, shape.segments, log_scale=log_scale)

        def both(q, k, v, log_scale, do, forward=forward):
            out, vjp = jax.vjp(forward, q, k, v, log_scale)
            return out, *vjp(do)

        jobs += [(jax.jit(forward), args), (jax.jit(both), [*args, do])][: 1 + training]
    compiled = iter(compile_all(jobs))
    results: dict[str, dict[str, Any]] = {}
    for name in attends:
        functions = [next(compiled) for _ in range(1 + training)]
        try:
            for function in functions:
                if isinstance(function, Exception):
                    raise function
            forward = functools.partial(functions[0], *args)
            results[name] = {"error": largest_error([forward()], want[:1])}
            if training:
                both = functools.partial(functions[1], *args, do)
                out, *grads = both()
                results[name]["error"] = largest_error([out], want[:1])
                results[name]["gradient_error"] = largest_error(grads, want[1:])
                results[name]["both_ms"] = 1e3 * time_runs(both, seconds, 3).median
            results[name]["forward_ms"] = 1e3 * time_runs(forward, seconds, 3).median
        except Exception as error:
            logging.exception("Attention %s", name)
            results[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
    return results


def check_convolution(shape: tuple[int, ...], channels: int, seconds: float) -> dict[str, Any]:
    """A 3x3 convolution of float32 feature maps by precision: error and milliseconds."""
    import jax
    import jax.numpy as jnp

    from var_jax.kernels.convolution import conv_general_dilated

    numbers = ("NHWC", "HWIO", "NHWC")
    key, other = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key, shape)
    kernel = jax.random.normal(other, (3, 3, shape[-1], channels))

    def run(function, precision, *args):
        def call(x, kernel):
            out = function(
                x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=numbers, precision=precision
            )
            return (out * out).sum(), out

        gradients, out = jax.grad(call, argnums=(0, 1), has_aux=True)(*args)
        return out, *gradients

    with jax.enable_x64(True):
        wide = [x.astype(jnp.float64), kernel.astype(jnp.float64)]
        exact = functools.partial(run, jax.lax.conv_general_dilated, None)
        want = jax.jit(exact)(*wide)
    results = {}
    for precision in ("default", "highest"):
        both = jax.jit(functools.partial(run, conv_general_dilated, precision))
        results[precision] = {
            "error": largest_error(both(x, kernel), want),
            "both_ms": 1e3 * time_runs(lambda f=both: f(x, kernel), seconds, 3).median,
        }
    return results


def describe(name: str, rows: dict[str, dict[str, Any]]) -> str:
    """The numbers of one shape."""
    lines = []
    for key, row in rows.items():
        values = row.get("failed") or "  ".join(f"{k} {v:.3g}" for k, v in row.items())
        lines.append(f"{name:28s} {key:16s} {values}")
    return "\n".join(lines)


def main() -> None:
    import jax.numpy as jnp

    results: dict[str, Any] = {}

    def add(name: str, rows: dict[str, Any]) -> None:
        results[name] = rows
        print(describe(name, rows), flush=True)
        if _JSON.value:
            epath.Path(_JSON.value).write_text(json.dumps(results, indent=1) + "\n")

    for dtype in (jnp.bfloat16, jnp.float32):
        for name, shape in attention_cases(dtype).items():
            if not _SHAPES.value or name in _SHAPES.value:
                shape = dataclasses.replace(shape, batch=_BATCH.value or shape.batch)
                rows = check_attention(shape, dtype, _SECONDS.value)
                add(f"{name} {jnp.dtype(dtype).name}", rows)
    if not _SHAPES.value or "convolution" in _SHAPES.value:
        add("convolution", check_convolution((8, 64, 64, 320), 320, _SECONDS.value))


if __name__ == "__main__":
    cli.run(main)

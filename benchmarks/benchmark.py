"""Times a part of a config on this machine's devices, beside the least time it could take.

    python -m benchmarks.benchmark --what train_step --config configs/var_imagenet256.py:d16 \
        --batch_size 8 --json step.json

--what: train_step (from cached tokens; --images: from images), train_tokenizer_step, sample,
encode, decode, attention (forward and backward of one layer), input (the config's own training
data). Parameters and inputs are made up. The floor is the larger of operations over the measured
matrix rate and bytes of arguments and results over the measured memory bandwidth.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from benchmarks.rates import matrix_rate, memory_rate, time_runs
from launch import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_WHAT = flags.DEFINE_enum(
    "what",
    None,
    ["train_step", "train_tokenizer_step", "sample", "encode", "decode", "attention", "input"],
    "What to time.",
)
_BATCH = flags.DEFINE_integer("batch_size", 0, "Instead of the config's.", 0)
_IMAGES = flags.DEFINE_bool("images", False, "train_step: encode images in the step.")
_IMPLEMENTATION = flags.DEFINE_string("implementation", None, "attention: see block_attention.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Time to spend on timing.", 0.0)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs to time at least.", 2)
_JSON = cli.define_path("json", None, "File for the results.")


def time_program(program: Any, seconds: float, repeats: int) -> dict[str, Any]:
    """Compiles and times a `Program`; bytes, operations and seconds of one run."""
    import jax

    from var_jax.parallel import sharding
    from var_jax.plan.flops import program_flops
    from var_jax.plan.programs import made_arguments

    args = made_arguments(program)
    with sharding.activate(program.mesh, program.preset):
        start = time.perf_counter()
        traced = program.function.trace(*args)
        compiled = traced.lower().compile()
        compile_seconds = time.perf_counter() - start
    state = list(args)

    def run():
        out = compiled(*state)
        if program.donates:
            state[0] = out[0]
        return out

    timing = time_runs(run, seconds, repeats)
    memory = compiled.memory_analysis()
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "images": program.images,
        "compile_seconds": compile_seconds,
        "seconds": dataclasses.asdict(timing),
        "images_per_second": program.images / timing.median,
        "program_flops": program_flops(traced.jaxpr),
        "model_flops": program.model_flops or program_flops(traced.jaxpr),
        "bytes": memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": stats.get("peak_bytes_in_use")
        or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def attention_program(config: ConfigDict, mesh: Any, batch_size: int, implementation: str | None):
    """Gradient of one layer's attention with respect to q, k and v."""
    import jax
    import jax.numpy as jnp

    from var_jax import build
    from var_jax.context import key_segments
    from var_jax.kernels.block_attention import block_attention
    from var_jax.parallel import sharding
    from var_jax.plan.programs import Program

    var = build.network(config).transformer
    segments = key_segments(var.pyramid, var.context)
    shape = (batch_size, var.pyramid.length, var.num_heads, var.width // var.num_heads)
    array = jax.ShapeDtypeStruct(shape, var.dtype, sharding=sharding.batch_sharding(mesh))
    scale = jax.ShapeDtypeStruct(
        (var.num_heads,), jnp.float32, sharding=sharding.replicated_sharding(mesh)
    )

    def loss(q, k, v, log_scale):
        out = block_attention(q, k, v, segments, log_scale=log_scale, implementation=implementation)
        return out.astype(jnp.float32).sum()

    function = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    pairs = sum(s.pairs for s in segments)
    # Two products forward, five backward (the scores are computed again), over visible keys.
    flops = 7 * 2.0 * batch_size * var.width * pairs
    args = (array, array, array, scale)
    return Program(function, args, mesh, config.sharding, batch_size, flops)


def time_input(config: ConfigDict, batch_size: int, seconds: float) -> dict[str, Any]:
    """Images/s of the config's training data, decoded and cropped, or read as tokens."""
    from var_jax import build

    batch_size = batch_size or config.train.batch_size
    if config.token_cache:
        from var_jax.data.token_cache import TokenCache

        source = TokenCache(f"{config.token_cache}/train")
    else:
        source = build.source(config, "train")
    batches = build.pipeline(config, source, batch_size, train=True).batches()
    next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or count < 2:
        next(batches)
        count += 1
    rate = count * batch_size / (time.perf_counter() - start)
    return {"images": batch_size, "images_per_second": rate}


def describe(result: dict[str, Any]) -> str:
    """The result in words and numbers."""
    lines = [
        f"{result['what']} of {result['images']} images, {result['dtype']}, on "
        f"{result['num_devices']} x {result['device']}"
    ]
    if "seconds" not in result:
        return "\n".join([*lines, f"  {result['images_per_second']:,.0f} images/s"])
    t, gib = result["seconds"], 2.0**30
    return "\n".join(
        [
            *lines,
            f"  compiled in      {result['compile_seconds']:.1f} s",
            f"  time             {1e3 * t['median']:.1f} ms (median of {t['runs']} runs; half of "
            f"them within {1e3 * t['low']:.1f} to {1e3 * t['high']:.1f})",
            f"  images/s         {result['images_per_second']:,.2f}",
            f"  floor            {1e3 * result['floor_seconds']:.1f} ms: compute "
            f"{1e3 * result['compute_floor_seconds']:.1f} ms at "
            f"{result['matrix_rate'] / 1e12:.3f} TFLOP/s measured, memory "
            f"{1e3 * result['memory_floor_seconds']:.1f} ms at "
            f"{result['memory_rate'] / 1e9:.1f} GB/s measured",
            f"  utilisation      {result['utilisation']:.1%} = {result['model_flops']:.3e} model "
            f"operations / time / {result['num_devices']} devices / "
            f"{result['peak_rate'] / 1e12:.3f} TFLOP/s ({result['peak_is']})",
            f"  memory           {result['peak_bytes'] / gib:.2f} GiB at most, "
            f"{result['temporary_bytes'] / gib:.2f} GiB of it temporary in the program",
        ]
    )


def main() -> None:
    import jax

    from var_jax import build
    from var_jax.plan import accelerators, programs

    config, what, batch_size = _CONFIG.value, _WHAT.value, _BATCH.value
    devices = jax.devices()
    result: dict[str, Any] = {
        "what": what,
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "dtype": config.model.get("dtype", "float32"),
    }
    if what == "input":
        result |= time_input(config, batch_size, _SECONDS.value)
    else:
        mesh = build.make_mesh(config)
        if what != "train_tokenizer_step":
            batch_size = batch_size or config.train.batch_size
        if what == "train_step":
            program = programs.train_step(config, mesh, batch_size, _IMAGES.value)
        elif what == "attention":
            program = attention_program(config, mesh, batch_size, _IMPLEMENTATION.value)
        else:
            program = getattr(programs, what)(config, mesh, batch_size)
        logging.info("Compiling and timing %s.", what)
        result |= time_program(program, _SECONDS.value, _REPEATS.value)
        chip = accelerators.of_kind(result["device"])
        result["matrix_rate"] = matrix_rate(result["dtype"])
        result["memory_rate"] = memory_rate()
        result["peak_rate"] = chip.flops if chip else result["matrix_rate"]
        result["peak_is"] = "published" if chip else "measured"
        count = len(devices)
        result["compute_floor_seconds"] = result["program_flops"] / count / result["matrix_rate"]
        result["memory_floor_seconds"] = result["bytes"] / result["memory_rate"]
        result["floor_seconds"] = max(
            result["compute_floor_seconds"], result["memory_floor_seconds"]
        )
        result["utilisation"] = (
            result["model_flops"] / result["seconds"]["median"] / count / result["peak_rate"]
        )
    print(describe(result))
    if _JSON.value:
        from etils import epath

        epath.Path(_JSON.value).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "what"])
    cli.run(main)

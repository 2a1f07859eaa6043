r"""Compares attention kernels by the TPU compiler's own static schedules; needs no TPU.

    pip install libtpu==0.0.42.1
    python -m benchmarks.kernel_schedules --shape train_256 --topology v5e:2x2

Each candidate is compiled ahead of time for one chip of the named topology by a process of
its own (5 to 60 s each on one CPU core), which lets the compiler write the VLIW bundles of
every kernel. A kernel's estimate is its number of bundles, those inside loops multiplied by
the trip counts, divided by the clock.

What the estimate leaves out: waiting for memory, matrix instructions that need more than one
cycle, and for branches, which of them are taken (all bodies count, so that kernels which skip
blocks look slower than they are). It ranks kernels; it does not predict a time on the chip.
The dumps are an undocumented format, read with regular expressions: pin libtpu.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable

from absl import app, flags

from var_jax.plan.accelerators import CHIPS
from var_jax.plan.topology import ENVIRONMENT

_SHAPE = flags.DEFINE_string("shape", "train_256", "name in block_attention.shapes.SHAPES")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "TPU topology to compile for")
_ONLY = flags.DEFINE_string("only", "", "regular expression; run only candidates that match it")
_CHILD = flags.DEFINE_string("child", "", "internal: compile this one candidate and print memory")

#: Clocks in Hz, derived from the published peak bf16 rate and the size of the matrix units.
CLOCKS = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}

#: Names of forward kernels: ours, splash attention's, flash attention's.
FORWARD = re.compile(r"forward|fwd|flash_attention\b")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The static schedule of one kernel.

    Attributes:
      name: as the compiler calls it.
      bundles: VLIW instructions executed, loops unrolled.
      matrix: share of the matrix unit's issue slots in use, 0 to 1.
      unknown_loops: loops whose trip count is not a constant, counted once.
    """

    name: str
    bundles: int
    matrix: float
    unknown_loops: int


def _loop_weights(text: str) -> tuple[list[int], int]:
    """Executions of each bundle, and the number of loops with an unknown trip count.

    A loop begins at a bundle marked LB and ends with the backward branch on a predicate whose
    definition carries the compiler's comment "loop exit test"; that comparison's constant is
    the trip count.
    """
    starts = [
        m.start() for m in re.finditer(r"(?m)^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:", text)
    ]
    bundles = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    weights = [1] * len(bundles)
    limits: dict[str, str] = {}
    open_loops: list[int] = []
    unknown = 0
    for i, bundle in enumerate(bundles):
        if re.match(r"\s*\S+\s+L[BH]\s*:", bundle):
            open_loops.append(i)
        for m in re.finditer(
            r"%(p\w+) = scmp\.\w+\.[su]32(?:\.\w+)? (?:\(!?%\w+\), )?%?\w+, (%?\w+)([^;}]*)", bundle
        ):
            if "loop exit test" in m.group(3):
                limits[m.group(1)] = m.group(2)
        m = re.search(r"sbr\.rel \(!?%(\w+)\) target = \$region\d+", bundle)
        if m and m.group(1) in limits and open_loops:
            start, limit = open_loops.pop(), limits[m.group(1)]
            unknown += not limit.isdigit()
            for j in range(start, i + 1):
                weights[j] *= int(limit) if limit.isdigit() else 1
    return weights, unknown


def read_schedules(dump: pathlib.Path) -> list[Schedule]:
    """The schedule of every kernel in a folder written by --xla_jf_dump_to."""
    schedules = []
    for path in sorted(dump.glob("*-final_bundles.txt")):
        m = re.match(r"(\d+-(.*))-\d+-final_bundles\.txt", path.name)
        if m is None or "schedule-analysis" in path.name:
            continue
        weights, unknown = _loop_weights(path.read_text(errors="replace"))
        matrix = 0.0
        prefix, suffix = m.group(1) + "-", "-final_hlo-static-per-bundle-utilization.txt"
        for use in dump.iterdir():
            if use.name.startswith(prefix) and use.name.endswith(suffix):
                lines = use.read_text().splitlines()
                header = next(i for i, line in enumerate(lines) if line.startswith("MXU,"))
                slots = int(lines[header + 1].split()[0])
                rows = lines[lines.index("== UTILIZATION:") + 1 :]
                used = [int(row.split()[0]) for row in rows if row.strip()]
                busy = sum(w * u for w, u in zip(weights, used, strict=False))
                matrix = busy / (slots * sum(weights))
        schedules.append(Schedule(m.group(2), sum(weights), matrix, unknown))
    return schedules


# The candidates: name -> (shape -> function of q, k, v, and the shape of each).


def _ours(shape, normalize: bool, max_rows: int | None = None):
    import jax.numpy as jnp

    from var_jax.kernels.block_attention import pallas_tpu

    n, h = shape.num_heads, shape.head_dim

    def attend(q, k, v):
        split = lambda x: x.reshape(*x.shape[:2], n, h)  # noqa: E731
        out = pallas_tpu.block_attention(
            split(q),
            split(k),
            split(v),
            shape.segments,
            scale=0.25 / h**0.5,
            log_scale=jnp.full((n,), 1.0) if normalize else None,
            max_rows=max_rows,
        )
        return out.reshape(q.shape)

    flat = lambda length: (shape.batch, length, n * h)  # noqa: E731
    return attend, flat(shape.num_queries), flat(shape.num_keys)


def _dense(shape):
    from var_jax.kernels.block_attention import reference

    def attend(q, k, v):
        return reference.block_attention(q, k, v, shape.segments, scale=0.25 / shape.head_dim**0.5)

    at = lambda length: (shape.batch, length, shape.num_heads, shape.head_dim)  # noqa: E731
    return attend, at(shape.num_queries), at(shape.num_keys)


def _by_level(shape):
    from var_jax.kernels.block_attention import xla

    def attend(q, k, v):
        return xla.block_attention(q, k, v, shape.segments, scale=0.25 / shape.head_dim**0.5)

    return attend, *_dense(shape)[1:]


def _splash(shape, block_q: int, block_k: int, compute: int, fused: bool):
    import jax
    import numpy as np
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    from var_jax.context import dense_mask

    multiple = max(block_q, block_k)
    length = -(-shape.num_queries // multiple) * multiple
    mask = np.ones((length, length), bool)
    mask[: shape.num_queries] = False
    mask[: shape.num_queries, : shape.num_keys] = dense_mask(shape.segments, shape.num_keys)
    sizes = kernel.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_kv_compute=compute,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_kv_dkv_compute=compute,
        block_q_dq=None if fused else block_q,
        block_kv_dq=None if fused else block_k,
        use_fused_bwd_kernel=fused,
    )
    attend = kernel.make_splash_mha(
        mask=masks.MultiHeadMask([masks.NumpyMask(mask)] * shape.num_heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
    )
    at = (shape.batch, shape.num_heads, length, shape.head_dim)
    return jax.vmap(attend), at, at


def _flash(shape, block: int):
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    length = -(-shape.num_queries // block) * block
    sizes = flash.BlockSizes(
        **{
            field.name: 1 if field.name == "block_b" else block
            for field in dataclasses.fields(flash.BlockSizes)
        }
    )
    # This kernel has no block mask but a bias, which it would read from memory; without one it
    # computes the same tiles.
    attend = functools.partial(flash.flash_attention, block_sizes=sizes)
    at = (shape.batch, shape.num_heads, length, shape.head_dim)
    return attend, at, at


def candidates(shape) -> dict[str, Callable]:
    """Name -> function that returns (attend(q, k, v), shape of q, shape of k and v)."""
    found: dict[str, Callable] = {
        "block_attention, L2 norm fused": functools.partial(_ours, shape, True),
        "block_attention": functools.partial(_ours, shape, False),
        "block_attention, 128 rows": functools.partial(_ours, shape, False, 128),
        "block_attention, 256 rows": functools.partial(_ours, shape, False, 256),
    }
    whole = -(-shape.num_queries // 128) * 128
    for q, k, c in ((128, 128, 128), (256, 256, 256), (384, 384, 384), (512, 512, 512),
                    (768, 768, 768), (1152, 1152, 384), (1152, 1152, 1152), (whole, whole, whole),
                    (whole, whole, 256), (512, whole, 512)):  # fmt: skip
        if max(q, k) > whole:
            continue
        for fused in (False, True):
            name = f"splash, q {q}, kv {k}, compute {c}" + (", fused backward" if fused else "")
            found.setdefault(name, functools.partial(_splash, shape, q, k, c, fused))
    for block in (128, 384, 768, 1152, whole):
        if block <= whole:
            found.setdefault(f"flash, {block}", functools.partial(_flash, shape, block))
    found["XLA, dense mask"] = functools.partial(_dense, shape)
    found["XLA, level by level"] = functools.partial(_by_level, shape)
    return found


def _compile(shape, name: str, backward: bool, topology: str) -> None:
    """Child process: compiles one candidate; prints its memory traffic as one line of JSON."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    attend, q_shape, k_shape = candidates(shape)[name]()
    chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(chip)
    arg = lambda s: jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=sharding)  # noqa: E731
    args = (arg(q_shape), arg(k_shape), arg(k_shape))
    if backward:

        def function(q, k, v, do):
            return jax.vjp(attend, q, k, v)[1](do)

        args += (arg(q_shape),)
    else:
        function = attend
    mesh = jax.sharding.Mesh(np.array([chip]), ("data",))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # tells the kernels the chip
        compiled = jax.jit(function).lower(*args).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    text = compiled.as_text()
    print("RESULT", json.dumps({
        "bytes": cost.get("bytes accessed", 0.0),
        "temp": memory.temp_size_in_bytes,
        "kernels_called": re.findall(r'%?(\S+) = [^\n]*_target="tpu_custom_call"', text),
    }))  # fmt: skip


def measure(shape_name: str, name: str, backward: bool, topology: str) -> dict:
    """Compiles one candidate in a child process and reads its schedules.

    Returns:
      kernels: list[Schedule]; bytes: HBM traffic by the compiler's count; temp: bytes;
      kernels_called: names of the Pallas kernels among the kernels.
    """
    with tempfile.TemporaryDirectory() as dump:
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "JAX_PLATFORMS": "cpu",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true",
        }
        child = f"{'backward' if backward else 'forward'}:{name}"
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.kernel_schedules", f"--shape={shape_name}",
             f"--topology={topology}", f"--child={child}"],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
        if run.returncode or not lines:
            errors = [x for x in run.stderr.splitlines() if re.search(r"Error: |EXHAUSTED", x)]
            reason = errors[-1][:300] if errors else run.stderr[-300:]
            raise RuntimeError(f"{name} does not compile for {topology}: {reason}")
        result = json.loads(lines[0].removeprefix("RESULT "))
        return {**result, "kernels": read_schedules(pathlib.Path(dump))}


def _microseconds(kernels: list[Schedule], topology: str) -> float:
    return sum(k.bundles for k in kernels) / CLOCKS[topology.split(":")[0]] * 1e6


def _row(shape_name: str, name: str, topology: str) -> str:
    cells = [name]
    # The floor of a candidate that writes its scores to memory.
    bandwidth = CHIPS[topology.split(":")[0]].hbm_bandwidth
    for backward in (False, True):
        try:
            result = measure(shape_name, name, backward, topology)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            cells += ["does not compile", ""]
            continue
        kernels = result["kernels"]
        if result["kernels_called"]:
            kernels = [k for k in kernels if k.name in result["kernels_called"]]
        if backward:
            # The compiled function recomputes the forward pass, which is not the question.
            kernels = [k for k in kernels if not FORWARD.search(k.name)]
        cells.append(f"{_microseconds(kernels, topology):.0f}")
        cells.append(f"{result['bytes'] / bandwidth * 1e6:.0f}")
    return "| " + " | ".join(cells) + " |"


def main(argv) -> None:
    del argv
    from var_jax.kernels.block_attention.shapes import SHAPES

    shape = SHAPES[_SHAPE.value]
    if _CHILD.value:
        direction, name = _CHILD.value.split(":", 1)
        _compile(shape, name, direction == "backward", _TOPOLOGY.value)
        return
    for name in candidates(shape):
        if re.search(_ONLY.value, name):
            print(_row(_SHAPE.value, name, _TOPOLOGY.value), flush=True)


if __name__ == "__main__":
    app.run(main)

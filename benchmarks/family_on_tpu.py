"""Compiles the family's training steps and sampling for TPU slices: docs/family_on_tpu.md.

python -m benchmarks.family_on_tpu                       # every row that is not there yet: hours
python -m benchmarks.family_on_tpu --methods var,hmar --sizes d16 --topologies v5e:16x16

All methods run at the batch of VAR's recipe of their size, and VAR's rows come first, since the
others are given as a part of them. Rows are kept in docs/family_on_tpu.json, one after the other,
so that the command can be ended and started again. No TPU is needed.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import runpy

from absl import flags

from launch import cli, compile_for_tpu

#: Method -> config, whose variants are sizes.
METHODS = {
    "var": "var_imagenet256",
    **{
        name: f"family/{name}"
        for name in (
            *("hmar", "hmar_masked", "mvar", "m_var", "flexvar", "nfig", "infinity", "flowar"),
            *("diffusion", "refiner", "class_names", "cca", "sar", "scale_kv", "green_list"),
        )
    },
}
#: Size -> what is kept for the backward pass: for VAR the cheapest on most slices that have it fit.
REMAT = {"d16": "dots", "d30": "full"}
TOPOLOGIES = ("v5e:16x16", "v6e:8x8")
#: Images on each device that are drawn at once.
DRAWN = 8

_METHODS = flags.DEFINE_list("methods", list(METHODS), "Which methods.")
_SIZES = flags.DEFINE_list("sizes", list(REMAT), "Which sizes.")
_TOPOLOGIES = flags.DEFINE_list("topologies", list(TOPOLOGIES), "Which slices.")
_WHATS = flags.DEFINE_list("whats", ["train", "sample"], "Of train and sample.")
_FOLDER = cli.define_path("folder", "docs", "Where family_on_tpu.json and family_on_tpu.md lie.")

HEADER = """# The family on TPU slices

Written by `python -m benchmarks.family_on_tpu`; no TPU was used. Each row is a real program, the
training step (tokens from a cache, bfloat16 compute, float32 parameters and AdamW, remat {remat})
or the drawing and decoding of {drawn} images on each device, compiled by the TPU compiler. All
methods have the batch of VAR's recipe of that size. TFLOP, GB of main memory and of links are those
of one device and one run; GiB is the compiler's peak. The floors are what each of them takes at the
published peaks; the last two columns are the largest floor and their sum as parts of VAR's. MVAR
trains some of its levels in a step: the row is one kind of its steps.
"""
#: What a row is of.
NAMED = ("method", "size", "topology", "what")
COLUMNS = ("method", "TFLOP", "GiB", "GB memory", "GB links", "compute ms", "memory ms", "links ms")


def load_config(method: str, size: str):
    """A method's config of a size; None if it has none."""
    path = pathlib.Path(__file__).parents[1] / "configs" / f"{METHODS[method]}.py"
    try:
        config = runpy.run_path(str(path))["get_config"](size)
    except ValueError:
        return None
    config.model.remat = REMAT[size]
    return config


def make_row(method: str, size: str, topology: str, what: str) -> dict | None:
    """Compiles one row; None if the method has no such size."""
    from var_jax.plan.topology import devices as devices_of

    config = load_config(method, size)
    if config is None:
        return None
    devices = devices_of(topology)
    recipe = load_config("var", size).train.batch_size
    batch = recipe if what == "train" else DRAWN * len(devices)
    plan = compile_for_tpu.make_plan(config, devices, what, batch)
    return {
        "method": method,
        "size": size,
        "topology": topology,
        "what": what,
        "images": batch,
        "fits": plan.fits,
        "flops": plan.program_flops,
        "peak_bytes": plan.peak_bytes if math.isfinite(plan.peak_bytes) else None,
        "memory_traffic": plan.memory_traffic,
        "link_traffic": sum(plan.link_traffic.values()),
        "floors": plan.floors,
        "compile_seconds": plan.compile_seconds,
    }


def render(rows: list[dict]) -> str:
    """The page."""
    remat = ", ".join(f"{remat} at {size}" for size, remat in REMAT.items())
    lines = [HEADER.format(remat=remat, drawn=DRAWN).rstrip("\n")]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["size"], row["topology"], row["what"]), []).append(row)
    for (size, topology, what), found in sorted(groups.items()):
        kind = "training step" if what == "train" else "sampling"
        lines += [
            f"\n## {size} on {topology}: {kind}, {found[0]['images']:,} images\n",
            "| " + " | ".join((*COLUMNS, "of VAR's: floor", "sum")) + " |",
            "| --- " * (len(COLUMNS) + 2) + "|",
        ]
        order = list(METHODS)
        found = sorted(found, key=lambda row: order.index(row["method"]))
        lines += ["| " + " | ".join(_cells(row, found[0])) + " |" for row in found]
    return "\n".join(lines) + "\n"


def _cells(row: dict, first: dict) -> list[str]:
    if not row["fits"]:
        needs = row["peak_bytes"]
        much = f"needs {needs / 2**30:.0f} GiB" if needs else "does not fit"
        return [row["method"], f"{row['flops'] / 1e12:.2f}", much, *("" for _ in range(7))]
    floors = row["floors"]
    parts = ["", ""]
    if first["method"] == "var" and first["fits"]:
        parts = [f"{f(floors.values()) / f(first['floors'].values()):.2f}" for f in (max, sum)]
    return [
        row["method"],
        f"{row['flops'] / 1e12:.2f}",
        f"{row['peak_bytes'] / 2**30:.1f}",
        f"{row['memory_traffic'] / 1e9:.1f}",
        f"{row['link_traffic'] / 1e9:.2f}",
        *(f"{1e3 * floors[kind]:.1f}" for kind in ("compute", "memory", "links")),
        *parts,
    ]


def main() -> None:
    unknown = set(_METHODS.value) - set(METHODS) | set(_SIZES.value) - set(REMAT)
    if unknown:
        raise ValueError(
            f"Unknown methods or sizes {sorted(unknown)}; known are {', '.join(METHODS)} and "
            f"{', '.join(REMAT)}."
        )
    folder = pathlib.Path(_FOLDER.value)
    store = folder / "family_on_tpu.json"
    rows = json.loads(store.read_text()) if store.exists() else []
    asked = itertools.product(_SIZES.value, _TOPOLOGIES.value, _WHATS.value, _METHODS.value)
    for size, topology, what, method in asked:
        named = (method, size, topology, what)
        if any(named == tuple(row[key] for key in NAMED) for row in rows):
            continue
        row = make_row(*named)
        if row is not None:
            rows.append(row)
            store.write_text(json.dumps(rows, indent=1) + "\n")
            (folder / "family_on_tpu.md").write_text(render(rows))
            print(f"{' '.join(named)}: {row['floors']}", flush=True)


if __name__ == "__main__":
    compile_for_tpu.reexecute("benchmarks.family_on_tpu")
    cli.run(main)

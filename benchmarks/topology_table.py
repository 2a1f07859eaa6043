"""Compiles the published recipes for TPU slices and writes docs/topologies.md.

python -m benchmarks.topology_table                      # every row that is not there yet: 2 hours
python -m benchmarks.topology_table --models d16,d30 --topologies v5e:16x16 --redo

Rows are kept in docs/topologies.json, one after the other, so that the command can be ended and
started again.
"""

from __future__ import annotations

import json
import math
import pathlib
import runpy

from absl import flags

from launch import cli, compile_for_tpu

_MODELS = flags.DEFINE_list("models", ["d16", "d20", "d24", "d30", "d36"], "Which models.")
_TOPOLOGIES = flags.DEFINE_list("topologies", [], "Which topologies; all by default.")
_REDO = flags.DEFINE_bool("redo", False, "Compile rows anew that are there already.")
_FOLDER = cli.define_path("folder", "docs", "Where topologies.json and topologies.md lie.")

#: Slices of 8, 64 and 256 devices: so many chips, but half as many of TPU7x.
TOPOLOGIES = (
    *("v4:2x2x2", "v4:4x4x4", "v4:4x8x8"),
    *("v5e:2x4", "v5e:8x8", "v5e:16x16"),
    *("v5p:2x2x2", "v5p:4x4x4", "v5p:4x8x8"),
    *("v6e:2x4", "v6e:8x8", "v6e:16x16"),
    *("tpu7x:2x2x1", "tpu7x:2x4x4", "tpu7x:4x4x8"),
)

#: One larger slice for the largest models, whose chips divide the batch: 512 and 768.
LARGER = {"d30": ("v5p:8x8x8",), "d36": ("v5p:8x8x12",)}

#: What the compiler may keep for the backward pass, most first.
REMAT = ("none", "dots", "full")

#: Part of a chip's memory that the step must leave free, for batches on their way and gaps.
SPARE = 0.05

HEADER = """# The published recipes on TPU slices

Written by `python -m benchmarks.topology_table`; no TPU was used. Each row is the real training
step (tokens from a cache, bfloat16 compute, float32 parameters and AdamW, Pallas attention)
compiled by the TPU compiler. A device is what JAX shows as one: a chip, or half of a TPU7x, which
counts as half a chip in everything. GiB/device is the compiler's peak. The floors are what
arithmetic, memory traffic and traffic between devices take at the published peaks, each by itself;
a real step takes at least the largest and, if nothing overlaps, their sum. The last two columns
give both ends: the utilisation (useful operations over peak) and the chip hours of the recipe.

`remat` is the one of none, dots, full that leaves a twentieth of the memory free and costs least if
nothing overlaps; [Plan a run](planning.md) says in which rows full was not compiled. The mesh is
the recipes' own: 16 devices (or all 8) share one copy of parameters and optimizer. Of the sizes
tried, 1 to 64 for d16 and 8 to 64 for d30, it costs least or within a twentieth of the least.

| model | slice | chips | data x fsdp | images/device | remat | GiB/device | compute ms \
| memory ms | links ms | utilisation | chip hours |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def load_config(model: str):
    """The recipe of a model: d36 is the 512 px one."""
    name, variant = ("var_imagenet512", ()) if model == "d36" else ("var_imagenet256", (model,))
    path = pathlib.Path(__file__).parents[1] / "configs" / f"{name}.py"
    return runpy.run_path(str(path))["get_config"](*variant)


def make_row(model: str, topology: str) -> dict:
    """Compiles one row; of the remats that leave SPARE of the memory free the cheapest."""
    from var_jax import build
    from var_jax.plan import accelerators
    from var_jax.plan.topology import devices as devices_of

    devices = devices_of(topology)
    chip = accelerators.of_kind(devices[0].device_kind)
    config = load_config(model)
    row = {
        "model": model,
        "topology": topology,
        "chips": len(devices) // chip.per_chip,
        "devices": len(devices),
        "fsdp": build.make_mesh(config, devices).shape["fsdp"],
        "images": config.train.batch_size / len(devices),
        "fits": False,
    }
    least = math.inf
    for remat in REMAT:
        config.model.remat = remat
        try:
            plan = compile_for_tpu.make_plan(config, devices)
        except ValueError as error:
            return row | {"remat": remat, "problem": str(error)}
        fits = plan.fits and plan.peak_bytes <= (1 - SPARE) * chip.hbm_bytes
        if row["fits"] and not (fits and plan.serial_seconds < least):
            # More arithmetic did not save enough traffic; still more will not.
            break
        row |= {"remat": remat, "needs": plan.peak_bytes, "fits": fits}
        if fits:
            steps, least = config.train.num_steps, plan.serial_seconds
            ends = (plan.floor_seconds, least)
            row |= {
                "floors": plan.floors,
                "utilisation": [plan.utilisation(s) for s in ends],
                "chip_hours": [plan.chip_hours(steps, s) for s in ends],
                "compile_seconds": plan.compile_seconds,
            }
    return row


def render(rows: list[dict]) -> str:
    """The page."""
    lines = [HEADER.rstrip("\n")]
    models = {m: i for i, m in enumerate(("d16", "d20", "d24", "d30", "d36"))}

    def order(row: dict) -> tuple:
        return models[row["model"]], row["topology"].split(":")[0], row["chips"]

    for row in sorted(rows, key=order):
        cells = [
            row["model"],
            row["topology"],
            str(row["chips"]),
            f"{row['devices'] // row['fsdp']} x {row['fsdp']}",
            f"{row['images']:g}",
        ]
        if row["fits"]:
            floors = row["floors"]
            low, high = row["utilisation"][1], row["utilisation"][0]
            least, most = row["chip_hours"]
            cells += [
                row["remat"],
                f"{row['needs'] / 2**30:.1f}",
                *(f"{1e3 * floors[k]:.0f}" for k in ("compute", "memory", "links")),
                f"{low:.0%} to {high:.0%}",
                f"{least:,.0f} to {most:,.0f}",
            ]
        else:
            needs = row.get("problem") or f"needs {row['needs'] / 2**30:.0f} GiB: too much"
            cells += [row["remat"], needs, "", "", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    folder = pathlib.Path(_FOLDER.value)
    store = folder / "topologies.json"
    rows = json.loads(store.read_text()) if store.exists() else []
    for model in _MODELS.value:
        for topology in _TOPOLOGIES.value or (*TOPOLOGIES, *LARGER.get(model, ())):
            old = [r for r in rows if (r["model"], r["topology"]) == (model, topology)]
            if old and not _REDO.value:
                continue
            row = make_row(model, topology)
            rows = [r for r in rows if r not in old] + [row]
            store.write_text(json.dumps(rows, indent=1) + "\n")
            (folder / "topologies.md").write_text(render(rows))
            print(render([row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    compile_for_tpu.reexecute("benchmarks.topology_table")
    cli.run(main)

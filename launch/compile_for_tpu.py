"""Compiles a config's training step, evaluation or sampling for a TPU slice, on any machine.

python -m launch.compile_for_tpu --config configs/var_imagenet256.py:d30 --topology v5e:16x16
python -m launch.compile_for_tpu --config configs/var_imagenet256.py:d30 --topology v5e:4x4 \
    --what sample --batch_size 128
python -m launch.compile_for_tpu --config configs/tokenizer_imagenet256.py --topology v5e:16x16 \
    --what train_tokenizer
python -m launch.compile_for_tpu --config configs/var_imagenet256.py:d30 --topology v5e:16x16 \
    --what evaluation

No TPU is needed: the real TPU compiler runs on the CPU (package libtpu). Prints what each device
(a chip, or half of a TPU7x) needs, the least time a step can take and what the recipe costs.
'evaluation' are the programs of the evaluators that run while a transformer trains, each beside the
train state. Exit status 1: something does not fit.
"""

from __future__ import annotations

import math
import os
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from launch import cli
from var_jax.plan import topology

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:16x16, v5p:4x4x4, tpu7x:4x4x8.")
_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices of that topology.", 1)
_WHAT = flags.DEFINE_enum(
    "what", "train", ["train", "train_tokenizer", "sample", "evaluation"], "What to compile."
)
_BATCH = flags.DEFINE_integer("batch_size", 0, "Instead of the config's; images to sample.", 0)
_IMAGES = flags.DEFINE_bool("images", False, "Train from images, encoded in the step, not tokens.")

#: What the process must be told before JAX and libtpu are loaded.
ENVIRONMENT = {
    **topology.ENVIRONMENT,
    "JAX_PLATFORMS": "cpu",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def reexecute(module: str) -> None:
    """Starts this command anew with ENVIRONMENT if it was started without."""
    if any(os.environ.get(key) != value for key, value in ENVIRONMENT.items()):
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def make_plan(
    config: ConfigDict,
    devices,
    what: str = "train",
    batch_size: int = 0,
    images: bool = False,
):
    """Compiles a program of the config for the devices of a topology.

    Args:
      config: complete; its mesh is laid over the devices.
      devices: see `topology.devices`.
      what: 'train', 'train_tokenizer' or 'sample'.
      batch_size: instead of the config's; 0 keeps it, or means 8 samples per device.
      images: train from images, encoded in the step, instead of tokens.

    Returns:
      `compile_plan.Plan`.

    Raises:
      ValueError: a dimension does not divide by its mesh axes.
    """
    from var_jax import build
    from var_jax.plan import compile_plan, programs

    mesh = build.make_mesh(config, devices)
    if what == "train":
        program = programs.train_step(config, mesh, batch_size, images)
    elif what == "train_tokenizer":
        program = programs.train_tokenizer_step(config, mesh, batch_size)
    else:
        program = programs.sample(config, mesh, batch_size or 8 * len(devices))
    return compile_plan.make_plan(program)


def evaluation_plans(config: ConfigDict, devices, images: bool = False):
    """Compiles what evaluates while a transformer trains, one program after the other.

    Args:
      config, devices, images: see `make_plan`.

    Yields:
      (what it is for, `compile_plan.Plan`).
    """
    from var_jax import build
    from var_jax.plan import compile_plan, programs

    mesh = build.make_mesh(config, devices)
    for name, program in programs.evaluation(config, mesh, images).items():
        yield name, compile_plan.make_plan(program)


def knob(config: ConfigDict, plan, what: str) -> str:
    """What to turn where a program does not fit."""
    if what == "sample":
        return "lower --batch_size"
    section, remat = ("train", "config.model.remat='full'")
    spared = config.get("model", {}).get("remat", "none") == "full"
    if what == "train_tokenizer":
        section, remat = ("tokenizer_train", "config.tokenizer.remat=True")
        spared = config.tokenizer.get("remat", False)
    settings, mesh = config[section], plan.mesh
    microbatches = settings.get("microbatches", 1)
    share = settings.batch_size // (mesh["data"] * mesh["fsdp"] * microbatches)
    if not spared:
        return f"set {remat}"
    if share > 1:
        return f"set config.{section}.microbatches={2 * microbatches}"
    if mesh["data"] > 1:
        return f"raise config.mesh.fsdp above {mesh['fsdp']}"
    return "take a larger slice, or set config.mesh.tensor"


def describe(config: ConfigDict, plan, what: str) -> str:
    """The plan in words and numbers."""
    gib = 2.0**30
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    rows = plan.mesh["data"] * plan.mesh["fsdp"]
    chip = plan.chip
    lines = [
        f"chips            {plan.num_chips:g} x {chip.name}, mesh {mesh}, preset {config.sharding}",
        f"batch            {plan.images} images, {plan.images / rows:g} on each of {rows} devices",
        f"compiled in      {plan.compile_seconds:.0f} s on this machine",
    ]
    if not plan.fits:
        needed = "more" if math.isnan(plan.peak_bytes) else f"{plan.total_bytes / gib:.1f} GiB"
        lines.append(
            f"DOES NOT FIT     needs {needed} of a device's {chip.hbm_bytes / gib:.0f} GiB: "
            + knob(config, plan, what)
        )
        return "\n".join(lines)
    network = []
    if plan.network_traffic:
        network.append(
            f"floor: network   {1e3 * plan.network_seconds:8.1f} ms for "
            f"{plan.network_traffic / 1e9:.2f} GB between slices at "
            f"{chip.network_bandwidth / 1e9:.1f} GB/s"
        )
    lines += [
        f"memory/device    {plan.argument_bytes / gib:.2f} GiB arguments + "
        f"{plan.temporary_bytes / gib:.2f} GiB temporaries, {plan.peak_bytes / gib:.2f} GiB at the "
        f"peak of {chip.hbm_bytes / gib:.0f} GiB: fits",
        f"FLOPs/device     {plan.program_flops:.3e} in the program"
        + (f", {plan.model_flops:.3e} of the model" if plan.model_flops else ""),
        f"floor: compute   {1e3 * plan.compute_seconds:8.1f} ms at {chip.flops / 1e12:.0f} TFLOP/s",
        f"floor: memory    {1e3 * plan.memory_seconds:8.1f} ms for "
        f"{plan.memory_traffic / 1e9:.1f} GB at {chip.hbm_bandwidth / 1e9:.0f} GB/s",
        f"floor: links     {1e3 * plan.link_seconds:8.1f} ms for "
        f"{sum(plan.link_traffic.values()) / 1e9:.2f} GB at {chip.link_bandwidth / 1e9:.0f} GB/s ("
        + ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sorted(plan.link_traffic.items()))
        + ")",
        *network,
        f"step             {1e3 * plan.floor_seconds:.1f} ms at least (bound by {plan.bound_by}), "
        f"{1e3 * plan.serial_seconds:.1f} ms if nothing overlaps",
    ]
    if what == "train":
        lines.append(
            f"evaluation       keeps {plan.beside_bytes / gib:.2f} GiB beside the step, "
            f"{plan.total_bytes / gib:.2f} GiB together; its programs: --what evaluation"
        )
    if plan.model_flops:
        best, serial = plan.floor_seconds, plan.serial_seconds
        steps = config.train.num_steps
        lines += [
            f"utilisation      {plan.utilisation(best):.0%} at most, "
            f"{plan.utilisation(serial):.0%} if nothing overlaps",
            f"the recipe       {steps} steps: {plan.chip_hours(steps, best):,.0f} to "
            f"{plan.chip_hours(steps, serial):,.0f} chip hours, "
            f"{steps * best / 3600:,.1f} to {steps * serial / 3600:,.1f} hours",
        ]
    else:
        lines.append(f"images           {plan.images / plan.floor_seconds:,.0f} a second at most")
    return "\n".join(lines)


def describe_evaluation(name: str, plan) -> str:
    """A line about a program of the evaluation."""
    gib = 2.0**30
    head = f"{name:34s} {plan.images:5d} images  "
    size = f"{plan.chip.hbm_bytes / gib:.0f} GiB"
    if math.isnan(plan.peak_bytes):
        return f"{head}DOES NOT FIT into {size}"
    memory = f"{plan.total_bytes / gib:5.2f} of {size} at the peak"
    if not plan.argument_bytes:
        return f"{head}{memory}: DOES NOT FIT"
    return (
        f"{head}{memory}, {plan.beside_bytes / gib:.2f} of them beside it: "
        f"{'fits' if plan.fits else 'DOES NOT FIT'}; {1e3 * plan.floor_seconds:.0f} to "
        f"{1e3 * plan.serial_seconds:.0f} ms"
    )


def main() -> None:
    config = _CONFIG.value
    devices = topology.devices(_TOPOLOGY.value, _SLICES.value)
    if _WHAT.value == "evaluation":
        fits = True
        for name, plan in evaluation_plans(config, devices, _IMAGES.value):
            print(describe_evaluation(name, plan), flush=True)
            fits &= plan.fits
        sys.exit(0 if fits else 1)
    plan = make_plan(config, devices, _WHAT.value, _BATCH.value, _IMAGES.value)
    print(describe(config, plan, _WHAT.value))
    if not plan.fits:
        sys.exit(1)


if __name__ == "__main__":
    reexecute("launch.compile_for_tpu")
    flags.mark_flags_as_required(["config", "topology"])
    cli.run(main)

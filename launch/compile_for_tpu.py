"""Compiles a config's training step (or its sampling) for a TPU slice, on any machine.

python -m launch.compile_for_tpu --config configs/var_imagenet256.py:d30 --topology v5e:16x16
python -m launch.compile_for_tpu --config configs/var_imagenet256.py:d30 --topology v5e:4x4 \
    --what sample --batch_size 128

No TPU is needed: the real TPU compiler runs on the CPU (package libtpu). Prints what each chip
needs, the least time a step can take and what the recipe costs. Exit status 1: it does not fit.
"""

from __future__ import annotations

import math
import os
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from launch import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:16x16, v5p:4x4x4, v6e:8x8.")
_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices of that topology.", 1)
_WHAT = flags.DEFINE_enum("what", "train", ["train", "sample"], "What to compile.")
_BATCH = flags.DEFINE_integer("batch_size", 0, "Instead of the config's; images to sample.", 0)
_IMAGES = flags.DEFINE_bool("images", False, "Train from images, encoded in the step, not tokens.")

#: What the process must be told before JAX and libtpu are loaded.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def reexecute(module: str) -> None:
    """Starts this command anew with ENVIRONMENT if it was started without."""
    if any(os.environ.get(key) != value for key, value in ENVIRONMENT.items()):
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def plan_train(config: ConfigDict, devices, batch_size: int = 0, images: bool = False):
    """The plan of one training step.

    Args:
      config: complete; its mesh is laid over the devices.
      devices: of a topology.
      batch_size: instead of the config's; 0 keeps it.
      images: encode images in the step instead of reading tokens.

    Returns:
      `compile_plan.Plan`.

    Raises:
      ValueError: a dimension does not divide by its mesh axes.
    """
    import jax
    import jax.numpy as jnp

    from var_jax import build, compile_plan, sharding
    from var_jax.flops import forward_flops
    from var_jax.train import optim
    from var_jax.train.state import create
    from var_jax.train.step import make_train_step

    settings = build.train_settings(config, "train")
    batch_size = batch_size or settings.batch_size
    config.model.num_classes = config.model.num_classes or 1000
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_batch(batch_size, mesh, settings.microbatches)
    module, tokenizer_params = _abstract_tokenizer(config, mesh)
    loaded = build.LoadedTokenizer(module, tokenizer_params, "", config)
    _, objective = build.likelihood(config, loaded, cached=not images)
    optimizer_config = build.optimizer_config(config.train.optimizer, "train.optimizer", batch_size)
    optimizer = optim.make_optimizer(optimizer_config, settings.num_steps)

    def init(key):
        return create(objective, optimizer, key, settings.ema_decay > 0)

    with sharding.activate(mesh, config.sharding):
        boxed = jax.eval_shape(init, jax.random.key(0))
    state = sharding.abstract_state(boxed, mesh, config.sharding)
    rows = sharding.batch_sharding(mesh)

    def array(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=rows)

    batch = {"label": array(), "index": array()}
    if images:
        size, channels = config.data.image_size, config.data.channels
        batch["image"] = array(size, size, channels, dtype=jnp.uint8)
    else:
        batch["tokens"] = array(objective.var.pyramid.length)
    step = make_train_step(
        objective, optimizer, config.seed, settings.microbatches, settings.ema_decay
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(
        step, donate_argnums=0, out_shardings=(shardings, sharding.replicated_sharding(mesh))
    )
    frozen = tokenizer_params if images else {"codec": tokenizer_params["codec"]}
    flops = 3 * batch_size * forward_flops(objective.var, objective.head.vocab_size)
    return compile_plan.make_plan(jitted, (state, frozen, batch), mesh, config.sharding, flops)


def plan_sample(config: ConfigDict, devices, batch_size: int):
    """The plan of generating and decoding that many images; arguments as for plan_train."""
    import jax
    import jax.numpy as jnp

    from var_jax import build, compile_plan, sharding
    from var_jax.sampling.generate import generate

    config.model.num_classes = config.model.num_classes or 1000
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_batch(batch_size, mesh)
    module, tokenizer_params = _abstract_tokenizer(config, mesh)
    loaded = build.LoadedTokenizer(module, tokenizer_params, "", config)
    _, objective = build.likelihood(config, loaded, cached=True)
    sampler = build.sampler(config)
    with sharding.activate(mesh, config.sharding):
        boxed = jax.eval_shape(objective.init_params, jax.random.key(0))
    params = sharding.abstract_state(boxed, mesh, config.sharding)
    rows = sharding.batch_sharding(mesh)

    def run(params, frozen, labels, seeds):
        keys = jax.vmap(jax.random.key)(seeds)
        result = generate(
            objective.var,
            objective.head,
            module.codec,
            params,
            frozen["codec"],
            labels,
            keys,
            sampler,
        )
        return module.apply({"params": frozen}, result.features, method="decode")

    numbers = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=rows)
    jitted = jax.jit(run, out_shardings=rows)
    args = (params, tokenizer_params, numbers, numbers)
    return compile_plan.make_plan(jitted, args, mesh, config.sharding)


def _abstract_tokenizer(config: ConfigDict, mesh):
    """The tokenizer and its abstract parameters, a whole copy on each chip."""
    import jax
    import jax.numpy as jnp

    from var_jax import build, sharding

    module = build.tokenizer(config)
    size, channels = config.data.image_size, config.data.channels
    image = jnp.zeros((1, size, size, channels))
    with sharding.activate(mesh, "replicated"):
        boxed = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    return module, sharding.abstract_state(boxed, mesh, "replicated")


def knob(config: ConfigDict, plan) -> str:
    """What to turn where the training step does not fit."""
    model, train, mesh = config.model, config.train, plan.mesh
    share = train.batch_size // (mesh["data"] * mesh["fsdp"] * train.get("microbatches", 1))
    if model.get("remat", "none") != "full":
        return "set config.model.remat='full'"
    if share > 1:
        return f"set config.train.microbatches={2 * train.get('microbatches', 1)}"
    if mesh["data"] > 1:
        return f"raise config.mesh.fsdp above {mesh['fsdp']}"
    return "take a larger slice, or set config.mesh.tensor"


def describe(config: ConfigDict, plan, what: str, batch_size: int) -> str:
    """The plan in words and numbers."""
    gib = 2.0**30
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    rows = plan.mesh["data"] * plan.mesh["fsdp"]
    chip = plan.chip
    lines = [
        f"chips            {plan.num_chips} x {chip.name}, mesh {mesh}, preset {config.sharding}",
        f"batch            {batch_size} images, {batch_size / rows:g} on each of {rows} devices",
        f"compiled in      {plan.compile_seconds:.0f} s on this machine",
    ]
    if not plan.fits:
        needed = "more" if math.isnan(plan.peak_bytes) else f"{plan.peak_bytes / gib:.1f} GiB"
        advice = knob(config, plan) if what == "train" else "lower --batch_size"
        lines.append(
            f"DOES NOT FIT     needs {needed} of a chip's {chip.hbm_bytes / gib:.0f} GiB: {advice}"
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
        f"memory a chip    {plan.argument_bytes / gib:.2f} GiB arguments + "
        f"{plan.temporary_bytes / gib:.2f} GiB temporaries, {plan.peak_bytes / gib:.2f} GiB in all "
        f"of {chip.hbm_bytes / gib:.0f} GiB: fits",
        f"FLOPs a chip     {plan.program_flops:.3e} in the program"
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
        lines.append(f"images           {batch_size / plan.floor_seconds:,.0f} a second at most")
    return "\n".join(lines)


def main() -> None:
    from var_jax import compile_plan

    config = _CONFIG.value
    devices = compile_plan.topology_devices(_TOPOLOGY.value, _SLICES.value)
    if _WHAT.value == "train":
        batch_size = _BATCH.value or config.train.batch_size
        plan = plan_train(config, devices, batch_size, _IMAGES.value)
    else:
        batch_size = _BATCH.value or 8 * len(devices)
        plan = plan_sample(config, devices, batch_size)
    print(describe(config, plan, _WHAT.value, batch_size))
    if not plan.fits:
        sys.exit(1)


if __name__ == "__main__":
    reexecute("launch.compile_for_tpu")
    flags.mark_flags_as_required(["config", "topology"])
    cli.run(main)

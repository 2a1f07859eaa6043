"""A family of sizes trained alike, and the power laws of their losses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from var_jax import build, paths
from var_jax.checkpoint import Checkpointer
from var_jax.evaluation.scaling import scaling_figure
from var_jax.evaluation.scaling.scaling_law import QUANTITIES, Curve, analyse
from var_jax.plan import flops
from var_jax.train.metrics import read_metrics


def train_transformer(
    config: ConfigDict, workdir: str, should_stop: Callable[[int], bool] = lambda step: False
) -> bool:
    """An ordinary training run of one size; whether it is at its end."""
    return build.run(config, workdir, "transformer", should_stop)


def study(
    config: ConfigDict,
    workdir: str,
    should_stop: Callable[[int], bool] = lambda step: False,
    train_size: Callable[[ConfigDict, str, Callable], bool] = train_transformer,
) -> bool:
    """Trains what is not trained yet, then writes the results.

    Args:
      config: with the section scaling.
      workdir: local or gs:// directory.
      should_stop: asked after each step, counted over all sizes.
      train_size: config, workdir, should_stop -> whether the training is at its end.

    Returns:
      Whether all sizes are trained.
    """
    settings, sizes = build.scaling_settings(config)
    check_runs(config, workdir)
    names, asked = list(sizes), False
    for i, name in enumerate(names):

        def stop(step: int, before: int = i * config.train.num_steps) -> bool:
            nonlocal asked
            asked = should_stop(before + step)
            return asked

        logging.info("Size %s of %s.", name, ", ".join(names))
        if not train_size(size_config(config, name), f"{workdir}/{name}", stop) or asked:
            return False
    write_results(config, settings, workdir)
    return True


def size_config(config: ConfigDict, name: str) -> ConfigDict:
    """The config of an ordinary training run of one size."""
    one = ConfigDict({k: v for k, v in config.to_dict().items() if k != "scaling"})
    with one.unlocked():
        one.model.update(config.scaling.sizes[name].to_dict())
    return one


def check_runs(config: ConfigDict, workdir: str) -> None:
    """Raises ValueError if a run that is there was started with other settings."""
    for name in config.scaling.sizes:
        path = epath.Path(workdir) / name / "config.json"
        if not path.exists():
            continue
        before = json.loads(path.read_text())
        changes = build.changes(before, size_config(config, name), "transformer")
        changed = [str(change) for change in changes if not change.changeable]
        if changed:
            raise ValueError(
                f"The run in {path.parent} was started with another config ({', '.join(changed)}); "
                "the sizes of a family must differ in nothing else, so give another --workdir."
            )


def write_results(config: ConfigDict, settings: build.ScalingSettings, workdir: str) -> None:
    """Fits the laws to the runs in `workdir` and writes scaling.json, .md and .png."""
    if jax.process_index():
        return
    curves, sizes = [], []
    for name in config.scaling.sizes:
        curve, size = read_run(f"{workdir}/{name}", name, settings.on)
        curves.append(curve)
        sizes.append(size)
    fits = analyse(curves, settings.resamples, settings.frontier_start)
    where = {"held_out": "the held-out split", "train": "the training batches since the last log"}
    notes = [
        f"Loss (nats per token) and token error on {where[settings.on]}, at the end of each run.",
        "N counts the parameters of the transformer's blocks (for VAR's own sizes 73,728 depth^3), "
        "not embeddings, tables and head. C is 3 times the matrix products of a forward pass, "
        "head included, times the images seen (about 6 N tokens).",
        f"Intervals: 95%, from {settings.resamples} resamples, of residuals for parameters and "
        "of whole runs for compute. r: Pearson's correlation of log x and log(L - L_inf). The "
        f"frontier leaves out the first {settings.frontier_start:.0%} of each run.",
    ]
    values = {
        "notes": notes,
        "settings": dataclasses.asdict(settings),
        "sizes": sizes,
        "fits": fits,
    }
    output = epath.Path(workdir)
    picture = scaling_figure.draw(curves, fits, "parameters of the blocks N")
    paths.write_bytes(output / "scaling.png", picture)
    text = scaling_figure.tables(values)
    paths.write_text(output / "scaling.md", text)
    # Last, so that its presence says that the study is complete.
    paths.write_json(output / "scaling.json", values)
    print(text)


def read_run(workdir: str, name: str, on: str) -> tuple[Any, dict[str, Any]]:
    """A run's curve, and what to say about its size.

    Args:
      workdir: of the run.
      name: of the size.
      on: 'held_out' or 'train'.

    Raises:
      ValueError: the run did not log what is needed.
    """
    with Checkpointer(workdir, read_only=True) as reader:
        # As it was trained: with what the tokenizer and the data say filled in.
        config = ConfigDict(reader.read_metadata()["config"])
    prefix = "eval/" if on == "held_out" else ""
    lines = [m for m in read_metrics(workdir) if m.get(f"{prefix}loss_mean") is not None]
    steps = np.array([m["step"] + 1 for m in lines])
    if not len(steps) or steps[-1] != config.train.num_steps:
        raise ValueError(
            f"The run in {workdir} logged no {prefix}loss_mean at its last step; let "
            "config.evaluation.likelihood be True, or log_every divide num_steps."
        )
    network = build.network(config)
    var = network.transformer
    per_image = 3 * flops.forward_flops(network)
    values: dict[str, Any] = {}
    for part in ("mean", "last"):
        values[f"loss_{part}"] = np.array([m[f"{prefix}loss_{part}"] for m in lines])
        values[f"error_{part}"] = 1 - np.array([m[f"{prefix}accuracy_{part}"] for m in lines])
    params = jax.eval_shape(network.init_params, jax.random.key(0))
    blocks = flops.num_parameters(params["transformer"]["blocks"])
    images = steps * config.train.batch_size
    curve = Curve(name, blocks, images * per_image, values)
    return curve, {
        "name": name,
        "depth": var.depth,
        "width": var.width,
        "num_heads": var.num_heads,
        "block_parameters": blocks,
        "parameters": flops.num_parameters(params),
        "steps": int(steps[-1]),
        "images": int(images[-1]),
        "flops_per_image": per_image,
        "training_flops": float(images[-1] * per_image),
        **{q: float(values[q][-1]) for q in QUANTITIES},
        "curve": {"steps": steps.tolist(), **{q: values[q].tolist() for q in QUANTITIES}},
    }

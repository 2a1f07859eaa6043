"""MVAR against its public code: training on slices of levels, and generation without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from family.case import (
    by_level,
    check_generation,
    check_grad_norms,
    check_teacher_inputs,
    loss_and_gradient,
    pyramid,
    read_params,
    residual_codec,
)

from var_jax.context import OwnNeighbourhood, OwnScale, dense_mask, key_segments
from var_jax.convert import official, var
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.objectives.curriculum import TrainedLevels
from var_jax.objectives.level_cycle import LevelCycle
from var_jax.objectives.likelihood import Likelihood
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR


def slices(case):
    """The levels of each slice that trains alone, by its name."""
    first, count = case.config["refine_step"], pyramid(case).num_levels
    return {"front": range(first)} | {f"scale{k}": range(k, k + 1) for k in range(first, count)}


@functools.cache
def network(case):
    """The network, its parameters, and the places of the official names, which are VAR's."""
    config = case.config
    width = config.get("width", 64 * config["depth"])
    transformer = VAR(
        pyramid(case),
        config["ncls"],
        config["Cvae"],
        config["depth"],
        width,
        config.get("heads", config["depth"]),
        context=OwnNeighbourhood(config["refine_step"], config["kernel_size"]),
        qk_norm=config["l2"],
        shared_adaln=config["saln"],
    )
    made = Network(transformer, CategoricalHead(config["V"], width))
    return made, *read_params(case.state(), var.ROWS, official.abstract_network(made), var.BUFFERS)


def check_windows(case):
    for name in case.outputs:
        if name.startswith("window_mask_"):
            side = int(name.removeprefix("window_mask_"))
            level = ScalePyramid.from_patch_nums((side,))
            context = OwnNeighbourhood(0, case.config["kernel_size"])
            case.equal(dense_mask(key_segments(level, context), side**2), name)


def check_cycle(case):
    """The same cycle; but with more fine levels than repeats the public code never trains the last
    ones, and begins again with the first in their place."""
    first = case.config["refine_step"]

    def last_levels(patch_nums, first, repeats, steps):
        cycle = LevelCycle(ScalePyramid.from_patch_nums(patch_nums), OwnScale(), first, repeats)
        last = np.array([cycle.at(step).levels[-1] for step in range(steps)])
        return np.where(last < first, last, first + (last - first) % repeats)

    steps = len(case.outputs["cycle"])
    case.equal(last_levels(case.config["pn"], first, case.config["ratio_k"], steps), "cycle")
    published = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    steps = len(case.outputs["cycle_official"])
    case.equal(last_levels(published, 8, 8, steps), "cycle_official")


def check_logits(case):
    made, params, _ = network(case)
    first = np.zeros((case.config["B"], pyramid(case).sizes[0], case.config["Cvae"]), np.float32)
    inputs = np.concatenate([first, case.outputs["teacher_forcing_input"]], 1)
    labels = case.outputs["labels"]

    @functools.partial(jax.jit, static_argnames="levels")
    def run(params, labels, levels):
        read = inputs[:, pyramid(case).tokens(levels)]
        hidden, _ = made.hidden(params, read, labels, levels=levels)
        return made.head.apply({"params": params["head"]}, hidden)

    for name, levels in slices(case).items():
        case.close(run(params, labels, levels), f"logits_{name}")
        nothing = np.full_like(labels, case.config["ncls"])
        case.close(run(params, nothing, levels), f"logits_uncond_{name}")


def check_training(case):
    made, params, slots = network(case)
    module, codec_params = residual_codec(case)
    frozen = {"tokenizer": {"codec": codec_params}}
    batch = {
        "tokens": jnp.asarray(by_level(case.outputs, "tokens")),
        "label": jnp.asarray(case.outputs["train_labels"]),
    }
    for name, levels in slices(case).items():
        trained = TrainedLevels(pyramid(case), levels=levels)
        objective = Likelihood(made, VQVAE(module), trained=trained)
        value, grads = loss_and_gradient(objective, params, frozen, batch)
        case.close(value, f"train_loss_{name}")
        # A parameter that a slice does not use has no gradient there, and zeros here.
        expected = dict.fromkeys(slots, 0.0) | case.grad_norms[name]
        check_grad_norms(grads, slots, expected)


def check_draws(case, name, cfg=None, sampled=False):
    cfg = case.config["cfg"] if cfg is None else cfg
    check_generation(case, *network(case)[:2], name, cfg, sampled)


CHECKS = {
    "windows": check_windows,
    "cycle": check_cycle,
    "teacher_inputs": check_teacher_inputs,
    "logits": check_logits,
    "training": check_training,
    "greedy": functools.partial(check_draws, name="greedy"),
    # Their cfg of 1 stands for no guidance, and every other one for itself.
    "greedy_unguided": functools.partial(check_draws, name="greedy_unguided", cfg=0.0),
    "sampled": functools.partial(check_draws, name="sampled", sampled=True),
}

"""DiSA: fewer diffusion steps for what comes later, on MAR's head.

Source of the numbers: Qinyu-Allen-Zhao/DiSA 283fa59, folder MAR_DiSA.
"""

import numpy as np
from family.mar_diffloss import denoised, head_of, of_net, read_params

from var_jax.heads.diffusion import DiffusionSampling
from var_jax.heads.diffusion_schedule import spaced_times
from var_jax.heads.step_annealing import annealed_steps
from var_jax.pyramid import ScalePyramid

#: Of all steps; a later time counts as this one.
LATEST = 950


def levels(count, tokens=1):
    """A pyramid with as many levels as there are iterations."""
    return ScalePyramid(((1, tokens),) * count)


def check_steps(case):
    config, outputs = case.config, case.outputs
    pyramid = levels(config["ar_num_iter"])
    for strategy in ("linear", "cosine", "two_stage"):
        steps = [
            annealed_steps(config["upper"], config["lower"], strategy, level, pyramid)
            for level in range(pyramid.num_levels)
        ]
        case.equal(steps, f"nominal_steps_{strategy}")
        actual = [len(spaced_times(n, latest=LATEST)) for n in steps]
        case.equal(actual, f"actual_steps_{strategy}")
    # Theirs is of the few steps everywhere.
    assert set(outputs["nominal_steps_constant"]) == {config["lower"]}
    for name in ("lower", "upper"):
        case.equal(spaced_times(config[name], latest=LATEST), f"timestep_map_{name}")


def check_samples(case):
    config, outputs = case.config, case.outputs
    head = head_of(config["C"], config["Z"], config["width"], config["depth"])
    params = read_params(of_net(case.state()), config["depth"])
    pyramid = levels(config["small_iter"], config["n"])
    sampling = DiffusionSampling(
        config["small_upper"],
        config["temperature"],
        latest_time=LATEST,
        last_num_steps=config["small_lower"],
        annealing=config["strategy"],
    )
    weights = (config["cfg"], 1 - config["cfg"])
    hiddens = np.split(outputs["z"], 2)
    for level in config["at"]:
        settings = sampling.at(level, pyramid)
        case.equal(len(settings.times), f"steps_at{level}")
        steps = outputs["step_noise"].swapaxes(0, 1)[: len(settings.times)]
        found = denoised(head, params, outputs["init_noise"], steps, hiddens, weights, settings)
        case.close(found, f"sample_at{level}", 2e-4)


CHECKS = {"steps": check_steps, "samples": check_samples}

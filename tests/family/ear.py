"""EAR (immc-lab/ear): losses, windows and gradients of given hidden states."""

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.objectives.erasure import erased_target, level_sums, open_levels
from var_jax.pyramid import ScalePyramid


def windows(case):
    config, outputs = case.config, case.outputs
    window = config["window"]
    # Each window in place of a level.
    pyramid = ScalePyramid(((1, window),) * (config["steps"] // window))
    target = erased_target(
        *(outputs[name] for name in ("target", "concept", "neutral")), config["eta"]
    )

    def distances(tuned):
        return jnp.square(tuned - target).mean(range(1, tuned.ndim))

    def sums(tuned):
        return level_sums(distances(tuned), pyramid)

    def loss(tuned):
        return open_levels(sums(tuned), config["threshold"]).sum()

    tuned = jnp.asarray(outputs["tuned"])
    case.close(distances(tuned), "loss_per_step")
    np.testing.assert_allclose(sums(tuned), outputs["accumulated"][window - 1 :: window], rtol=1e-5)
    updated = window * (1 + np.flatnonzero(sums(tuned) > config["threshold"]))
    case.equal(updated, "updates_after_step")
    case.close(jax.grad(loss)(tuned), "grad_tuned")


CHECKS = {"windows": windows}

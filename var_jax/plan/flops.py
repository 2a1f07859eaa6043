"""Floating-point operations: of the model by its formula, of a program by its trace."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

from var_jax.network import Network
from var_jax.objectives.base import NetworkObjective
from var_jax.pyramid import ScalePyramid


def forward_flops(
    network: Network, pyramid: ScalePyramid | None = None, levels: range | None = None
) -> float:
    """Multiplications and additions of one image's teacher-forced pass, head included.

    Counts matrix products only, two operations for each multiply-add; attention counts the
    keys that a query sees and no others, cross-attention its maps of queries and results. A
    training step is three times that (the usual convention: rematerialisation does not count as
    work done).

    Args:
      network: whose transformer and head.
      pyramid: of the pass; the network's own by default.
      levels: of the pyramid, consecutive ones that see none before them; all by default.
    """
    pyramid = network.transformer.pyramid if pyramid is None else pyramid
    levels = range(pyramid.num_levels) if levels is None else levels
    tokens = pyramid.part(levels).length
    return network.transformer.flops(pyramid, levels) + network.head.flops(tokens)


@functools.lru_cache(maxsize=256)  # A log asks for every step, and few objectives differ.
def training_flops(objective: NetworkObjective) -> float:
    """Operations of a training step for one image: the passes of an objective over the levels that
    it trains, each as `forward_flops` counts it."""
    trained = objective.trained
    over = () if trained is None else (trained.pyramid, trained.levels)
    return objective.passes * forward_flops(objective.network, *over)


def program_flops(jaxpr: Any) -> float:
    """Matrix-product operations of a traced program, over all devices.

    Loops count as often as they run, rematerialised parts as often as they are computed. A
    Pallas kernel counts as its cost estimate if it has one, else as its body for each program
    of its grid.

    Args:
      jaxpr: `jax.jit(f).trace(*args).jaxpr`.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return float(sum(_equation_flops(equation) for equation in jaxpr.eqns))


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return (
            2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contract)
        )
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
    if name == "cond":
        return max(program_flops(branch) for branch in params["branches"])
    inner = sum(program_flops(p) for p in _inner_programs(params))
    if name == "scan":
        return inner * params["length"]
    if name == "shard_map":
        mesh = params["mesh"]
        manual = params.get("manual_axes", mesh.axis_names)
        return inner * math.prod(mesh.shape[axis] for axis in manual)
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        if estimate is not None:
            return float(estimate.flops)
        grid = [n for n in params["grid_mapping"].grid if isinstance(n, int)]
        return inner * math.prod(grid)
    return inner


def times_computed(jaxpr: Any, name: str) -> int:
    """How often a traced program computes the value that `checkpoint_name` calls so.

    Loops of a known length count as often as they run, others and branches once.

    Args:
      jaxpr: `jax.jit(f).trace(*args).jaxpr`.
      name: of the value.
    """
    count = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        kind, params = equation.primitive.name, equation.params
        if kind == "name":
            count += params["name"] == name
        inner = sum(times_computed(program, name) for program in _inner_programs(params))
        count += inner * (params["length"] if kind == "scan" else 1)
    return count


def _inner_programs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters, each once."""
    found: list[Any] = []
    for key, value in params.items():
        if key in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"):
            continue
        for item in value if isinstance(value, list | tuple) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                found.append(item)
    return found


def num_parameters(tree: Any) -> int:
    """Elements of all arrays of a tree."""
    return int(sum(np.prod(x.shape, dtype=np.int64) for x in jax.tree.leaves(tree)))

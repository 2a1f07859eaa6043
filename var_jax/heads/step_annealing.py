"""Fewer steps for later levels, of which more is known (DiSA, arXiv 2505.20297)."""

from __future__ import annotations

import math

from var_jax.heads.base import at_level
from var_jax.pyramid import ScalePyramid

#: How the number of steps falls from the first level to the last.
ANNEALINGS = ("constant", "linear", "cosine", "two_stage")


def annealed_steps(
    num_steps: int | tuple[int, ...],
    last_num_steps: int | None,
    annealing: str,
    level: int,
    pyramid: ScalePyramid,
) -> int:
    """Steps in which a level is drawn; what lies between two numbers is rounded down.

    Args:
      num_steps: of the first level; with 'constant' of all, or a tuple with those of each.
      last_num_steps: of the last level; None with 'constant'.
      annealing: 'constant', 'linear', 'cosine' (half a period), or 'two_stage': the first half of
        the levels has num_steps, the others have last_num_steps.
      level, pyramid: that is drawn.

    Raises:
      ValueError: an unknown annealing, or numbers that do not go with it.
    """
    if annealing not in ANNEALINGS:
        raise ValueError(f"annealing is {annealing!r}; choose one of {', '.join(ANNEALINGS)}.")
    if annealing == "constant":
        if last_num_steps is not None:
            raise ValueError(
                f"last_num_steps is {last_num_steps}, but annealing is 'constant'; choose another "
                "annealing, or leave last_num_steps out."
            )
        return at_level(num_steps, "num_steps", level, pyramid)
    if last_num_steps is None or isinstance(num_steps, tuple):
        raise ValueError(
            f"annealing {annealing!r} leads from num_steps to last_num_steps, but they are "
            f"{num_steps} and {last_num_steps}; give two numbers."
        )
    if annealing == "two_stage":
        return num_steps if 2 * level < pyramid.num_levels else last_num_steps
    last = max(pyramid.num_levels - 1, 1)
    if annealing == "linear":
        return int(last_num_steps + (num_steps - last_num_steps) * (last - level) / last)
    share = 0.5 * (1 + math.cos(math.pi * level / last))
    return int(last_num_steps + (num_steps - last_num_steps) * share)

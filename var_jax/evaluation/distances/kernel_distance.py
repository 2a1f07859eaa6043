"""Kernel inception distance.

Source: Binkowski et al. 2018 (arXiv 1801.01401).
"""

from __future__ import annotations

import numpy as np
from flax import struct
from jaxtyping import Float


@struct.dataclass
class KernelDistance:
    """Mean and standard deviation over random subsets of the squared distance.

    Attributes:
      mean: unbiased estimate; may be slightly negative for equal distributions.
      std: over the subsets.
      subset_size: samples of either set in a subset.
    """

    mean: float
    std: float
    subset_size: int = struct.field(pytree_node=False)


def kernel_distance(
    real: Float[np.ndarray, "n D"],
    fake: Float[np.ndarray, "m D"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3.

    Args:
      real, fake: features.
      subsets: random subsets to average over.
      subset_size: their size; the smaller set's where that is smaller.
      seed: of the subsets.
    """
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise ValueError(
            f"The kernel distance needs 2 samples of either set, and there are {len(real)} real "
            f"and {len(fake)} generated ones."
        )
    rng = np.random.default_rng(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        x = real[rng.choice(len(real), size, replace=False)]
        y = fake[rng.choice(len(fake), size, replace=False)]
        values[i] = squared_mmd(x, y)
    return KernelDistance(float(values.mean()), float(values.std()), size)


def squared_mmd(x: Float[np.ndarray, "n D"], y: Float[np.ndarray, "m D"]) -> float:
    """Unbiased estimate from two sets of features [n, D] and [m, D]."""
    n, m = len(x), len(y)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
    within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * xy.mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((x @ y.T).astype(np.float64) / x.shape[1] + 1) ** 3

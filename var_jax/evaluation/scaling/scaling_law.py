"""Power laws of loss and token error in model size and in training compute.

L(x) = (x / x0)^a and L(x) = L_inf + (x / x0)^a are fitted to a family of trained models, in N, the
parameters, and along the frontier of least compute, which a family's training curves leave below
them. The first is a straight line through log x and log L. The second minimises relative errors:
for a given exponent the best L_inf and x0 follow in closed form, so only the exponent is searched
for, and there are no local minima to fall into. scipy's searches would take the bootstrap's samples
one by one; here all are searched at once.

Source: Tian et al. 2024 (arXiv 2404.02905), sections 4.2 and 5.2, figures 5 and 6.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Int, Num

#: What is fitted: mean over all levels and of the last level; error is 1 - accuracy.
QUANTITIES = ("loss_mean", "loss_last", "error_mean", "error_last")
COVERAGE = 0.95
_STEEPEST, _FLATTEST = -4.0, -1e-3


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """L(x) = floor + (x / x0)^exponent.

    Attributes:
      exponent: negative where L falls.
      log_x0: natural logarithm of x0, in the unit of x.
      floor: L_inf >= 0.
    """

    exponent: float
    log_x0: float
    floor: float = 0.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """L at x > 0."""
        return self.floor + np.exp(self.exponent * (np.log(x) - self.log_x0))


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law and how well it is known.

    Attributes:
      law: the fit.
      exponent_interval, log_x0_interval, floor_interval: bootstrap intervals of 95%.
      correlation: Pearson's coefficient of log x and log(y - floor); nan where a point lies
        below the floor.
      relative_error: root mean square of y / law(x) - 1.
      num_points: of the fit.
    """

    law: PowerLaw
    exponent_interval: tuple[float, float]
    log_x0_interval: tuple[float, float]
    floor_interval: tuple[float, float]
    correlation: float
    relative_error: float
    num_points: int

    def as_dict(self) -> dict[str, Any]:
        """Numbers by name for JSON; null where one is not finite. For a flat law x0 is far outside
        the range of floating point; log_x0 is not."""

        def clean(value):
            if isinstance(value, tuple):
                return [clean(v) for v in value]
            return float(value) if math.isfinite(value) else None

        def exp(value):
            return tuple(map(exp, value)) if isinstance(value, tuple) else float(np.exp(value))

        with np.errstate(over="ignore"):
            values = {
                "exponent": self.law.exponent,
                "exponent_interval": self.exponent_interval,
                "log_x0": self.law.log_x0,
                "x0": exp(self.law.log_x0),
                "x0_interval": exp(self.log_x0_interval),
                "floor": self.law.floor,
                "floor_interval": self.floor_interval,
                "correlation": self.correlation,
                "relative_error": self.relative_error,
            }
        return {**{k: clean(v) for k, v in values.items()}, "num_points": self.num_points}


@dataclasses.dataclass(frozen=True)
class Curve:
    """The evaluations of one run.

    Attributes:
      name: of the size.
      parameters: N.
      compute: float64 [n], training FLOPs until each evaluation, ascending.
      values: quantity -> float64 [n].
    """

    name: str
    parameters: float
    compute: np.ndarray
    values: Mapping[str, np.ndarray]


def fit(
    x: Num[np.ndarray, " n"],
    y: Num[np.ndarray, " n"],
    floor: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Fit:
    """The law through points, with intervals from resampled residuals.

    The log residuals are drawn with replacement: sizes are chosen, not drawn, so the points
    themselves stay. With p fitted numbers they are scaled by (n / (n - p))^(1/2), and by the ratio
    of Student's to the normal quantile, without which intervals from a handful of sizes come out
    too narrow.

    Args:
      x, y: positive.
      floor: fit L_inf too.
      resamples, seed: of the bootstrap.

    Raises:
      ValueError: too few different points, or values that are not positive.
    """
    x, y = _check(x, y, floor)
    law = _fit_many(x, y[None], floor)[0]
    residuals = np.log(y) - np.log(law(x))
    freedom = len(x) - (3 if floor else 2)
    tail = (1 - COVERAGE) / 2
    residuals *= math.sqrt(len(x) / freedom)
    residuals *= scipy.stats.t.ppf(tail, freedom) / scipy.stats.norm.ppf(tail)
    drawn = np.random.default_rng(seed).choice(residuals, (resamples, len(x)))
    return _summarise(x, y, law, _fit_many(x, law(x) * np.exp(drawn), floor))


def frontier(
    compute: Num[np.ndarray, " n"], values: Num[np.ndarray, " n"]
) -> Int[np.ndarray, " best"]:
    """Indices of the points than which none is as good for as little compute, by compute."""
    order = np.lexsort((values, compute))
    best = np.minimum.accumulate(values[order])
    keep = np.ones(len(order), bool)
    keep[1:] = values[order][1:] < best[:-1]
    return order[keep]


def fit_frontier(
    curves: Sequence[Curve],
    quantity: str,
    floor: bool = False,
    resamples: int = 200,
    seed: int = 0,
) -> Fit:
    """The law along the frontier of least compute.

    Points of one curve are not independent, so the bootstrap draws whole runs.

    Args:
      curves: of all runs.
      quantity: key of their values.
      floor, resamples, seed: as for `fit`.
    """

    def points(chosen):
        compute = np.concatenate([c.compute for c in chosen])
        values = np.concatenate([c.values[quantity] for c in chosen])
        best = frontier(compute, values)
        return compute[best], values[best]

    x, y = _check(*points(curves), floor=floor)
    law = _fit_many(x, y[None], floor)[0]
    laws, rng = [], np.random.default_rng(seed)
    for _ in range(resamples):
        chosen = [curves[i] for i in rng.integers(0, len(curves), len(curves))]
        some = points(chosen)
        if len(some[0]) >= _least(floor):
            laws.append(_fit_many(some[0], some[1][None], floor)[0])
    return _summarise(x, y, law, laws or [law])


def analyse(
    curves: Sequence[Curve], resamples: int = 1000, frontier_start: float = 0.0
) -> dict[str, Any]:
    """All fits of a family, ready for JSON.

    Args:
      curves: one per size; the last evaluation of each is the size's result.
      resamples: of the bootstrap.
      frontier_start: evaluations in the first part of a run, as a fraction of its compute, stay
        out of the frontier: while the learning rate warms up nothing follows a law.

    Returns:
      {"parameters" | "compute": {quantity: {"power_law" | "with_floor": Fit.as_dict()}},
      "monotone": {quantity: whether it falls from size to size}}; a fit that has too few
      points is null.
    """
    curves = sorted(curves, key=lambda curve: curve.parameters)
    size = np.array([c.parameters for c in curves], np.float64)
    later = [_after(c, frontier_start) for c in curves]
    found: dict[str, Any] = {"parameters": {}, "compute": {}, "monotone": {}}
    for name in QUANTITIES:
        last = np.array([c.values[name][-1] for c in curves])
        found["monotone"][name] = bool((np.diff(last) < 0).all())
        found["parameters"][name], found["compute"][name] = {}, {}
        for kind, floor in (("power_law", False), ("with_floor", True)):
            enough = len(curves) >= _least(floor)
            found["parameters"][name][kind] = (
                fit(size, last, floor, resamples).as_dict() if enough else None
            )
            try:
                fitted = fit_frontier(later, name, floor, resamples).as_dict()
            except ValueError:  # A frontier of two or three points.
                fitted = None
            found["compute"][name][kind] = fitted
    return found


def law_from_dict(values: Mapping[str, Any]) -> PowerLaw:
    """The law of a `Fit.as_dict()`."""
    return PowerLaw(values["exponent"], values["log_x0"], values["floor"])


def _after(curve: Curve, fraction: float) -> Curve:
    keep = curve.compute >= fraction * curve.compute[-1]
    values = {name: value[keep] for name, value in curve.values.items()}
    return Curve(curve.name, curve.parameters, curve.compute[keep], values)


def _least(floor: bool) -> int:
    """Points that leave a residual."""
    return 4 if floor else 3


def _check(x: np.ndarray, y: np.ndarray, floor: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"Points of shapes {x.shape} and {y.shape} do not belong together.")
    if len(np.unique(x)) < _least(floor):
        raise ValueError(
            f"A power law {'with' if floor else 'without'} a floor needs at least "
            f"{_least(floor)} different sizes, got {len(np.unique(x))}."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise ValueError("A power law needs positive, finite numbers.")
    return x, y


def _fit_many(x: np.ndarray, y: np.ndarray, floor: bool) -> list[PowerLaw]:
    """The laws through y [R, n] at the same x [n]."""
    centre = np.log(x).mean()
    if not floor:
        log_x, log_y = np.log(x) - centre, np.log(y)
        exponent = (log_y @ log_x) / (log_x @ log_x)
        return [
            PowerLaw(float(a), float(centre - b / a) if a else -math.inf)
            for a, b in zip(exponent, log_y.mean(1), strict=True)
        ]
    # One grid of exponents for all, then each around its own best, finer and finer.
    log_a = np.broadcast_to(np.linspace(np.log(-_STEEPEST), np.log(-_FLATTEST), 161), (len(y), 161))
    for _ in range(5):
        error, level, factor = _project(np.log(x) - centre, y, -np.exp(log_a))
        best = error.argmin(1)[:, None]
        low, high = np.clip(best - 1, 0, None), np.clip(best + 1, None, log_a.shape[1] - 1)
        low, high = (np.take_along_axis(log_a, i, 1) for i in (low, high))
        last = tuple(np.take_along_axis(v, best, 1)[:, 0] for v in (log_a, level, factor))
        log_a = low + (high - low) * np.linspace(0, 1, 21)
    return [
        PowerLaw(float(-np.exp(a)), float(centre + np.log(c) / np.exp(a)), float(b))
        for a, b, c in zip(*last, strict=True)
    ]


def _project(log_x: np.ndarray, y: np.ndarray, exponents: np.ndarray):
    """Least squares of relative errors in (floor, factor) >= 0 for given exponents.

    Args:
      log_x: [n], centred.
      y: [R, n].
      exponents: [R, G].

    Returns:
      error, floor, factor, each [R, G].
    """
    z = np.exp(exponents[..., None] * log_x)  # [R, G, n]
    weight = (1 / np.square(y))[:, None]
    weight = weight / weight.sum(-1, keepdims=True)
    y = y[:, None]
    mean_y, mean_z = (weight * y).sum(-1, keepdims=True), (weight * z).sum(-1, keepdims=True)
    factor = (weight * (z - mean_z) * y).sum(-1) / (weight * np.square(z - mean_z)).sum(-1)
    level = mean_y[..., 0] - factor * mean_z[..., 0]
    alone = (weight * z * y).sum(-1) / (weight * z * z).sum(-1)
    below = level < 0
    factor, level = np.where(below, alone, factor), np.where(below, 0.0, level)
    # A negative factor would make L rise; what is left then is a floor and nothing above it.
    factor = np.maximum(factor, np.finfo(np.float64).tiny)
    error = (weight * np.square(y - level[..., None] - factor[..., None] * z)).sum(-1)
    return error, level, factor


def _summarise(x: np.ndarray, y: np.ndarray, law: PowerLaw, laws: Sequence[PowerLaw]) -> Fit:
    def interval(values):
        tail = 50 * (1 - COVERAGE)
        low, high = np.percentile(values, [tail, 100 - tail])
        return float(low), float(high)

    above = y - law.floor
    correlation = np.corrcoef(np.log(x), np.log(above))[0, 1] if (above > 0).all() else math.nan
    return Fit(
        law=law,
        exponent_interval=interval([a.exponent for a in laws]),
        log_x0_interval=interval([a.log_x0 for a in laws]),
        floor_interval=interval([a.floor for a in laws]),
        correlation=float(correlation),
        relative_error=float(np.sqrt(np.square(y / law(x) - 1).mean())),
        num_points=len(x),
    )

import json
import math

import numpy as np
import pytest

from var_jax.evaluation.scaling.scaling_law import (
    QUANTITIES,
    Curve,
    PowerLaw,
    analyse,
    fit,
    fit_frontier,
    frontier,
    law_from_dict,
)

SIZES = np.geomspace(2e4, 2e7, 10)


@pytest.mark.parametrize("exponent", [-0.01, -0.2, -0.8])
def test_a_planted_law_is_recovered(exponent):
    planted = PowerLaw(exponent, math.log(500.0))
    found = fit(SIZES, planted(SIZES), resamples=1).law
    assert found.exponent == pytest.approx(exponent, rel=1e-8)
    assert found.log_x0 == pytest.approx(planted.log_x0, rel=1e-6)


@pytest.mark.parametrize("exponent, floor", [(-0.2, 0.5), (-0.5, 2.0), (-1.0, 0.1)])
def test_a_planted_floor_is_recovered(exponent, floor):
    planted = PowerLaw(exponent, math.log(5e4), floor)
    found = fit(SIZES, planted(SIZES), floor=True, resamples=1).law
    assert found.exponent == pytest.approx(exponent, rel=1e-3)
    assert found.floor == pytest.approx(floor, rel=1e-3)
    assert found.log_x0 == pytest.approx(planted.log_x0, rel=1e-3)


def test_without_a_planted_floor_none_is_found():
    planted = PowerLaw(-0.3, math.log(500.0))
    found = fit(SIZES, planted(SIZES), floor=True, resamples=1).law
    assert found.floor < 1e-3 * planted(SIZES).min()
    assert found.exponent == pytest.approx(-0.3, rel=1e-2)


@pytest.mark.parametrize("floor", [0.0, 1.5])
def test_the_interval_covers_the_planted_exponent(floor):
    planted = PowerLaw(-0.4, math.log(5e4), floor)
    covered = 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.01, len(SIZES))
        found = fit(SIZES, planted(SIZES) * np.exp(noise), bool(floor), 200, seed)
        low, high = found.exponent_interval
        assert low <= found.law.exponent <= high
        covered += low <= -0.4 <= high
        assert found.correlation < -0.97
        assert high - low < 0.6
    assert covered >= 17  # 19 of 20 are due.


def test_the_fit_does_not_depend_on_units():
    rng = np.random.default_rng(0)
    y = PowerLaw(-0.3, math.log(5e4), 1.0)(SIZES) * np.exp(rng.normal(0, 0.01, len(SIZES)))
    a, b = fit(SIZES, y, True, 50), fit(1e9 * SIZES, y, True, 50)
    assert b.law.exponent == pytest.approx(a.law.exponent, rel=1e-6)
    assert b.law.log_x0 - a.law.log_x0 == pytest.approx(math.log(1e9), rel=1e-6)


def test_the_frontier_is_what_nothing_cheaper_beats():
    compute = np.array([1.0, 2.0, 2.0, 3.0, 4.0, 5.0])
    values = np.array([5.0, 4.0, 3.0, 3.5, 3.0, 1.0])
    assert frontier(compute, values).tolist() == [0, 2, 5]
    shuffled = np.random.default_rng(0).permutation(6)
    chosen = shuffled[frontier(compute[shuffled], values[shuffled])]
    assert sorted(chosen.tolist()) == [0, 2, 5]


def family(laws=None, evaluations=30):
    """Curves that fall towards their size's loss and touch compute^-0.1 on their way."""
    curves = []
    for i, size in enumerate(np.geomspace(1e4, 1e6, 6)):
        compute = size * np.geomspace(1e3, 1e5, evaluations)
        best = (compute / 1e4) ** -0.1
        reached = (size * 1e4 / 1e4) ** -0.1
        values = best * (1 + 0.02 * np.square(np.log(best / reached)))
        curves.append(Curve(f"d{i}", size, compute, {name: values for name in QUANTITIES}))
    return curves


def test_the_frontier_of_a_family_follows_its_law():
    found = fit_frontier(family(), "loss_mean", resamples=50)
    assert found.law.exponent == pytest.approx(-0.1, abs=2e-3)
    assert found.correlation < -0.99
    low, high = found.exponent_interval
    assert low < high < 0


def test_a_whole_family_is_ready_for_json():
    values = json.loads(json.dumps(analyse(family()[::-1], resamples=50, frontier_start=0.1)))
    assert values["monotone"] == dict.fromkeys(QUANTITIES, True)
    for axis in ("parameters", "compute"):
        assert set(values[axis]) == set(QUANTITIES)
        for fits in values[axis].values():
            assert fits["power_law"]["exponent"] < 0 <= fits["with_floor"]["floor"]
    law = law_from_dict(values["parameters"]["loss_mean"]["power_law"])
    last = [c.values["loss_mean"][-1] for c in family()]
    assert law(np.geomspace(1e4, 1e6, 6)) == pytest.approx(last, rel=0.05)


def test_a_nearly_flat_law_survives_json():
    planted = PowerLaw(-1e-4, -1000.0)
    values = json.loads(json.dumps(fit(SIZES, planted(SIZES), resamples=10).as_dict()))
    assert values["x0"] == 0  # exp(-1000)
    np.testing.assert_allclose(law_from_dict(values)(SIZES), planted(SIZES), rtol=1e-6)


def test_what_cannot_be_fitted_is_said(unchecked):
    with pytest.raises(ValueError, match="at least 4 different sizes, got 3"):
        fit(SIZES[:3], SIZES[:3], floor=True)
    with pytest.raises(ValueError, match="positive"):
        fit(SIZES, -SIZES)
    with pytest.raises(ValueError, match="do not belong together"):
        fit(SIZES, SIZES[:4])
    few = analyse(family()[:3], resamples=10)
    assert few["parameters"]["loss_mean"]["with_floor"] is None
    assert few["parameters"]["loss_mean"]["power_law"] is not None

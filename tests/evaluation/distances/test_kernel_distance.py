import numpy as np
import pytest

from var_jax.evaluation.distances.kernel_distance import kernel_distance, squared_mmd


def test_unbiased_estimate_by_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.normal(size=(5, 4)) + 1

    def kernel(a, b):
        return (a @ b / 4 + 1) ** 3

    within_x = np.mean([kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    np.testing.assert_allclose(squared_mmd(x, y), within_x + within_y - 2 * between, rtol=1e-12)


def test_subsets_average_to_the_whole_and_equal_sets_to_zero():
    rng = np.random.default_rng(1)
    real, same, other = (
        rng.normal(size=(400, 16)).astype(np.float32) + shift for shift in (0, 0, 1)
    )
    near = kernel_distance(real, same, subsets=20, subset_size=200)
    far = kernel_distance(real, other, subsets=20, subset_size=200)
    assert abs(near.mean) < 0.05 * far.mean
    np.testing.assert_allclose(far.mean, squared_mmd(real, other), rtol=0.1)
    assert kernel_distance(real, other, subsets=2).subset_size == 400
    assert kernel_distance(real, other, subsets=2) == kernel_distance(real, other, subsets=2)


def test_too_few_samples():
    with pytest.raises(ValueError, match="1 real"):
        kernel_distance(np.zeros((1, 3)), np.zeros((5, 3)))

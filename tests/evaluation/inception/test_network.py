import numpy as np
import pytest

from var_jax.evaluation.inception.network import Inception, tf1_bilinear_matrix


def test_resize_keeps_equal_sizes_and_constants():
    np.testing.assert_array_equal(tf1_bilinear_matrix(299, 299), np.eye(299))
    for size in (1, 17, 256, 512):
        np.testing.assert_allclose(tf1_bilinear_matrix(size, 299).sum(1), 1, rtol=1e-6)


def test_resize_samples_at_the_corner_of_a_pixel():
    """Doubling by TensorFlow 1's rule: even outputs are inputs, odd ones the means."""
    matrix = tf1_bilinear_matrix(4, 8)
    np.testing.assert_allclose(
        matrix @ np.array([0.0, 1, 2, 3]), [0, 0.5, 1, 1.5, 2, 2.5, 3, 3], rtol=1e-6
    )


def test_unknown_features_are_named():
    with pytest.raises(ValueError, match=r"\['1024'\]"):
        Inception().apply({"params": {}}, np.zeros((1, 8, 8, 3), np.uint8), ("1024",))

"""The tests check the shapes that annotations tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from var_jax.evaluation.distances import frechet
from var_jax.tokenizer import autoencoder


@pytest.mark.parametrize("features", [np.zeros(3), np.zeros((4, 3), np.int32)])
def test_of_functions(features):
    with pytest.raises(TypeCheckError, match="features"):
        frechet.statistics(features)


def test_of_dataclasses():
    with pytest.raises(TypeCheckError, match="covariance"):
        frechet.GaussianStatistics(2, np.zeros(3), np.zeros((3, 4)))


def test_of_modules_under_a_trace():
    with pytest.raises(TypeCheckError, match="images"):
        autoencoder.Encoder(4).init(jax.random.key(0), jnp.zeros((2, 8, 8)))

import pytest
from inception_file import write_inception

from var_jax.evaluation.inception.weights import load_inception


@pytest.fixture(scope="session")
def inception_path(tmp_path_factory):
    """A file of the Inception's names with deterministic weights."""
    return write_inception(tmp_path_factory.mktemp("inception") / "weights.safetensors")


@pytest.fixture(scope="session")
def inception_weights(inception_path):
    return load_inception(inception_path)

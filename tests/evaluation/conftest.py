import json
import pathlib

import numpy as np
import pytest
from goldens.fill import fill

from var_jax.convert import safetensors_file
from var_jax.evaluation.inception.weights import load_inception

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="session")
def inception_path(tmp_path_factory):
    """A file of the Inception's names with deterministic weights."""
    layout = json.loads((GOLDENS / "inception" / "layout.json").read_text())
    arrays = {
        name: fill(name, shape) * np.float32(np.sqrt(2) if len(shape) >= 2 else 1)
        for name, shape in layout
    }
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    safetensors_file.write(path, arrays)
    return path


@pytest.fixture(scope="session")
def inception_weights(inception_path):
    return load_inception(inception_path)

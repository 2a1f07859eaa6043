"""A file of the Inception's names and shapes with deterministic weights."""

import json
import pathlib

import numpy as np
from goldens.fill import fill

from var_jax.convert import safetensors_file

LAYOUT = pathlib.Path(__file__).parent / "goldens" / "inception" / "layout.json"


def write_inception(path):
    """Writes the weights as safetensors; returns the path."""
    arrays = {
        name: fill(name, shape) * np.float32(np.sqrt(2) if len(shape) >= 2 else 1)
        for name, shape in json.loads(LAYOUT.read_text())
    }
    safetensors_file.write(path, arrays)
    return path

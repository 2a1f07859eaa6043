"""Files of HMAR, FlexVAR and Infinity: all names have a place, and what is read is the golden's."""

import functools
import json
import pathlib

import family.flexvar
import family.hmar
import jax
import numpy as np
import pytest
from family.case import Case, lazy_state
from goldens.fill import fill
from ml_collections import ConfigDict

import var_jax
from var_jax import build
from var_jax.convert import mapping, official, safetensors_file
from var_jax.convert.config import tokenizer_config, transformer_config

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
#: Of the released files, and the grid of the cases of tokenizers.
VAE, VAR = "flexvar_vae", "hmar"


def case_of(name):
    return Case(GOLDENS / "family" / name)


def whole(case, layout="layout"):
    """The state dict of a case with all of its names, those that hold nothing to learn too."""
    named = json.loads((case.folder / f"{layout}.json").read_text())
    return {name: np.zeros(shape, np.float32) for name, shape in named} | case.state(layout)


def write(path, state):
    safetensors_file.write(path, state)
    return str(path)


@pytest.fixture(scope="module", params=["hmar", "flexvar"])
def imported(request, tmp_path_factory):
    """(case, the module that checks it, network and parameters read from a file)."""
    case = case_of(request.param)
    path = write(tmp_path_factory.mktemp("file") / "model.safetensors", whole(case))
    levels = case.config.get("pn") or next(iter(case.config["schedules"].values()))
    shape = official.describe_transformer(path, levels)
    assert shape.patch_nums == tuple(levels) and shape.depth == case.config["depth"]
    checks = {"hmar": family.hmar, "flexvar": family.flexvar}[request.param]
    return case, checks, *official.read_network(path, levels)


def test_the_imported_network_gives_the_golden_logits_and_tokens(imported, monkeypatch):
    case, checks, network, params = imported
    _, expected_params, _ = checks.network(case)
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)
    monkeypatch.setattr(checks, "network", lambda case: (network, params, None))
    checks.CHECKS["logits"](case)
    checks.CHECKS["greedy"](case)

"""Decoders that hold networks of their own: read from the workdirs that the config names."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from recipes import load
from untrained import write_model

from var_jax import build
from var_jax.build.sections import ConfigError
from var_jax.checkpoint import fingerprint
from var_jax.evaluation.generated.sampling_run import describe_decoder
from var_jax.network import Network


@dataclasses.dataclass(frozen=True)
class Holding:
    """A decoder with a network of its own."""

    teacher: Network
    guidance: Any = None
    sampling: Any = None


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def config(**decoder):
    found = load("mnist5k", "smallest")
    with found.unlocked():
        found.sampling.decoder = dict(kind=f"{__name__}:Holding", **decoder)
    return found


def test_a_plain_decoder_has_no_parameters():
    loaded = build.load_decoder(load("mnist5k"))
    assert loaded.decoder == build.decoder(load("mnist5k")) and loaded.params is None


def test_a_schedule_of_weights_given_one_by_one_is_refused():
    weights = {"cfg": (0.0, 1.0, 2.0, 3.0)}
    build.load_decoder(load("mnist5k"), settings=weights)
    with pytest.raises(ValueError, match="cfg_schedule is 'linear', but cfg is .*0.0, 1.0"):
        build.load_decoder(load("mnist5k"), settings={**weights, "cfg_schedule": "linear"})


def test_a_network_comes_with_the_parameters_of_its_checkpoint(workdir):
    model = build.load_transformer(workdir)
    loaded = build.load_decoder(config(teacher=str(workdir)), model.tokenizer.fingerprint)
    assert loaded.decoder.teacher == model.network
    jax.tree.map(np.testing.assert_array_equal, loaded.params["teacher"], model.params)
    # Another network of the same shape gives other samples.
    assert loaded.fingerprints == {"teacher": fingerprint(model.params)}
    described = describe_decoder(loaded.decoder, build.pyramid(model.config), loaded.fingerprints)
    assert described["decoder"]["teacher"] == fingerprint(model.params)


def test_a_network_of_another_tokenizer_is_refused(workdir):
    with pytest.raises(ValueError, match="decoder.teacher is .* which was trained with the token"):
        build.load_decoder(config(teacher=str(workdir)), "f" * 64)


def test_a_decoder_without_its_network_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="config.sampling.decoder needs a value for 'teacher'"):
        build.load_decoder(config())
    with pytest.raises(FileNotFoundError):
        build.load_decoder(config(teacher=str(tmp_path)))

import pytest
from ml_collections import ConfigDict
from recipes import load

from var_jax.build import EvaluationSettings, FIDSettings, evaluation_settings


def config(**evaluation):
    return ConfigDict(
        {"train": {"evaluate_every": 100, "num_steps": 1000}, "evaluation": evaluation}
    )


def test_a_config_without_the_section_evaluates_as_before():
    found = evaluation_settings(ConfigDict({"train": {"num_steps": 10}}), "train")
    assert found == EvaluationSettings(every=0, samples_per_class=4)
    assert evaluation_settings(ConfigDict({"train": {"evaluate_every": 100}}), "train").every == 100


def test_values_reach_the_settings():
    fid = dict(inception="i.pth", reference="r.npz", every=400)
    found = evaluation_settings(
        config(every=200, samples_per_class=0, reconstructions=8, fid=fid), "train"
    )
    assert found == EvaluationSettings(
        200, True, 0, 10, reconstructions=8, fid=FIDSettings("i.pth", "r.npz", 1000, 64, 400)
    )


def test_a_fid_without_files_is_off():
    fid = dict(inception="", reference="", num_samples=100)
    assert evaluation_settings(config(fid=fid), "train") == evaluation_settings(config(), "train")


def test_a_tokenizer_s_training_takes_its_own_steps_and_draws_no_samples():
    fid = dict(inception="i.pth", reference="r.npz", every=300)
    both = config(reconstructions=8, rfid="i.pth", fid=fid)
    both.tokenizer_train = {"evaluate_every": 40}
    found = evaluation_settings(both, "tokenizer_train")
    assert (found.every, found.reconstructions, found.rfid, found.fid) == (40, 8, "i.pth", None)


def test_the_examples_in_the_configs():
    found = evaluation_settings(load("var_imagenet256", "d16"), "train")
    assert found == EvaluationSettings(every=10000, reconstructions=0)
    one = load("var_imagenet256", "d16")
    one.evaluation.fid.update(inception="i.pth", reference="r.npz")
    assert evaluation_settings(one, "train").fid.every == 50000
    found = evaluation_settings(load("tokenizer_imagenet256"), "tokenizer_train")
    assert found == EvaluationSettings(every=10000, reconstructions=16)


@pytest.mark.parametrize(
    "evaluation, message",
    [
        (dict(fids=1), "config.evaluation has the unknown key 'fids'"),
        (dict(fid=dict(inception="i.pth")), "config.evaluation.fid needs a value for 'reference'"),
        (
            dict(fid=dict(inception="i.pth", reference="r.npz", number=3)),
            "config.evaluation.fid has the unknown key 'number'",
        ),
        (
            dict(every=200, fid=dict(inception="i.pth", reference="r.npz", every=300)),
            "fid.every is 300, which is no multiple of the 200 steps",
        ),
        (
            dict(every=0, fid=dict(inception="i.pth", reference="r.npz", every=300)),
            "fid.every is 300, which is no multiple of the 0 steps",
        ),
    ],
)
def test_mistakes_are_named(evaluation, message):
    with pytest.raises(ValueError, match=message):
        evaluation_settings(config(**evaluation), "train")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import PYRAMID, filled, generate, model, network
from untrained import write_model

from var_jax import build
from var_jax.decoding.collaborative import Collaborative
from var_jax.decoding.guidance import LinearGuidance, PerLevelGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling
from var_jax.heads.late_temperature import LateTemperature
from var_jax.pyramid import ScalePyramid

LABELS = np.arange(24) % 3
SAMPLING = CategoricalSampling(0, 0.9, temperature=(1.1, 1.0, 0.8))
RULES = [LinearGuidance(2.0), PerLevelGuidance((0.5, 0.0, 0.0)), LinearGuidance(0.0)]


def collaborate(drafted, rule=RULES[0], refiner=None, made=None, sampling=SAMPLING, **kwargs):
    net, params = refiner or model(1, seed=1)
    decoder = Collaborative(net, drafted, rule, sampling)
    return generate(decoder, LABELS, made, {"refiner": params}, **kwargs)


def plain(made, rule=RULES[0], **kwargs):
    return generate(NextScale(rule, SAMPLING), LABELS, made, **kwargs)


def test_all_levels_of_the_model_or_of_the_refiner_are_plain_generation():
    for drafted, made in ((PYRAMID.num_levels, model()), (0, model(1, seed=1))):
        jax.tree.map(
            np.testing.assert_array_equal,
            collaborate(drafted, keep_partial=True),
            plain(made, keep_partial=True),
        )


@pytest.mark.parametrize("rule", RULES)
def test_a_model_that_refines_its_own_draft_draws_what_it_draws_alone(rule):
    """With guidance to the end, guidance that ends before the second model begins, and none."""
    alone = plain(model(), rule)
    for drafted in (1, 2):
        together = collaborate(drafted, rule, refiner=model())
        np.testing.assert_array_equal(together.targets, alone.targets)


def test_the_draft_is_the_models_and_the_rest_hangs_on_the_refiner():
    alone, start = plain(model()), PYRAMID.offsets[2]
    found = [collaborate(2, refiner=model(1, seed=seed)).targets for seed in (1, 2)]
    for tokens in found:
        np.testing.assert_array_equal(tokens[:, :start], alone.targets[:, :start])
    assert (found[0][:, start:] != found[1][:, start:]).any()


def test_a_refiner_of_another_kind_is_refused():
    def refuse(message, drafted=1, **other):
        made = network(1, **other)
        with pytest.raises(ValueError, match=message):
            collaborate(drafted, refiner=(made, filled(made.init_params, 0)))

    refuse("refiner has the pyramid", pyramid=ScalePyramid.from_patch_nums((1, 2, 3)))
    refuse("refiner has the num_classes 5, the model 3", classes=5)
    refuse("num_drafted is 4", drafted=4)


def test_a_late_temperature_keeps_what_the_filters_kept():
    """Hot or not, the filters see temperature 1; without filters the two are the same."""
    hot = LateTemperature((5.0, 0.5, 0.5))

    def draw(filtered, *processors, **kwargs):
        top_p = 0.5 if filtered else 0.0
        sampling = CategoricalSampling(0, top_p, processors=processors, **kwargs)
        return generate(NextScale(RULES[0], sampling), LABELS).targets

    early = draw(False, temperature=(5.0, 0.5, 0.5))
    np.testing.assert_array_equal(draw(False, hot), early)
    first = [set(x[:, 0]) for x in (draw(True, LateTemperature(100.0)), draw(True))]
    assert first[0] <= kept_at_level_0(0.5) and len(first[0]) >= len(first[1])


def kept_at_level_0(top_p):
    """The codes of level 0 that the filter keeps for some label."""
    net, params = model()
    hidden, _ = net.hidden(params, None, jnp.arange(3), levels=range(1))
    logits = np.asarray(net.head.apply({"params": params["head"]}, hidden))[:, 0]
    found = set()
    for row in logits:
        probability = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        order = np.argsort(row)
        dropped = np.cumsum(probability[order]) <= 1 - top_p
        found |= set(order[~dropped])
    return found


def test_the_config_takes_the_checkpoint_that_it_names(tmp_path):
    workdir = write_model(tmp_path)
    config = load("family/code", "smallest")
    config.sampling.decoder.refiner = str(workdir)
    build.check_config(config)
    loaded = build.load_transformer(workdir)
    found = build.load_decoder(config, loaded.tokenizer.fingerprint)
    assert found.decoder.refiner == loaded.network and found.decoder.num_drafted == 2


@pytest.mark.parametrize("variant", ["", "d30"])
def test_the_variants_are_known(variant):
    build.check_config(load("family/code", variant))

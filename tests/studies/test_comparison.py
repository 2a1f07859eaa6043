"""The driver of a comparison: equal tokens, shared tokenizers and runs, resuming, its tables."""

import itertools
import json

import jax
import methods
import numpy as np
import pytest
from recipes import load
from small_network import filled

from var_jax import build
from var_jax.evaluation.small_sets.small_set import LabelledImages
from var_jax.plan import flops
from var_jax.studies import comparison, comparison_report, comparison_scores, small_set_run
from var_jax.studies.comparison_costs import drawing_costs


@pytest.fixture
def config():
    return load("family/compare", "smallest")


def test_every_method_sees_the_same_tokens(config):
    found = {method.name: method for method in comparison.methods_of(config)}
    assert list(found) == list(config.comparison.methods)
    for method in found.values():
        if "train.initial_checkpoint" in method.models:  # It goes on from another's run.
            continue
        per_step = [
            tokens
            for tokens, _ in itertools.islice(
                comparison_scores.passed_over(method.config), method.config.train.num_steps
            )
        ]
        total = sum(per_step)
        assert total >= config.comparison.tokens_seen > total - per_step[-1], method.name


def test_what_is_equal_is_made_once(config):
    found = {method.name: method for method in comparison.methods_of(config)}
    tokenizers = {name: method.tokenizer for name, method in found.items()}
    own = {"flexvar", "infinity", "flowar", "robustok", "nfig", "mar"}
    shared = {"sar": "flexvar", "disa": "flowar", "diffusion": "flowar"}
    shared |= {"xar": "mar", "acdit": "mar"}
    assert tokenizers == {name: name if name in own else shared.get(name, "var") for name in found}
    trained = {name: method.training for name, method in found.items()}
    # At this size the small VAR is VAR.
    again = {"code": "var", "scale_kv": "var", "var_small": "var", "disa": "flowar"}
    assert trained == {name: again.get(name, name) for name in found}
    assert found["code"].models == {"sampling.decoder.refiner": "var_small"}


@pytest.mark.parametrize("variant", ["", "emoji64"])
def test_methods_have_about_as_many_parameters(variant):
    config, sizes = load("family/compare", variant), {}
    for name in config.comparison.methods:
        config.methods[name].model.num_classes = 10
        network = build.network(config.methods[name])
        sizes[name] = flops.num_parameters(jax.eval_shape(network.init_params, jax.random.key(0)))
    assert sizes.pop("var_small") < 0.6 * sizes["var"]
    # HMAR's own end and a second one of two blocks.
    assert sizes["hmar"] < sizes.pop("hmar_masked") < 1.6 * sizes["hmar"]
    np.testing.assert_allclose(list(sizes.values()), sizes["var"], rtol=0.1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.comparison.update(seets=1), "unknown key 'seets'"),
        (lambda c: c.comparison.update(methods=("var", "vqr")), "give some of config.methods"),
        (lambda c: c.comparison.update(seeds=()), "seeds is empty"),
        (lambda c: c.comparison.update(sample_batch=100), "sample_batch is 100"),
        (lambda c: c.comparison.update(methods=("cca", "var")), "comes before it"),
        (lambda c: c.methods.hmar.data.update(image_size=16), "hmar.data differs"),
        (lambda c: c.methods.hmar.train.update(stepz=1), "methods.hmar.train has the unknown key"),
    ],
)
def test_mistakes_are_named(config, change, message):
    with config.unlocked():
        change(config)
    with pytest.raises(ValueError, match=message):
        build.check_config(config)
        build.comparison_settings(config)


class FakeScorer:
    """Scores without drawing anything."""

    def __init__(self, config, settings):
        self.settings = settings

    def real(self):
        return {"label_accuracy": 0.99, "frechet_distance": 4.0}

    def tokenizer(self, checkpoint):
        return {"parameters": 10, "psnr": 20.0, "frechet_distance": 9.0}

    def draw(self, checkpoint, config, seed):
        labels = np.arange(self.settings.num_samples) % 10
        images = np.zeros((len(labels), 8, 8, 1), np.uint8)
        numbers = {"label_accuracy": 0.5 + seed / 10, "frechet_distance": 20.0 + seed}
        numbers |= {"parameters": 1e6, "diversity": 0.8, "sample_seconds": 0.01}
        numbers |= {"sample_flops": 3e6, "passes": 4, "cache_bytes": 2048}
        return numbers, LabelledImages(images, labels)


def trained(checkpoint, config):
    return {
        "tokens_seen": 2368.0,
        "images_seen": 64,
        "held_out_loss": 5.0,
        "step_seconds": 0.02,
        "step_flops": 2e9,
        "curve": [(1000.0, 6.0), (2368.0, 5.0)],
    }


@pytest.fixture
def calls(monkeypatch):
    """What was trained and encoded, in order."""
    found = []

    def run(config, workdir, model):
        known = (config.seed, config.train.get("initial_checkpoint", ""))
        found.append((workdir, model, *(known if model == "transformer" else ())))

    monkeypatch.setattr(build, "run", run)
    monkeypatch.setattr(build, "cache_tokens", lambda *paths, crops: found.append(paths))
    monkeypatch.setattr(comparison, "Scorer", FakeScorer)
    monkeypatch.setattr(comparison, "trained", trained)
    return found


def test_a_study_trains_scores_and_goes_on_where_it_was(tmp_path, config, calls):
    config.comparison.methods = ("var", "scale_kv", "flowar", "cca")
    comparison.Study(config, tmp_path).run()
    tokenizers = tmp_path / "tokenizers"
    made = []
    for seed in (0, 1):
        for name in ("var", "flowar", "cca"):
            if name != "cca" and not seed:
                folder = tokenizers / name
                made.append((str(folder / "tokenizer"), "tokenizer"))
                made.append((str(folder / "tokenizer"), str(folder / "tokens")))
            start = str(tmp_path / "var" / str(seed) / "transformer") if name == "cca" else ""
            workdir = str(tmp_path / name / str(seed) / "transformer")
            made.append((workdir, "transformer", seed, start))
    assert calls == made
    values = json.loads((tmp_path / "comparison.json").read_text())
    assert {name: len(runs) for name, runs in values["runs"].items()} == dict.fromkeys(
        config.comparison.methods, 2
    )
    assert (tmp_path / "samples_cca.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "comparison.md").read_text()
    assert "| var | var | 1.00 | 5.000 +- 0.000 | 0.550 +- 0.050 | 20.5 +- 0.5 |" in text
    assert "| scale_kv | var | 1.00 | = var |" in text
    assert "| flowar | flowar | 1.00 | (5.000 +- 0.000) |" in text
    assert "| cca | 2 | 0.1 | 2.00 | 20 | 3 | 10 | 4 | 2.0 |" in text

    # All is there: nothing is trained. One run that is gone is made again.
    del calls[:]
    comparison.Study(config, tmp_path).run()
    assert not calls
    (tmp_path / "scale_kv" / "1" / "scores.json").unlink()
    comparison.Study(config, tmp_path).run()
    assert [call[0] for call in calls][-1] == str(tmp_path / "var" / "1" / "transformer")

    config.methods.cca.train.batch_size = 8
    with pytest.raises(ValueError, match="cca/0/scores.json was made with another config of cca"):
        comparison.Study(config, tmp_path)


def test_a_given_tokenizer_is_not_trained(tmp_path, config, calls):
    config.comparison.update(methods=("var", "hmar"), seeds=(3,))
    config.update(tokenizer_checkpoint="a", token_cache="b")
    comparison.Study(config, tmp_path).run()
    assert [call[1] for call in calls] == ["transformer", "transformer"]
    text = (tmp_path / "comparison.md").read_text()
    assert "One run of each method" in text and "| 0.800 |" in text


def costs(name, **sampling):
    config = load(name, "smallest")
    config.model.num_classes = 10
    if sampling:
        config.sampling.update(sampling)
    network, tokenizer = build.network(config), build.tokenizer(config)
    params, frozen = filled(network.init_params, 0), filled(tokenizer.init_params, 0)
    decoder = build.load_decoder(config).decoder
    given = np.zeros(1, np.int32)
    return network, drawing_costs(network, params, tokenizer, frozen, decoder, None, given)


def test_passes_and_cache_are_those_of_the_traced_program():
    network, found = costs("mnist5k")
    var = network.transformer
    assert found.passes == var.pyramid.num_levels
    # Keys and values of all levels but the last, conditional and unconditional, float32.
    kept = var.pyramid.length - var.pyramid.sizes[-1]
    assert found.cache_bytes == 2 * 2 * var.depth * kept * var.width * 4
    assert found.flops > 2 * var.pyramid.length * flops.num_parameters(
        jax.eval_shape(network.init_params, jax.random.key(0))["transformer"]["blocks"]["mlp"]
    )
    _, plain = costs("mnist5k", cfg=0.0)
    assert plain.passes == found.passes and plain.cache_bytes == found.cache_bytes / 2
    assert costs("family/hmar")[1].cache_bytes == 0
    found = costs("family/mar")[1]
    assert found.passes == 4 and found.cache_bytes == 0
    network, found = costs("family/xar")
    xar = network.denoiser
    # Steps of four cells and a read of each but the last, whose keys and values are kept.
    assert found.passes == 4 * 4 + 3
    assert found.cache_bytes == 2 * 2 * 2 * xar.depth * 3 * 4 * xar.width * 4


@pytest.mark.slow
def test_a_run_of_one_method_as_it_is(tmp_path, config, monkeypatch):
    """The tokenizer is an untrained one; its tokens and the real pictures are random."""
    given = methods.prepare(tmp_path, "mnist5k")

    def pictures(config, split, augment=False):
        labels = np.arange(40) % 10
        values = np.random.default_rng(len(split)).integers(0, 256, (40, 32, 32, 1))
        return LabelledImages(values.astype(np.uint8), labels)

    monkeypatch.setattr(comparison_scores, "real_images", pictures)
    monkeypatch.setattr(small_set_run, "real_images", pictures)
    config.comparison.update(methods=("var",), seeds=(0,), tokens_seen=2 * 16 * 37)
    config.update(given)
    config.methods.var.train.batch_size = 8
    comparison.Study(config, tmp_path / "study").run()
    values = json.loads((tmp_path / "study" / "comparison.json").read_text())
    (run,) = values["runs"]["var"]
    assert run["steps"] == 4 and run["images_seen"] == 32 and run["passes"] == 4
    assert 0 <= run["label_accuracy"] <= 1 and run["frechet_distance"] > 0
    assert np.isfinite([run["held_out_loss"], run["diversity"], run["sample_seconds"]]).all()
    assert len(run["curve"]) == 2 and run["curve"][-1][0] == run["tokens_seen"]
    assert (tmp_path / "study" / "curves.png").stat().st_size > 1000


def test_the_spread_is_half_of_the_range():
    runs = [{"x": value} for value in (1.0, 2.0, 3.0)]
    assert comparison_report.spread(runs, "x") == "2.000 +- 1.000"
    assert comparison_report.spread([{"x": 20.0}, {"x": 21.0}], "x") == "20.5 +- 0.5"

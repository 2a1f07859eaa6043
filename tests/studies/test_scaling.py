"""The driver of a family: resumable, equal in all but the size, and its results."""

import json
import pathlib

import jax
import numpy as np
import pytest
from commands import import_command
from recipes import load

from var_jax import build
from var_jax.checkpoint import Checkpointer, fingerprint
from var_jax.data.token_cache import TokenCacheSettings, TokenCacheWriter
from var_jax.evaluation.scaling.scaling_law import QUANTITIES
from var_jax.parallel import sharding
from var_jax.studies import scaling

likelihood = import_command("launch.likelihood")


@pytest.fixture
def config():
    return load("scaling_mnist5k", "smallest")


def test_the_family_grows_with_the_cube_of_depth():
    config = load("scaling_mnist5k")
    sizes = config.scaling.sizes
    assert len(sizes) >= 5
    products = [size.depth * size.width**2 for size in sizes.values()]
    np.testing.assert_allclose(products, [products[0] * d**3 for d in range(1, 7)])
    for name in sizes:
        one = scaling.size_config(config, name)
        assert "scaling" not in one and build.network(one).transformer.depth == sizes[name].depth


def pretend(config, workdir, should_stop):
    """Writes what a training leaves, with losses that fall with the size."""
    folder = pathlib.Path(workdir)
    if not (folder / "metrics.jsonl").exists():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        build.set_num_classes(config, 10)
        lines = []
        for step in (2, 4):
            loss = (config.model.width**2 * config.model.depth * step) ** -0.1
            values = {"step": step - 1, "eval/loss_mean": loss, "eval/loss_last": 2 * loss}
            values |= {"eval/accuracy_mean": 1 - loss / 4, "eval/accuracy_last": 1 - loss / 3}
            lines.append(json.dumps({"step": step - 1, "loss_mean": 9.0}))
            lines.append(json.dumps(values))
        with Checkpointer(workdir) as checkpointer:
            metadata = build.metadata(config, "transformer", ema=False)
            checkpointer.save(4, {"params": {"x": np.zeros(2)}}, metadata)
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return not should_stop(4)


def test_results_of_a_family(tmp_path, config):
    assert scaling.study(config, str(tmp_path), train_size=pretend)
    values = json.loads((tmp_path / "scaling.json").read_text())
    sizes = values["sizes"]
    assert [size["name"] for size in sizes] == ["d1", "d2", "d3"]
    assert all(a["parameters"] < b["parameters"] for a, b in zip(sizes, sizes[1:], strict=False))
    for size in sizes:
        # Attention, modulation and MLP are 18 width^2 a block; the rest is vectors.
        matrices = 18 * size["depth"] * size["width"] ** 2
        assert matrices < size["block_parameters"] < 2.5 * matrices
        assert size["images"] == 4 * 16
        assert size["training_flops"] == size["images"] * size["flops_per_image"]
        assert size["error_last"] == pytest.approx(size["loss_mean"] / 3)
        assert len(size["curve"]["steps"]) == 2
    assert values["fits"]["monotone"] == dict.fromkeys(QUANTITIES, True)
    found = values["fits"]["parameters"]["loss_mean"]["power_law"]
    assert found["exponent"] == pytest.approx(-0.1, abs=0.02) and found["correlation"] < -0.98
    text = (tmp_path / "scaling.md").read_text()
    assert "| d3 | 3 | 24 |" in text and "too few points" in text
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"


def test_a_signal_ends_the_study_and_steps_are_counted_over_all_sizes(tmp_path, config):
    seen = []

    def asked(step):
        seen.append(step)
        return step == 8

    assert not scaling.study(config, str(tmp_path), asked, pretend)
    assert seen == [4, 8] and not (tmp_path / "scaling.json").exists()
    assert scaling.study(config, str(tmp_path), train_size=pretend)


def test_a_family_is_equal_in_all_but_the_size(tmp_path, config):
    scaling.study(config, str(tmp_path), train_size=pretend)
    config.train.optimizer.learning_rate = 1.0
    with pytest.raises(
        ValueError,
        match=r"d1 was started with another config \(config.train.optimizer.learning_rate: ",
    ):
        scaling.study(config, str(tmp_path), train_size=pretend)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update(sises=1), "unknown key 'sises'"),
        (lambda s: s.update(on="test"), "held_out or train, got 'test'"),
        (lambda s: s.sizes.d1.update(heads=1), "sizes.d1 has the unknown key 'heads'"),
        (lambda s: s.sizes.__delitem__("d1"), "at least 3 sizes"),
    ],
)
def test_mistakes_are_named(tmp_path, config, change, message):
    change(config.scaling)
    with pytest.raises(ValueError, match=message):
        scaling.study(config, str(tmp_path), train_size=pretend)


def make_tokenizer_and_tokens(folder, config):
    """A tokenizer of any parameters, which need no program, and any tokens."""
    tokenizer = build.tokenizer(config)

    def init():
        images = jax.numpy.zeros((1, 32, 32, 1))
        return sharding.unbox(tokenizer.init(jax.random.key(0), images)["params"])

    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), jax.eval_shape(init)
    )
    with Checkpointer(folder / "tokenizer") as checkpointer:
        metadata = build.metadata(config, "tokenizer", ema=False)
        checkpointer.save(0, {"params": {"tokenizer": params}}, metadata)
    for split in ("train", "val"):
        settings = TokenCacheSettings(
            fingerprint=fingerprint(params),
            shapes=tokenizer.codec.pyramid.shapes,
            field=tokenizer.codec.source,
            num_images=20,
            crops=1,
            class_names=tuple("0123456789"),
            source=f"mnist5k:{split}",
            image_size=32,
            seed=0,
        )
        writer = TokenCacheWriter(folder / "tokens" / split, settings)
        tokens = rng.integers(0, config.tokenizer.vocab_size, (20, tokenizer.codec.pyramid.length))
        writer.write(tokens, np.arange(20) % 10, np.arange(20))
        writer.close()


@pytest.mark.slow
def test_a_size_is_an_ordinary_run_and_can_be_scored(tmp_path, config, monkeypatch):
    one = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(build, "make_mesh", lambda config: one)
    make_tokenizer_and_tokens(tmp_path, config)
    config.tokenizer_checkpoint = str(tmp_path / "tokenizer")
    config.token_cache = str(tmp_path / "tokens")
    workdir = str(tmp_path / "family" / "d1")
    assert scaling.train_transformer(scaling.size_config(config, "d1"), workdir)
    scaling.check_runs(config, str(tmp_path / "family"))
    curve, size = scaling.read_run(workdir, "d1", "held_out")
    assert size["curve"]["steps"] == [2, 4] and curve.values["loss_mean"].shape == (2,)
    # The command for one checkpoint finds what the training found at its end, on another mesh.
    scores = likelihood.score(workdir, "val", token_cache=config.token_cache, batch_size=24)
    assert scores["num_examples"] == 20 and scores["step"] == 4
    assert scores["nats_per_token"] == pytest.approx(size["loss_mean"], rel=1e-4)
    assert scores["levels"][-1]["nats_per_token"] == pytest.approx(size["loss_last"], rel=1e-4)
    assert scores["accuracy"] == pytest.approx(1 - size["error_mean"], abs=1e-6)

"""Training on what a T5 encoder, which does not train, makes of captions in the step."""

import jax
import jax.numpy as jnp
import methods
import numpy as np
import pytest
import t5_folder
from small_network import filled
from text_features_config import get_config
from untrained import write_model

import var_jax
from var_jax import build
from var_jax.build import experiment
from var_jax.build.frozen import place
from var_jax.parallel import sharding
from var_jax.text_encoders.encoder import T5Encoder, WrittenTokens
from var_jax.train.metrics import read_metrics

TEXTS = ["a red bird", "", "a green bird that is cut off", "birds"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A text encoder, an untrained model and tokens."""
    root = tmp_path_factory.mktemp("text_features")
    t5_folder.write(root / "t5")
    write_model(root / "model", get_config(root))
    methods.write_tokens(root / "tokens", build.load_tokenizer(root / "model" / "tokenizer"))
    return root


def test_the_step_reads_what_the_encoder_makes_of_a_text(root):
    config, one = get_config(root), sharding.make_mesh(devices=jax.devices()[:1])
    tokenizer = build.load_tokenizer(root / "model" / "tokenizer").on(one)
    objective = build.objective(config, tokenizer, from_images=False)
    frozen = place(objective, config, one, tokenizer)
    assert frozen.keys() == {"tokenizer", "text_encoder"}
    params = filled(objective.init_params, 0)
    written = list(map(WrittenTokens(str(root / "t5"), 5), TEXTS))
    batch = {name: np.stack([row[name] for row in written]) for name in written[0]}
    assert batch["text_length"].tolist() == [4, 1, 5, 3] and batch["text_ids"][2, 4] == 1
    features, lengths = T5Encoder(str(root / "t5"))(TEXTS, 5)
    np.testing.assert_array_equal(lengths, batch["text_length"])
    tokens = np.random.default_rng(0).integers(0, 32, (4, 21)).astype(np.int32)
    run = jax.jit(lambda frozen, batch: objective.per_token(params, frozen, batch)[0])
    found = run(frozen, {**batch, "tokens": tokens})
    given = {"text_features": features, "text_length": lengths, "tokens": tokens}
    expected = run({"tokenizer": frozen["tokenizer"]}, given)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found - run(frozen, {**batch, "tokens": tokens[::-1]})).max() > 0.1
    other = jnp.roll(batch["text_ids"], 1, 0)
    assert np.abs(found - run(frozen, {**batch, "text_ids": other, "tokens": tokens})).max() > 1e-3


@pytest.mark.slow
def test_it_trains_on_one_device_as_on_eight(root, tmp_path, monkeypatch):
    losses = {}
    for count, shape in ((1, (1, 1, 1)), (8, (2, 2, 2))):
        config = get_config(root)
        mesh = sharding.make_mesh(*shape, devices=jax.devices()[:count])
        monkeypatch.setattr(experiment, "make_mesh", lambda config, mesh=mesh: mesh)
        assert build.run(config, str(tmp_path / str(count)), "transformer")
        lines = read_metrics(tmp_path / str(count))
        losses[count] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses[1]) == 3 and losses[1][0] - losses[1][-1] > 1e-3
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-5)
    model = var_jax.load(tmp_path / "8")
    images = model.sample(["a red bird", "a green bird"], cfg=1.0)
    assert images.shape == (2, 32, 32, 3)
    assert np.isfinite(model.log_likelihood(images, ["a red bird", ""])).all()


def test_a_run_of_more_levels_starts_from_one_of_fewer(root):
    """Nothing of such a model is of one level or of one place alone."""
    tokenizer, config = build.load_tokenizer(root / "model" / "tokenizer"), get_config(root)
    config.patch_nums, config.data.image_size = (1, 2, 4, 8), 64
    start = build.start_from(root / "model", config, tokenizer, ("a",))
    params, _ = build.load_params(root / "model", "transformer", None)
    made = start.fit(params)
    jax.tree.map(np.testing.assert_array_equal, made, params)
    abstract = sharding.unbox(jax.eval_shape(build.network(config).init_params, jax.random.key(0)))
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, abstract)


def test_what_is_missing_is_named(root):
    config = get_config(root)
    config.model.conditioner.encoder = ""
    with pytest.raises(ValueError, match=r"model.conditioner.encoder is empty"):
        build.pipeline(config, build.source(config, "train"), 8, train=True)
    config = get_config(root)
    with config.unlocked():
        config.data.source, config.data.options = "synthetic", dict(size=32)
    with pytest.raises(ValueError, match="reads captions, but the pictures have none"):
        build.pipeline(config, build.source(config, "train"), 8, train=True)

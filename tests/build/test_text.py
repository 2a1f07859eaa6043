"""Captions all the way: a folder, its tokens, a training, prompts."""

import jax
import numpy as np
import pytest
from commands import run_cases
from PIL import Image
from recipes import load
from untrained import write_model

import var_jax
from var_jax import build
from var_jax.build import experiment
from var_jax.data.token_cache import TokenCache
from var_jax.parallel import sharding
from var_jax.train.metrics import read_metrics

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def config_of(folder):
    """The smallest config, with the pictures of a folder."""
    config = load("family/text", "smallest")
    with config.unlocked():
        config.data.source = "folder"
        config.data.options = dict(path=str(folder), captions=True, held_out=1)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, an untrained model, its tokenizer and their tokens."""
    root = tmp_path_factory.mktemp("text")
    for name, colour in COLOURS.items():
        for i in range(4):
            path = root / "pictures" / f"{name}_{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), colour).save(path)
            path.with_suffix(".txt").write_text(f"all {name}\n{name}, all of it\n")
    write_model(root / "model", config_of(root / "pictures"))
    build.cache_tokens(root / "model" / "tokenizer", root / "tokens", crops=2, batch_size=8)
    return root


@pytest.fixture(scope="module")
def model(folder):
    one = sharding.make_mesh(devices=jax.devices()[:1])
    return var_jax.load(folder / "model", mesh=one)


def test_the_captions_of_a_folder_reach_its_tokens(folder):
    train, val = (TokenCache(folder / "tokens" / split) for split in ("train", "val"))
    assert (len(train), len(val)) == (22, 1) and train.captioned and val.captioned
    seen = {text for i in range(22) for text in train[i]["captions"]}
    assert {"all red", "all green", "blue, all of it"} < seen


def test_it_trains_and_shows_what_prompts_ask_for(folder, monkeypatch):
    one = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(experiment, "make_mesh", lambda config: one)
    config = config_of(folder / "pictures")
    config.tokenizer_checkpoint = str(folder / "model" / "tokenizer")
    config.token_cache = str(folder / "tokens")
    config.train.update(num_steps=2, batch_size=8, log_every=1)
    config.evaluation = dict(prompts=("all red", ""), samples_per_class=1, likelihood=False)
    assert build.run(config, str(folder / "run"), "transformer")
    lines = read_metrics(folder / "run")
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    loaded = build.load_transformer(folder / "run")
    params = loaded.params["transformer"]
    assert np.abs(params["caption_attention_0"]["out"]["kernel"]).max() > 0, "It learns along."


def test_prompts_draw_and_negative_ones_steer(model):
    settings = dict(seed=1, batch_size=2)
    images = model.sample(["all red", "鳥", "all red", ""], cfg=2.0, **settings)
    assert images.shape == (4, 32, 32, 3) and model.sample([]).shape == (0, 32, 32, 3)
    assert (images[0] != images[2]).any() and (images[0] != images[1]).any()
    two = ["all red", "鳥"]
    default = model.sample(two, negative="", cfg=2.0, **settings)
    np.testing.assert_array_equal(default, images[:2])
    other = model.sample(two, negative=["all green", "x"], cfg=2.0, **settings)
    assert (other != default).any()
    # (1 + t) a - t a is a: steered away from itself a prompt is not guided.
    same = model.sample(two, negative=two, cfg=2.0, **settings)
    plain = model.sample(two, cfg=0.0, **settings)
    assert np.abs(same.astype(int) - plain).max() <= 1


def test_what_takes_labels_takes_texts(model):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = model.log_likelihood(images, ["all red", "all green"])
    assert np.isfinite(found).all()
    swapped = model.log_likelihood(images, ["all green", "all red"])
    assert np.abs(found - swapped).min() > 1e-3
    nothing = np.zeros((32, 32), bool)
    kept = model.edit(images, ["all red", ""], nothing, kept="source")
    np.testing.assert_array_equal(kept, images)
    with pytest.raises(ValueError, match="conditioned on text, got 3"):
        model.edit(images, [3, 1])


def test_a_grid_needs_prompts_and_no_classes(folder):
    config = config_of(folder / "pictures")
    transformer = build.network(config).transformer

    def shown(transformer=transformer, **changes):
        config.evaluation = changes
        settings = build.evaluation_settings(config, "train")
        return build.shown_samples(settings, transformer)

    assert shown() == (None, 0)
    given, columns = shown(prompts=("a", "b"), samples_per_class=3)
    assert columns == 2 and given.text.shape == (6, 16)
    with pytest.raises(ValueError, match="config.evaluation.fid draws classes"):
        shown(fid=dict(inception="a", reference="b"))
    with pytest.raises(ValueError, match="prompts is set, but the model is conditioned on classes"):
        shown(build.network(load("mnist5k", "smallest")).transformer, prompts=("a",))


def test_the_command_draws_what_a_file_says(folder):
    prompts = folder / "prompts.txt"
    prompts.write_text("all red\n\n鳥\n", encoding="utf-8")
    (folder / "latin.txt").write_bytes("zéro\n".encode("latin-1"))
    (folder / "none.txt").write_text("")

    def case(*flags, output="x.npz"):
        return [f"--checkpoint={folder / 'model'}", f"--output={folder / output}", *flags]

    given = f"--prompts={prompts}"
    errors = run_cases(
        "launch.sample",
        {
            "drawn": case(given, "--num_per_label=2", output="drawn.npz"),
            "steered": case(given, "--negative=all red", output="steered.npz"),
            "both": case(given, "--labels=1"),
            "neither": case(),
            "labels": case("--labels=-1"),
            "no UTF-8": case(f"--prompts={folder / 'latin.txt'}"),
            "empty": case(f"--prompts={folder / 'none.txt'}"),
            "missing": case(f"--prompts={folder / 'nothing.txt'}"),
        },
    )
    assert errors.keys() == {"both", "neither", "labels", "no UTF-8", "empty", "missing"}
    said = "Give either --labels or --prompts: what is to be drawn."
    assert errors["both"] == errors["neither"] == said
    assert "conditioned on text, got 0" in errors["labels"]
    assert "is no UTF-8 text (byte 1)" in errors["no UTF-8"]
    assert "is empty" in errors["empty"] and "nothing.txt" in errors["missing"]
    drawn = np.load(folder / "drawn.npz")
    assert drawn["prompts"].tolist() == ["all red"] * 2 + [""] * 2 + ["鳥"] * 2
    assert drawn["images"].shape == (6, 32, 32, 3)

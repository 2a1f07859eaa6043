import jax
import methods
import numpy as np
import pytest
from untrained import write_model

import var_jax
from var_jax import build
from var_jax.parallel import sharding

BLANK = np.zeros((1, 32, 32, 1), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return var_jax.load(folder)


def test_an_image_depends_on_its_seed_its_label_and_how_often_that_came_before(folder, model):
    images = model.sample([3, 1, 3, 10], seed=5, cfg=1.5, temperature=2.0)
    assert images.shape == (4, 32, 32, 1) and images.dtype == np.uint8
    other = model.sample([1, 2, 3, 3], seed=5, cfg=1.5, temperature=2.0, batch_size=3)
    np.testing.assert_array_equal(other[[0, 2, 3]], images[[1, 0, 2]])
    assert (images[0] != images[2]).any()
    assert (model.sample([3], seed=6, cfg=1.5, temperature=2.0)[0] != images[0]).any()
    alone = var_jax.load(folder, mesh=sharding.make_mesh(devices=jax.devices()[:1]))
    same = alone.sample([3, 1, 3, 10], seed=5, cfg=1.5, temperature=2.0)
    assert np.abs(same.astype(int) - images).max() <= 1  # Rounding at a half.
    assert model.sample([]).shape == (0, 32, 32, 1)


def test_encode_decode_and_score(folder, model):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    tokens = model.encode(images, batch_size=2)
    assert tokens.shape == (3, model.tokenizer.module.codec.pyramid.length)
    np.testing.assert_array_equal(model.encode(images[2:]), tokens[2:])
    made = model.decode(tokens)
    assert made.shape == images.shape and made.dtype == np.uint8
    tokenizer = var_jax.load(folder / "tokenizer")
    np.testing.assert_array_equal(tokenizer.encode(images), tokens)
    score = model.log_likelihood(images, [0, 1, 10])
    assert score.shape == (3,) and (score < 0).all()
    np.testing.assert_allclose(model.log_likelihood(images[1:2], [1]), score[1:2], rtol=1e-5)


def test_an_edit_that_keeps_all_reconstructs_and_one_that_keeps_nothing_samples(model):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    rebuilt, labels = model.decode(model.encode(images)), [3, 1, 3]
    settings = dict(seed=5, cfg=1.5, temperature=2.0)
    mask = np.zeros((32, 32), bool)
    kept = model.edit(images, labels, mask, **settings)
    assert np.abs(kept.astype(int) - rebuilt).max() <= 1  # Rounding at a half.
    new = model.edit(images, labels, ~mask, **settings)
    assert np.abs(new.astype(int) - model.sample(labels, **settings)).max() <= 1
    mask[:, 16:] = True
    made = model.edit(images, labels, mask, **settings)
    assert np.abs(made[:, :, :16].astype(int) - rebuilt[:, :, :16]).max() <= 1
    made = model.edit(images, labels, mask, kept="source", **settings)
    np.testing.assert_array_equal(made[:, :, :16], images[:, :, :16])
    part = model.edit(images[:2], labels[:2], mask, kept="source", batch_size=1, **settings)
    assert np.abs(part.astype(int) - made[:2]).max() <= 1
    assert model.edit(images[:0]).shape == (0, 32, 32, 1)


def test_a_mixture_has_the_first_levels_of_one_image_and_the_rest_of_another(model):
    images, others = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 1), np.uint8)
    tokens = model.encode(images)
    tokens[:, 5:] = model.encode(others)[:, 5:]
    np.testing.assert_array_equal(model.mix(images, others, level=2), model.decode(tokens))
    np.testing.assert_array_equal(
        model.mix(images, others, level=4), model.decode(model.encode(images))
    )
    with pytest.raises(ValueError, match="2 and 1 images cannot be mixed at level 2 of 4"):
        model.mix(images, others[:1], level=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample([11]), r"Labels must lie in 0\.\.10"),
        (lambda m: m.sample([1], cgf=2.0), "cgf"),
        (lambda m: m.sample([1], top_k=(1, 2)), "top_k has 2 values, but the pyramid has 4"),
        (lambda m: m.encode(np.zeros((1, 28, 28, 1), np.uint8)), r"uint8 \[N, 32, 32, 1\]"),
        (lambda m: m.encode(np.zeros((1, 32, 32, 1))), "float64"),
        (lambda m: m.decode(np.zeros((1, 3), int)), r"tokens must be \[n, 37\], got \[1, 3\]"),
        (lambda m: m.decode(np.full((1, 37), 32)), r"tokens must lie in 0\.\.31"),
        (lambda m: m.log_likelihood(np.zeros((1, 32, 32, 1), np.uint8), [1, 2]), "2 labels"),
        (lambda m: m.edit(BLANK, [11]), r"Labels must lie in 0\.\.10"),
        (lambda m: m.edit(BLANK, [1], np.ones((8, 8), bool)), r"mask must be bool \[1, 32, 32\]"),
        (lambda m: m.edit(BLANK, [1], np.ones((32, 32))), "got float64"),
        (lambda m: m.edit(BLANK, rule="refti"), "rule.kind is 'refti'; did you mean 'refit'"),
        (lambda m: m.edit(BLANK, rule=dict(kind="refit", cover=2.0)), "cover is a share"),
        (lambda m: m.edit(BLANK, level=9), "level is 9, but the pyramid has 4 levels"),
        (lambda m: m.edit(BLANK, fade=-1.0), "fade is a number of pixels"),
        (lambda m: m.edit(BLANK, kept="all"), "kept is 'all'; choose one of reconstructed"),
        (lambda m: m.edit(BLANK, patch_nums=(1, 2)), "leave out patch_nums"),
    ],
)
def test_mistakes_are_sentences(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_a_tokenizer_alone_does_not_sample(folder):
    with pytest.raises(ValueError, match="a tokenizer alone"):
        var_jax.load(folder / "tokenizer").sample([0])
    with pytest.raises(FileNotFoundError):
        var_jax.load(folder / "nothing")


def test_a_frozen_tokenizer_has_a_sharding_preset_of_its_own(folder):
    mesh = sharding.make_mesh(data=4, fsdp=2)
    loaded = build.load_tokenizer(folder / "tokenizer")
    whole, cut = (jax.tree.leaves(loaded.on(mesh, p).params) for p in ("replicated", "fsdp"))
    assert all(x.is_fully_replicated for x in whole)
    assert sum(not x.is_fully_replicated for x in cut) > 5
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="Unknown sharding preset 'fdsp'"):
        loaded.on(mesh, "fdsp")


@pytest.mark.parametrize(
    "method",
    [
        "family/infinity",
        *(pytest.param(f"family/{n}", marks=pytest.mark.slow) for n in ("flexvar", "flowar")),
    ],
)
def test_what_other_codecs_encode_is_edited(tmp_path, method):
    model = var_jax.load(write_model(tmp_path, methods.smallest(method)))
    images = np.random.default_rng(0).integers(0, 256, (2, *model.image_shape), np.uint8)
    labels, nothing = [3, 1], np.zeros(model.image_shape[:2], bool)
    np.testing.assert_array_equal(model.edit(images, labels), model.sample(labels))
    kept = model.edit(images, labels, nothing, kept="decoded")
    rebuilt = model.decode(model.encode(images))
    assert np.abs(kept.astype(int) - rebuilt).max() <= 1

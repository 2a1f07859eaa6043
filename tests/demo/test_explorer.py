import methods
import numpy as np
import pytest
from untrained import write_model

import var_jax
from var_jax.demo.explorer import Explorer

SETTINGS = {"cfg": 1.5, "top_k": 20, "top_p": 0.9, "temperature": (3.0, 2.0, 1.0, 2.0)}


def near(a, b):
    """Equal but for rounding at a half."""
    return np.abs(a.astype(int) - b).max() <= 1


@pytest.fixture(scope="module")
def drawn(explorer):
    return explorer.draw(3, seed=5, **SETTINGS)


def test_it_draws_what_the_model_samples(explorer, drawn):
    model = explorer.model
    assert near(drawn.image, model.sample([3], seed=5, **SETTINGS)[0])
    assert near(drawn.levels[-1], model.decode(drawn.tokens[None])[0])
    assert drawn.levels.shape == (4, *model.image_shape) and drawn.tokens.shape == (37,)
    again = explorer.draw(1, seed=2, cfg=(0.0, 0.0, 2.0, 0.0), top_k=1)
    assert near(again.image, model.sample([1], seed=2, cfg=(0.0, 0.0, 2.0, 0.0), top_k=1)[0])
    assert explorer._draw._cache_size() == explorer._describe._cache_size() == 1


def test_what_is_told_of_a_token_is_its_distribution(explorer, drawn):
    assert (drawn.probability > 0).all()
    assert (drawn.entropy >= 0).all() and (drawn.entropy <= np.log2(explorer.vocab_size)).all()
    chances = drawn.candidate_probability
    assert (np.diff(chances, axis=1) <= 0).all() and (chances.sum(1) <= 1 + 1e-5).all()
    at = drawn.candidates == drawn.tokens[:, None]
    np.testing.assert_allclose(chances[at], drawn.probability[at.any(1)], rtol=1e-5)
    certain = explorer.draw(3, seed=5, **{**SETTINGS, "top_k": 1})
    np.testing.assert_array_equal(certain.entropy, 0)
    np.testing.assert_array_equal(certain.candidates[:, 0], certain.tokens)


def test_without_guidance_and_filters_probabilities_are_the_likelihood(explorer, random_image):
    images = random_image[None]
    pins = dict(enumerate(explorer.model.encode(images)[0].tolist()))
    plain = explorer.draw(3, pins=pins, cfg=0.0, top_k=0, top_p=0.0, temperature=1.0)
    told = np.log(plain.probability.astype(np.float64)).sum()
    np.testing.assert_allclose(told, explorer.model.log_likelihood(images, [3])[0], rtol=1e-4)


def test_a_pin_changes_what_follows_from_it_alone(explorer, drawn):
    pyramid = explorer.pyramid
    position = pyramid.offsets[1] + 2
    code = (int(drawn.tokens[position]) + 7) % explorer.vocab_size
    pinned = explorer.draw(3, seed=5, pins={position: code}, **SETTINGS)
    expected = drawn.tokens[: pyramid.offsets[2]].copy()
    expected[position] = code
    np.testing.assert_array_equal(pinned.tokens[: pyramid.offsets[2]], expected)
    # With other codes in the first two levels some finer token differs.
    pins = {i: (int(drawn.tokens[i]) + 7) % explorer.vocab_size for i in range(5)}
    moved = explorer.draw(3, seed=5, pins=pins, **SETTINGS).tokens
    assert (moved[pyramid.offsets[2] :] != drawn.tokens[pyramid.offsets[2] :]).any()
    same = dict(enumerate(drawn.tokens.tolist()))
    np.testing.assert_array_equal(explorer.draw(3, seed=9, pins=same).image, drawn.image)


@pytest.mark.slow
def test_it_paints_as_the_model_edits(explorer, random_image):
    mask = np.zeros((32, 32), bool)
    mask[:, 16:] = True
    made = explorer.paint(random_image, mask, 4, seed=1, **SETTINGS)
    wanted = explorer.model.edit(random_image[None], [4], mask, seed=1, **SETTINGS)[0]
    assert near(made.image, wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.draw(11), r"Labels must lie in 0\.\.10"),
        (lambda e: e.draw(1, pins={37: 0}), r"The pin 37: 0 is none; positions are 0\.\.36"),
        (lambda e: e.draw(1, pins={0: 32}), r"codes 0\.\.31"),
        (lambda e: e.draw(1, smooth=True), "Unknown setting 'smooth'"),
        (lambda e: e.draw(1, top_p=(0.5, 0.5)), "top_p has 2 values, but the pyramid has 4"),
    ],
)
def test_mistakes_are_sentences(explorer, call, message):
    with pytest.raises(ValueError, match=message):
        call(explorer)


def test_a_model_without_codes_draws_and_says_why_it_tells_no_more(tmp_path, folder):
    model = var_jax.load(write_model(tmp_path, methods.smallest("family/infinity")))
    explorer = Explorer(model)
    assert explorer.reason.startswith("This model's tokens are no codes of a codebook")
    drawn = explorer.draw(3, seed=1)
    np.testing.assert_array_equal(drawn.image, model.sample([3], seed=1)[0])
    assert drawn.levels is None and explorer.own_settings() == {}
    with pytest.raises(ValueError, match="no codes"):
        explorer.draw(3, cfg=2.0)
    with pytest.raises(ValueError, match="a tokenizer alone"):
        Explorer(var_jax.load(folder / "tokenizer"))

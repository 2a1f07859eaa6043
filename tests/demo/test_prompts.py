"""The page of a model of text: prompts in place of classes."""

import browser
import jax
import methods
import numpy as np
import pytest
from browser import Tab
from untrained import write_model

import var_jax
from var_jax.demo import server
from var_jax.demo.answers import Answers
from var_jax.demo.explorer import Explorer
from var_jax.demo.export import export
from var_jax.demo.requests import read_drawing, read_painting
from var_jax.parallel import sharding

MASK = "00" * 64 + "ff" * 64


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("text"), methods.smallest("family/text"))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return Answers(Explorer(var_jax.load(folder, mesh=mesh)), str(folder))


@pytest.fixture(scope="module")
def page(answers, serve):
    yield from serve(server.application(answers))


@pytest.mark.slow
def test_it_draws_what_the_model_samples(answers):
    explorer, model = answers.explorer, answers.explorer.model
    for negative in ("", "blue"):
        drawn = explorer.draw("red", seed=5, negative=negative, cfg=3.0)
        sampled = model.sample(["red"], seed=5, negative=negative or None, cfg=3.0)[0]
        assert np.abs(drawn.image.astype(int) - sampled).max() <= 1
    assert explorer._draw._cache_size() == 1
    mask = np.arange(32)[:, None] >= np.full(32, 16)
    painted = explorer.paint(drawn.image, mask, "green", seed=2)
    edited = model.edit(drawn.image[None], ["green"], mask, seed=2)[0]
    assert np.abs(painted.image.astype(int) - edited).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 3}, "prompt is 3; give a text."),
        ({"prompt": None}, "prompt is missing; give a text."),
        ({"prompt": "鳥" * 6}, "prompt has 18 bytes, of which this model reads 16; make it sh"),
        ({"negative": "a\x00b"}, "negative holds the control character U\\+0000"),
        ({"label": 3}, "Unknown field 'label'; this model takes prompt, negative, seed, pins"),
    ],
)
def test_what_is_no_prompt_is_refused(answers, change, message):
    with pytest.raises(ValueError, match=message):
        read_drawing({"prompt": "red", "seed": 5} | change, answers.explorer)


def test_requests_are_read(answers):
    asked = {"prompt": " a  cafe\u0301 ", "negative": "blue", "seed": 5, "pins": [[0, 3]]}
    painting = read_painting(
        {"drawing": asked, "mask": MASK, "prompt": "", "seed": 0}, answers.explorer
    )
    drawing = painting.drawing
    assert (drawing.asked, drawing.negative, painting.asked) == ("a caf\u00e9", "blue", "")


def test_python_makes_the_same_picture(answers):
    asked = {"prompt": "it's", "negative": "blue", "seed": 5, "temperature": 3}
    found = answers.draw(read_drawing(asked, answers.explorer))
    call = """model.sample(["it's"], seed=5, temperature=3.0, negative='blue')[0]"""
    assert call in found["python"]


def test_classes_are_exported_alone(answers, tmp_path):
    with pytest.raises(ValueError, match="asked in words; leave --export out"):
        export(answers, tmp_path)


@browser.needs_chromium
def test_a_prompt_is_typed(page):
    with browser.opened() as driver:
        tab = Tab(driver, page.address, "prompt=red_1&temperature=3")
        assert not tab.visible("#label") and not tab.visible("#paint-label")
        first = tab.tokens()
        tab.type("#prompt", "a green one")
        tab.wait("the prompt", "document.getElementById('python').textContent.includes('green')")
        assert (tab.tokens() != first).any()
        tab.type("#negative", "b & c=1")
        tab.wait("the other", "document.getElementById('python').textContent.includes('b & c=1')")
        tab.click('[data-area="left"]')
        tab.type("#paint-prompt", "sun")
        tab.click("#paint")
        tab.wait("the result", "!document.getElementById('painted-figure').hidden")
        assert "model.edit(image[None], ['sun']" in tab.text("#python")
        link, tokens, painted = driver.current_url, tab.tokens(), tab.source("#painted")
        again = Tab(driver, *link.split("#"))
        again.wait("the result", "!document.getElementById('painted-figure').hidden")
        np.testing.assert_array_equal(again.tokens(), tokens)
        assert again.source("#painted") == painted
        again.type("#prompt", "much too long for this model")
        again.wait("the refusal", "!document.getElementById('error').hidden")
        assert "28 bytes, of which this model reads 16" in again.text("#error")
        assert not again.errors()

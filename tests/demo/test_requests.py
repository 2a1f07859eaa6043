import math

import numpy as np
import pytest

from var_jax.demo.requests import mask_of, read_drawing, read_painting

DRAWING = {"label": 3, "seed": 5}
MASK = "00" * 64 + "ff" * 64


def test_a_drawing_is_read(explorer):
    given = {**DRAWING, "pins": [[0, 31]], "cfg": 2, "top_k": [1, 2, 3, 32], "top_p": 0.5}
    drawing = read_drawing(given, explorer)
    assert (drawing.asked, drawing.seed, drawing.pins) == (3, 5, {0: 31})
    assert drawing.settings == {"cfg": 2.0, "top_k": (1, 2, 3, 32), "top_p": 0.5}


def test_a_mask_is_read_row_by_row(explorer):
    painting = read_painting({"drawing": DRAWING, "mask": MASK, "label": 1, "seed": 0}, explorer)
    mask = mask_of(painting.cells, explorer)
    assert mask.shape == (32, 32) and not mask[:16].any() and mask[16:].all()
    one = read_painting(
        {"drawing": DRAWING, "mask": "40" + "00" * 127, "label": 1, "seed": 0}, explorer
    )
    np.testing.assert_array_equal(np.argwhere(one.cells), [[0, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 11}, "label is 11; give a whole number from 0 to 10."),
        ({"label": True}, "label is True"),
        ({"label": None}, "label is missing; give a whole number from 0 to 10."),
        ({"label": "3"}, "label is '3'"),
        ({"seed": -1}, "seed is -1; give a whole number from 0 to 4294967295."),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": 10**300}, "seed is 1000"),
        ({"cfg": math.nan}, "cfg is nan; give a number from 0 to 20."),
        ({"cfg": math.inf}, "cfg is inf"),
        ({"cfg": [1, 2]}, "cfg has 2 values; give one number, or 4, one for each level."),
        ({"cfg": [1, 2, 3, "x"]}, "cfg of level 4 is 'x'"),
        ({"top_k": 33}, "top_k is 33; give a whole number from 0 to 32."),
        ({"top_p": 1.01}, "top_p is 1.01; give a number from 0 to 1."),
        ({"temperature": 0}, "temperature is 0; give a number from 0.01 to 10."),
        ({"pins": [[0]]}, r"pins is \[\[0\]\]; give at most 37 pairs"),
        ({"pins": {"0": 1}}, "pins is"),
        ({"pins": [[37, 0]]}, "The position of a pin is 37; give a whole number from 0 to 36."),
        ({"pins": [[0, 32]]}, "The code of a pin is 32"),
        ({"pins": [[0, 0]] * 38}, "pins is"),
        ({"path": "/etc/passwd"}, "Unknown field 'path'; this model takes label, seed, pins, cfg"),
    ],
)
def test_a_wrong_value_is_told_with_its_field_and_range(explorer, change, message):
    with pytest.raises(ValueError, match=message):
        read_drawing({**DRAWING, **change}, explorer)


@pytest.mark.parametrize("mask", ["01", "zz" * 128, " " + MASK[1:], MASK + "00", None, 5, [1]])
def test_a_wrong_mask_is_told(explorer, mask):
    with pytest.raises(ValueError, match="mask is no mask of this model: give 256 hexadecimal"):
        read_painting({"drawing": DRAWING, "mask": mask, "label": 1, "seed": 0}, explorer)


def test_an_empty_mask_and_no_request_are_told(explorer):
    for mask in ("", "00" * 128):
        with pytest.raises(ValueError, match="mask is empty"):
            read_painting({"drawing": DRAWING, "mask": mask, "label": 1, "seed": 0}, explorer)
    for given in (None, [], "x", 3):
        with pytest.raises(ValueError, match="The request must be JSON of the fields label"):
            read_drawing(given, explorer)
    with pytest.raises(ValueError, match="The request must be JSON of the fields label"):
        read_painting({"mask": MASK, "label": 1, "seed": 0}, explorer)

"""Pictures and masks to edit: any size and mode, and sentences for the rest."""

import numpy as np
import pytest
from PIL import Image

from var_jax.data.edit_pictures import expand, fit, fit_mask, read_mask, read_picture

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
MARKED = np.zeros((24, 40), bool)
MARKED[4:12, 8:20] = True


def mask_file(path, mode, scale=1):
    grey = Image.fromarray(np.where(MARKED, 255, 0).astype(np.uint8))
    grey = grey.resize((40 * scale, 24 * scale), Image.Resampling.NEAREST)
    if mode == "alpha":  # White where it shows.
        image = Image.new("RGBA", grey.size, (255, 255, 255, 0))
        image.putalpha(grey)
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert(mode)
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "alpha", "I;16"])
@pytest.mark.parametrize("scale", [1, 3])
def test_a_mask_is_read_in_any_mode_and_size(tmp_path, mode, scale):
    found = read_mask(mask_file(tmp_path / "mask.png", mode, scale), PICTURE)
    np.testing.assert_array_equal(found, MARKED)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_a_picture_is_read_in_any_mode(tmp_path, mode):
    path = tmp_path / "picture.tif"
    Image.fromarray(PICTURE).convert(mode).save(path)
    assert read_picture(path).shape == (24, 40, 3)


def test_picture_and_mask_are_cropped_alike():
    marks = np.where(MARKED, 255, 0).astype(np.uint8)
    picture = np.stack([marks] * 3, -1)
    for size, channels in ((24, 1), (24, 3), (48, 3), (12, 1)):
        found, mask = fit(picture, size, channels), fit_mask(MARKED, size)
        assert found.shape == (size, size, channels) and mask.shape == (size, size)
        np.testing.assert_array_equal(found[..., 0] >= 128, mask)
    np.testing.assert_array_equal(fit_mask(MARKED, 24), MARKED[:, 8:32])


def test_a_canvas_holds_the_picture_and_marks_what_is_around():
    canvas, mask = expand(PICTURE, 32, 3, 0.25)
    np.testing.assert_array_equal(canvas[8:24, 8:24], fit(PICTURE, 16, 3))
    assert not mask[8:24, 8:24].any() and mask.sum() == 32**2 - 16**2
    np.testing.assert_array_equal(canvas[:8, 8:24], canvas[8:9, 8:24].repeat(8, 0))
    for border in (0.0, 0.5, -0.1):
        with pytest.raises(ValueError, match="leaves at least a pixel"):
            expand(PICTURE, 32, 3, border)


def test_mistakes_are_sentences(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_picture(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match="give the path of a file"):
        read_picture(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="cannot be read: no picture that Pillow can open"):
        read_mask(tmp_path / "text.png", PICTURE)
    Image.fromarray(np.ones((24, 40), np.uint8)).save(tmp_path / "ones.png")
    with pytest.raises(ValueError, match="marks no pixel: white.* its brightest pixel is 1"):
        read_mask(tmp_path / "ones.png", PICTURE)
    Image.fromarray(np.full((40, 24), 255, np.uint8)).save(tmp_path / "tall.png")
    with pytest.raises(ValueError, match="has 24x40 pixels, the picture 40x24"):
        read_mask(tmp_path / "tall.png", PICTURE)

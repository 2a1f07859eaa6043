import io
import struct

import numpy as np
import pytest
from pictures import encode
from PIL import Image

from var_jax.data import ImageTransform, UnreadableImage
from var_jax.data.decode import ORIENTATION, decode

RAMP = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data, mode="L", **options):
    return np.asarray(decode(data, mode, **options)).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_16_bits_are_scaled_by_the_range_of_the_type(kind, mode):
    out = pixels(saved(Image.fromarray(RAMP), kind), mode)
    expected = np.round(RAMP / 257).astype(int)
    assert np.abs(out.reshape(64, 64, -1) - expected[..., None]).max() <= (kind == "JPEG2000")
    assert abs(out.mean() - 127.5) < 1


def test_a_dark_16_bit_picture_stays_dark():
    # The range is the type's: one bright pixel more or less changes no other.
    dark = np.full((8, 8), 2570, np.uint16)
    spot = dark.copy()
    spot[0, 0] = 65535
    a, b = (pixels(saved(Image.fromarray(x), "PNG")) for x in (dark, spot))
    assert (a == 10).all() and (b.ravel()[1:] == 10).all() and b[0, 0] == 255


def test_big_endian_tiff_and_a_grey_map_of_12_bits():
    data = io.BytesIO()
    Image.fromarray(RAMP.astype(">u2")).save(data, "TIFF")
    assert abs(pixels(data.getvalue()).mean() - 127.5) < 1
    grey_map = b"P5 4 1 4095\n" + np.array([0, 1024, 2048, 4095], ">u2").tobytes()
    np.testing.assert_array_equal(pixels(grey_map), [[0, 64, 128, 255]])


def test_a_tiff_of_12_bits():
    values = [0, 1024, 2048, 4095]
    bits = "".join(f"{v:012b}" for v in values)
    data = int(bits, 2).to_bytes(6, "big")
    tags = [(256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8 + 2 + 12 * 9 + 4), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 6)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
    tiff = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + data
    np.testing.assert_array_equal(pixels(tiff), [[0, 64, 128, 255]])


def test_transparent_16_bit_grey_shows_the_background():
    picture = Image.fromarray(np.where(RAMP < 30000, 1000, RAMP).astype(np.uint16))
    out = pixels(saved(picture, "PNG", transparency=1000), background=7)
    assert (out[RAMP < 30000] == 7).all() and (out[RAMP >= 30000] > 100).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "floats, whose range no file"),
        (np.linspace(0, 255, 64, dtype=np.float32).reshape(8, 8), "floats, whose range no file"),
        (np.arange(64, dtype=np.int32).reshape(8, 8), "32-bit integers"),
    ],
)
def test_numbers_without_a_range_are_refused(array, message):
    with pytest.raises(UnreadableImage, match=message):
        decode(saved(Image.fromarray(array), "TIFF"), "RGB")


def test_float_grey_maps_are_refused():
    data = b"Pf\n2 1\n-1.0\n" + np.array([0.5, 1.0], "<f4").tobytes()
    with pytest.raises(UnreadableImage, match="floats"):
        decode(data, "L")


@pytest.mark.parametrize("kind", ["LA", "RGBA", "P"])
def test_transparency_of_every_kind(kind):
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (4, 0, 8, 8))
    if kind == "P":
        data = saved(picture.convert("RGB").quantize(2), "GIF", transparency=0)
        out = pixels(data, "RGB", background=9)
        assert (out == 9).all(-1).sum() == 32
        return
    out = pixels(saved(picture.convert(kind), "PNG"), "RGB", background=9)
    assert (out[:, :4] == 9).all() and (out[:, 4:] == 0).all()


def test_cmyk_and_the_first_frame():
    cmyk = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red = pixels(cmyk, "RGB").mean((0, 1))
    assert red[0] > 240 and red[1] < 20 and red[2] < 20
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200)]
    for kind in ("GIF", "TIFF", "WEBP"):
        options = {} if kind != "WEBP" else {"lossless": True}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert abs(pixels(data).mean() - 10) <= 1, kind


@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_is_an_option(value):
    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :8] = 255
    tags = Image.Exif()
    tags[ORIENTATION] = value
    data = saved(Image.fromarray(array), "PNG", exif=tags)
    np.testing.assert_array_equal(pixels(data, "RGB"), array)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(pixels(data, "RGB", orient=True), upright)
    transform = ImageTransform(16, exif_orientation=True, resize_ratio=1.0)
    out = transform({"image": data}, np.random.default_rng(0))["image"]
    assert out.shape == (16, 16, 3)


def test_damaged_exif_loses_no_picture():
    data = saved(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert pixels(data, "RGB", orient=True).shape == (8, 8, 3)


FORMATS = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA", "QOI"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_was_cut_off_is_no_picture(kind):
    small = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    data = saved(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC), kind)
    assert pixels(data, "RGB").shape == (64, 64, 3)
    for share in np.linspace(0, 0.98, 12):
        with pytest.raises(UnreadableImage) as caught:
            decode(data[: int(share * len(data))], "RGB")
        assert "object at 0x" not in str(caught.value)


def test_a_jpeg_whose_end_was_never_written():
    small = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
    data = saved(Image.fromarray(small), "JPEG")
    half = data[: len(data) // 2]
    with pytest.raises(UnreadableImage, match="ends in zeros"):
        decode(half + bytes(len(data) - len(half)), "RGB")
    # Some cameras pad a whole file.
    np.testing.assert_array_equal(pixels(data + bytes(4096), "RGB"), pixels(data, "RGB"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>not found", "no picture that Pillow can open .*DOC"),
        (bytes(3000), "no picture that Pillow can open"),
    ],
)
def test_what_is_no_picture(data, message):
    with pytest.raises(UnreadableImage, match=message):
        decode(data, "RGB")


def test_decompression_bombs(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    large = saved(Image.new("L", (40, 40)), "PNG")
    assert pixels(large).shape == (40, 40)
    bomb = saved(Image.new("L", (60, 60)), "PNG")
    with pytest.raises(UnreadableImage, match="DecompressionBombError: Image size .3600 pixels"):
        decode(bomb, "L")


def test_the_ending_does_not_matter_and_one_pixel_is_a_picture():
    for height, width in ((1, 1), (1, 300), (300, 1)):
        data = encode(np.full((height, width, 3), 77, np.uint8))
        out = ImageTransform(16, random_crop=True)({"image": data}, np.random.default_rng(0))
        np.testing.assert_array_equal(out["image"], 77)

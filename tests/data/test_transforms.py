import numpy as np
import pytest
from pictures import encode, numbered_source
from PIL import Image

from var_jax.data import ImageTransform, RandomAffine, UnreadableImage, make_transform


def rng(seed=0):
    return np.random.default_rng(seed)


def pixels(height, width, channels=3, seed=0):
    return rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def whole_resize(array, short):
    """What torchvision does: short side to `short`, the long one truncated, Lanczos."""
    image = Image.fromarray(array)
    least = min(image.size)
    size = tuple(int(short * n / least) for n in image.size)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS)).astype(int)


@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 333), (90, 120), (771, 1023), (289, 500), (72, 400)]
)
@pytest.mark.parametrize("random_crop", [False, True])
def test_crop_equals_resizing_the_whole_picture(height, width, random_crop):
    array = pixels(height, width)
    out = ImageTransform(64, random_crop=random_crop)({"image": array}, rng(3))["image"]
    whole = whole_resize(array, 72)
    free = np.array(whole.shape[:2]) - 64
    if random_crop:
        draw = rng(3)
        top, left = (int(draw.integers(0, n + 1)) for n in free)
    else:
        top, left = (round(n / 2) for n in free)
    difference = np.abs(out - whole[top : top + 64, left : left + 64])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.005


def test_random_crops_reach_both_ends():
    column = np.repeat(np.arange(144, dtype=np.uint8)[None, :, None], 72, 0)
    transform = ImageTransform(64, channels=1, random_crop=True)
    firsts = {int(transform({"image": column}, rng(s))["image"][0, 0, 0]) for s in range(600)}
    assert min(firsts) == 0 and max(firsts) == 144 - 64


def test_short_side_is_the_rounded_ratio():
    # 36 px is round(1.125 * 32): no resampling, the central crop only.
    array = pixels(36, 40)
    out = ImageTransform(32)({"image": array}, rng())["image"]
    np.testing.assert_array_equal(out, array[2:34, 4:36])
    plain = pixels(32, 32)
    kept = ImageTransform(32, resize_ratio=1.0)({"image": plain}, rng())["image"]
    np.testing.assert_array_equal(kept, plain)


def test_flip_is_off_by_default_and_fair_when_on():
    array = pixels(8, 8)
    kept = ImageTransform(8, resize="pad")({"image": array}, rng())["image"]
    np.testing.assert_array_equal(kept, array)
    transform = ImageTransform(8, resize="pad", flip=True)
    outs = [transform({"image": array}, rng(s))["image"] for s in range(200)]
    flipped = sum(np.array_equal(o, array[:, ::-1]) for o in outs)
    assert 70 < flipped < 130
    assert flipped + sum(np.array_equal(o, array) for o in outs) == 200


def test_pad_puts_digits_on_the_background():
    array = np.full((28, 28, 1), 200, np.uint8)
    out = ImageTransform(32, channels=1, resize="pad", background=7)({"image": array}, rng())
    image = out["image"][..., 0]
    np.testing.assert_array_equal(image[2:30, 2:30], 200)
    assert (image == 7).sum() == 32 * 32 - 28 * 28
    with pytest.raises(UnreadableImage, match="28x28 px does not fit into size 16"):
        ImageTransform(16, channels=1, resize="pad")({"image": array}, rng())


def test_affine_moves_as_it_says():
    array = np.zeros((33, 33, 1), np.uint8)
    array[16, 24] = 255
    image = Image.fromarray(array[..., 0])

    class Fixed:
        def __init__(self, *values):
            self.values = values

        def uniform(self, low, high, count):
            return np.array(self.values)

    def brightest(*draws, **fields):
        out = np.asarray(RandomAffine(**fields)(image, Fixed(*draws), 0))
        return tuple(int(n) for n in np.unravel_index(out.argmax(), out.shape))

    assert brightest(0, 0, 1, 0.5, shift=4) == (18, 28)
    assert brightest(1, 0, 0, 0, rotation=90) in ((24, 16), (8, 16))
    assert brightest(0, -1, 0, 0, scale=0.5) == (16, 20)
    a = RandomAffine(10, 0.1, 2)(image, rng(1), 0)
    b = RandomAffine(10, 0.1, 2)(image, rng(1), 0)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_colour_space_becomes_uint8(channels, mode):
    image = Image.fromarray(pixels(20, 24)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    import io

    out = io.BytesIO()
    image.save(out, "TIFF" if mode == "CMYK" else "PNG")
    result = ImageTransform(16, channels=channels)({"image": out.getvalue()}, rng())["image"]
    assert result.shape == (16, 16, channels) and result.dtype == np.uint8


def test_transparent_pixels_show_the_background():
    array = np.zeros((16, 16, 4), np.uint8)
    out = ImageTransform(16, resize="pad", background=255)({"image": encode(array)}, rng())
    np.testing.assert_array_equal(out["image"], 255)


def test_fast_decode_is_close():
    smooth = np.asarray(Image.fromarray(pixels(8, 8)).resize((600, 600), Image.Resampling.BICUBIC))
    data = encode(smooth, "JPEG")
    exact = ImageTransform(64)({"image": data}, rng())["image"].astype(int)
    fast = ImageTransform(64, fast_decode=True)({"image": data}, rng())["image"].astype(int)
    assert 0 < np.abs(exact - fast).mean() < 3


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "must be uint8"),
        (np.zeros((8, 8), np.uint8), "must be uint8"),
        (np.zeros((8, 8, 4), np.uint8), "must be uint8"),
    ],
)
def test_wrong_arrays(record, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(8)({"image": record}, rng())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "1 or 3 channels"),
        ({"resize": "stretch"}, "resize must be one of"),
        ({"resize_ratio": 0.9}, "at least 1"),
        ({"background": 300}, "0..255"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(8, **options)
    with pytest.raises(ValueError, match="RandomAffine needs"):
        RandomAffine(scale=1.0)


def test_make_transform_follows_the_source():
    source = numbered_source(3)
    source.background = 0
    train = make_transform(source, 8, True, flip=True, affine={"rotation": 5})
    assert train.channels == 1 and train.resize == "pad" and train.background == 0
    assert train.flip and train.affine == RandomAffine(rotation=5)
    evaluation = make_transform(source, 8, False, flip=True, affine={"rotation": 5})
    assert not evaluation.flip and evaluation.affine is None and not evaluation.random_crop
    with pytest.raises(ValueError, match="Unknown transform option 'rotate'"):
        make_transform(source, 8, True, rotate=3)

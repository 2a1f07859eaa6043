"""From the bytes of a picture file to 8-bit pixels: ranges, colour spaces, orientation.

What a file does not say is never guessed: a picture whose numbers have no known range (floats,
32-bit integers) is unreadable, with the reason, and not black or white.
"""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

#: EXIF tag of the camera's orientation, and what makes each of its values upright.
ORIENTATION = 0x0112
UPRIGHT = 1
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_BITS_PER_SAMPLE = 258
# A copy that was cut off after its space was set aside ends in zeros; JPEG's decoder accepts it.
_ZEROS = bytes(512)
_JPEG_END = b"\xff\xd9"

# Pillow warns of large pictures without naming them, and refuses twice as large ones, which the
# pipeline names.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """The bytes of a record are not a picture that can be decoded."""


def decode(
    data: bytes,
    mode: str,
    *,
    background: int = 255,
    orient: bool = False,
    draft: int | None = None,
) -> Image.Image:
    """Decodes a picture file; of several frames or pages, the first.

    Args:
      data: the file's bytes.
      mode: 'L' (grey) or 'RGB'; 16-bit pictures are scaled by the range of their type.
      background: grey value 0..255 behind transparent pixels.
      orient: turn the picture as its EXIF orientation says.
      draft: let the JPEG decoder shrink the picture by 2, 4 or 8 while its short side stays at
        least so many pixels.

    Raises:
      UnreadableImage: with the reason.
    """
    # Pillow's decoders raise many kinds of exceptions on damaged files.
    try:
        image = open_picture(data)
        if draft is not None:
            image.draft(mode, (draft, draft))
        image.load()
        upright = _TO_UPRIGHT.get(orientation(image)) if orient else None
        image = to_eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            canvas = Image.new("RGBA", image.size, (background,) * 3 + (255,))
            image = Image.alpha_composite(canvas, image)
        image = image if image.mode == mode else image.convert(mode)
        return image if upright is None else image.transpose(upright)
    except UnreadableImage:
        raise
    except Exception as error:
        reason = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "the file", str(error))
        raise UnreadableImage(f"{type(error).__name__}: {reason}") from error


def open_picture(data: bytes) -> Image.Image:
    """The picture, not yet decoded.

    Raises:
      UnreadableImage: the bytes are no picture, or half of one.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise UnreadableImage(
            f"no picture that Pillow can open (the file begins with {bytes(data[:8])!r})"
        ) from None
    padded = image.format == "JPEG" and data.endswith(_ZEROS)
    if padded and not data.rstrip(b"\0").endswith(_JPEG_END):
        raise UnreadableImage("the file ends in zeros, as a copy that was cut off does")
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, UPRIGHT or 2 to 8; UPRIGHT where there is none that can be read."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # Damaged EXIF data are no reason to lose the picture.
        return UPRIGHT
    return value if value in _TO_UPRIGHT else UPRIGHT


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Numbers of 16 bits scaled by the range of their type; others come back as they are.

    Raises:
      UnreadableImage: floats or 32-bit integers, whose range no file tells.
    """
    if image.mode == "F":
        raise UnreadableImage(
            "its pixels are floats, whose range no file tells; convert it to 8 or 16 bits"
        )
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise UnreadableImage(
            "its pixels are signed or 32-bit integers, whose range no file tells; convert it to 8 "
            "or 16 bits"
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    tags = getattr(image, "tag_v2", {})
    bits = min(16, int(tags.get(_TIFF_BITS_PER_SAMPLE, (16,))[0]))
    wide = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(((wide * 255 * 2 // (2**bits - 1) + 1) // 2).clip(0, 255).astype("u1"))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(wide == transparent, 0, 255).astype("u1")))
    return grey

"""Pictures and masks to edit, from files of any size and mode that Pillow reads."""

from __future__ import annotations

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt8
from PIL import Image

from var_jax.data.decode import UnreadableImage, decode
from var_jax.data.transforms import ImageTransform

#: The darkest grey value of a mask that marks a pixel.
MARKED = 128


def read_picture(path: epath.PathLike) -> UInt8[np.ndarray, "H W 3"]:
    """A picture, upright as the camera noted it; what is transparent becomes white.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no picture.
    """
    return np.asarray(_read(path, "RGB", 255))


def read_mask(path: epath.PathLike, picture: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """The pixels of a picture that a mask marks: white is to be drawn anew, black to be kept.

    It may be of another size than the picture, but not of another shape. What is transparent counts
    as black.

    Args:
      path: of the mask.
      picture: as it was read.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no picture, of another shape, or marks nothing.
    """
    mask = _read(path, "L", 0)
    height, width = picture.shape[:2]
    # As many pixels as the picture has, but for the rounding of one side.
    scale = max(mask.width / width, mask.height / height)
    if abs(mask.width - scale * width) > 1 or abs(mask.height - scale * height) > 1:
        raise ValueError(
            f"The mask {path} has {mask.width}x{mask.height} pixels, the picture {width}x{height}; "
            "give a mask of the picture's size, or enlarged or reduced as a whole."
        )
    marked = np.asarray(mask.resize((width, height), Image.Resampling.NEAREST)) >= MARKED
    if not marked.any():
        raise ValueError(
            f"The mask {path} marks no pixel: white, {MARKED} to 255, is what is drawn anew, and "
            f"its brightest pixel is {np.asarray(mask).max()}."
        )
    return marked


def fit(
    picture: UInt8[np.ndarray, "H W c"], size: int, channels: int
) -> UInt8[np.ndarray, "h w d"]:
    """A picture as a model reads it: the short side resized to `size`, the middle of the long."""
    transform = ImageTransform(size, channels, resize_ratio=1.0)
    return transform({"image": picture}, np.random.default_rng(0))["image"]


def fit_mask(mask: Bool[np.ndarray, "H W"], size: int) -> Bool[np.ndarray, "h w"]:
    """A mask as `fit` makes the picture."""
    grey = np.where(mask, 255, 0).astype(np.uint8)[..., None]
    return fit(grey, size, 1)[..., 0] >= MARKED


def expand(
    picture: UInt8[np.ndarray, "H W c"], size: int, channels: int, border: float
) -> tuple[UInt8[np.ndarray, "h w d"], Bool[np.ndarray, "h w"]]:
    """A picture inside a larger canvas, and the mask of what is to be drawn around it.

    The canvas is filled with the picture's edges, so that an encoder sees no frame.

    Args:
      picture: to put inside.
      size: side of the canvas in pixels.
      channels: 1 or 3.
      border: width of the border as a share of the side.

    Raises:
      ValueError: no room for a border, or for a picture.
    """
    width = round(border * size)
    if not 1 <= width < size / 2:
        raise ValueError(
            f"A border of {border} of a side of {size} pixels is {width} pixels wide; give a share "
            "that leaves at least a pixel for the border and for the picture, such as 0.25."
        )
    inside = fit(picture, size - 2 * width, channels)
    around = ((width, width), (width, width))
    mask = np.pad(np.zeros(inside.shape[:2], bool), around, constant_values=True)
    return np.pad(inside, (*around, (0, 0)), "edge"), mask


def _read(path: epath.PathLike, mode: str, background: int) -> Image.Image:
    file = epath.Path(path)
    if not file.exists() or file.is_dir():
        raise FileNotFoundError(f"The picture {path} does not exist; give the path of a file.")
    try:
        return decode(file.read_bytes(), mode, background=background, orient=True)
    except UnreadableImage as error:
        raise ValueError(f"The picture {path} cannot be read: {error}.") from None

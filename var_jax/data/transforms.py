"""Preprocessing of one record: decode, resize, crop, augment; always uint8 [size, size, c].

VAR's own (train.py and utils/data.py of FoundationVision/VAR): the short side is resized to
round(1.125 * size) with a Lanczos filter, then a random crop to train and the central one to
evaluate; horizontal flips are off unless asked for.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image

from var_jax.data.decode import UnreadableImage, decode

RESIZES = ("short_side", "pad")


@dataclasses.dataclass(frozen=True)
class RandomAffine:
    """Small random rotation, scaling and shift about the centre, bicubic, for small pictures.

    Attributes:
      rotation: degrees; the angle is uniform in [-rotation, rotation].
      scale: the factor is uniform in [1 - scale, 1 + scale]; 0 <= scale < 1.
      shift: pixels; each of dx, dy is uniform in [-shift, shift].
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.rotation < 0 or self.shift < 0 or not 0 <= self.scale < 1:
            raise ValueError(
                f"RandomAffine needs rotation >= 0, shift >= 0 and 0 <= scale < 1, got {self}."
            )

    def __call__(self, image: Image.Image, rng: np.random.Generator, fill: int) -> Image.Image:
        """A transformed copy; uncovered corners get the grey value `fill`."""
        angle, zoom, dx, dy = rng.uniform(-1.0, 1.0, 4)
        angle = math.radians(self.rotation * angle)
        zoom = 1.0 + self.scale * zoom
        # Pillow wants the map from output to input pixels: the inverse of rotate, zoom, shift.
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        cx, cy = image.width / 2, image.height / 2
        ox, oy = cx + self.shift * dx, cy + self.shift * dy
        inverse = (cos, sin, cx - cos * ox - sin * oy, -sin, cos, cy + sin * ox - cos * oy)
        colour = fill if image.mode == "L" else (fill,) * 3
        return image.transform(
            image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC, fillcolor=colour
        )


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """record, rng -> {"image": uint8 [size, size, channels]}; the same rng gives the same crop.

    Attributes:
      size: output side in pixels.
      channels: 1 (grey) or 3 (RGB).
      random_crop: crop at random (training) or at the centre.
      resize: 'short_side' (VAR's) or 'pad': no resizing, the picture is centred on the
        background, for pictures that are drawn at their true size (28 px digits on 32 px).
      resize_ratio: the short side becomes round(resize_ratio * size).
      flip: mirror half of the pictures. Off in VAR.
      affine: small random affine map, or None.
      background: grey value 0..255 behind transparent pixels, padding and affine corners.
      fast_decode: let the JPEG decoder shrink by 2, 4 or 8 where the picture is that much
        larger than needed. Up to twice as fast on large photographs, but the pixels differ
        slightly from VAR's preprocessing, so it is off by default.
      exif_orientation: turn photographs as the camera noted it in the file. VAR and torchvision
        take the pixels as they are stored, so it is off by default.
    """

    size: int
    channels: int = 3
    random_crop: bool = False
    resize: str = "short_side"
    resize_ratio: float = 1.125
    flip: bool = False
    affine: RandomAffine | None = None
    background: int = 255
    fast_decode: bool = False
    exif_orientation: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels not in (1, 3):
            raise ValueError(
                f"A transform needs size >= 1 and 1 or 3 channels, got size {self.size} and "
                f"{self.channels} channels."
            )
        if self.resize not in RESIZES:
            raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {self.resize!r}.")
        if self.resize_ratio < 1:
            raise ValueError(
                f"resize_ratio must be at least 1, got {self.resize_ratio}: the crop would not "
                "fit into the picture."
            )
        if not 0 <= self.background <= 255:
            raise ValueError(f"background must be a grey value 0..255, got {self.background}.")

    @property
    def mode(self) -> str:
        """Pillow's name of the colour space."""
        return "L" if self.channels == 1 else "RGB"

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Preprocesses one record.

        Args:
          record: "image" is encoded bytes or uint8 [H, W, c] with c 1 or 3.
          rng: source of all randomness; always drawn from in the order crop, flip, affine.

        Raises:
          UnreadableImage: the bytes cannot be decoded, or are larger than `size` with 'pad'.
          ValueError: an array of another dtype or shape.
        """
        image = self._open(record["image"])
        image = self._pad(image) if self.resize == "pad" else self._resize_and_crop(image, rng)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.affine is not None:
            image = self.affine(image, rng, self.background)
        pixels = np.asarray(image, np.uint8)
        return {"image": pixels.reshape(self.size, self.size, self.channels)}

    def _open(self, data: bytes | np.ndarray) -> Image.Image:
        if isinstance(data, np.ndarray):
            if data.dtype != np.uint8 or data.ndim != 3 or data.shape[-1] not in (1, 3):
                raise ValueError(
                    f"An image array must be uint8 [H, W, 1 or 3], got {data.dtype} "
                    f"{list(data.shape)}."
                )
            image = Image.fromarray(data[..., 0] if data.shape[-1] == 1 else data)
            return image if image.mode == self.mode else image.convert(self.mode)
        return decode(
            data,
            self.mode,
            background=self.background,
            orient=self.exif_orientation,
            draft=round(self.resize_ratio * self.size) if self.fast_decode else None,
        )

    def _resize_and_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Short side to round(ratio * size), then a crop; only the crop is ever resampled.

        Equal to resizing the whole picture first, up to one grey level in a pixel of a thousand.
        """
        short = round(self.resize_ratio * self.size)
        width, height = image.size
        scale_by = min(width, height)
        # As torchvision: the long side is truncated, not rounded.
        wide, high = (int(short * n / scale_by) for n in (width, height))
        if self.random_crop:
            top = int(rng.integers(0, high - self.size + 1))
            left = int(rng.integers(0, wide - self.size + 1))
        else:
            top, left = (round((n - self.size) / 2.0) for n in (high, wide))
        if (wide, high) == (width, height):
            return image.crop((left, top, left + self.size, top + self.size))
        sx, sy = width / wide, height / high
        x0, x1 = left * sx, min((left + self.size) * sx, width)
        y0, y1 = top * sy, min((top + self.size) * sy, height)
        # Columns first, then rows, as Pillow resizes a whole picture: given both at once with a
        # box, it may change the order, and rounding between the passes then changes pixels. Only
        # the rows within reach of the filter (3 lobes) are needed.
        reach = math.ceil(3 * max(sy, 1.0)) + 1
        low, high = max(0, int(y0) - reach), min(height, math.ceil(y1) + reach)
        lanczos = Image.Resampling.LANCZOS
        image = image.resize((self.size, high - low), lanczos, box=(x0, low, x1, high))
        return image.resize((self.size, self.size), lanczos, box=(0, y0 - low, self.size, y1 - low))

    def _pad(self, image: Image.Image) -> Image.Image:
        if max(image.size) > self.size:
            raise UnreadableImage(
                f"a picture of {image.width}x{image.height} px does not fit into size "
                f"{self.size}; raise size or use resize='short_side'"
            )
        if image.size == (self.size, self.size):
            return image
        colour = self.background if self.channels == 1 else (self.background,) * 3
        canvas = Image.new(self.mode, (self.size, self.size), colour)
        canvas.paste(image, ((self.size - image.width) // 2, (self.size - image.height) // 2))
        return canvas


def make_transform(source: Any, size: int, train: bool, **options: Any) -> ImageTransform:
    """The transform that suits a source; any field of ImageTransform can be overridden.

    Photographs get VAR's preprocessing with random crops when `train`. Pictures that lie in
    memory (mnist5k, emoji) are drawn with their own margin, so they are only padded.

    Args:
      source: a Source; its channels, `background` and kind set the defaults.
      size: output side in pixels.
      train: random crops and flips or affine maps, if any; without it they are off.
      **options: fields of ImageTransform; `affine` may be a mapping of RandomAffine's fields.
    """
    known = {f.name for f in dataclasses.fields(ImageTransform)} - {"size"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"Unknown transform option {unknown[0]!r}; the options are {', '.join(sorted(known))}."
        )
    defaults: dict[str, Any] = {
        "channels": source.channels,
        "background": getattr(source, "background", 255),
        "resize": getattr(source, "resize", "short_side"),
        "random_crop": train,
    }
    settings = {**defaults, **options}
    if settings.get("affine") is not None and not isinstance(settings["affine"], RandomAffine):
        settings["affine"] = RandomAffine(**settings["affine"])
    if not train:
        settings.update(flip=False, affine=None, random_crop=False)
    return ImageTransform(size=size, **settings)

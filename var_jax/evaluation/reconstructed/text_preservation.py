"""How well a tokenizer keeps text: letters are drawn, reconstructed and read back.

In the manner of VTBench (arXiv 2505.13439), with two readers. The first needs nothing: each
letter stands at a known place, and the glyph that correlates best with what is there is what was
read. The second is an OCR package, if one is installed (pytesseract with its program, or easyocr
with its models).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from var_jax.evaluation.reconstructed.image_scores import edge_error, psnr

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SIZES = (8, 12, 16, 24, 32, 48, 64)
#: Decibels that stand for an exact copy.
MAX_PSNR = 100.0
_WORDS = (
    *("A", "I", "GO", "ON", "BY", "SKY", "SEA", "RED", "FOX", "JAM", "BOX", "ZIP", "KEY", "WAX"),
    *("QUIZ", "TREE", "LAMP", "BIRD", "HAND", "WORK", "JUMP", "GLASS", "NIGHT", "PLANT", "QUICK"),
    *("BROWN", "VIVID", "GARDEN", "WINDOW", "PICTURE", "7", "42", "365", "1984", "20480"),
)
#: A picture uint8 [H, W, 3] -> the text that an OCR package finds in it.
Reader = Callable[[np.ndarray], str]


@dataclasses.dataclass(frozen=True)
class TextPictures:
    """Pictures of text of one size.

    Attributes:
      size: of the letters in pixels (em).
      images: uint8 [N, H, W, c].
      texts: what stands in each, lines separated by newlines.
      letters: int [M, 4]: picture, y and x of the cell, and number in ALPHABET of each letter.
      glyphs: float32 [len(ALPHABET), h, w]: the letters' cells as drawn, in [0, 1].
    """

    size: int
    images: np.ndarray
    texts: tuple[str, ...]
    letters: np.ndarray
    glyphs: np.ndarray


@dataclasses.dataclass(frozen=True)
class TextScores:
    """How text of one size came through.

    Attributes:
      size: of the letters in pixels.
      num_pictures, num_letters: how many there were.
      psnr: dB, mean over the pictures.
      edge_error: see image_scores.
      letters_kept: share of the letters that the nearest glyph reads rightly.
      ocr_original, ocr: share of the characters that the OCR package reads rightly in the
        originals and in the reconstructions (1 - edit distance / length); None without one.
    """

    size: int
    num_pictures: int
    num_letters: int
    psnr: float
    edge_error: float
    letters_kept: float
    ocr_original: float | None = None
    ocr: float | None = None


def render(
    size: int,
    image_shape: tuple[int, int, int],
    num_pictures: int = 8,
    *,
    background: int = 255,
    seed: int = 0,
) -> TextPictures | None:
    """Pictures full of words.

    Args:
      size: of the letters in pixels.
      image_shape: (H, W, c).
      num_pictures: how many.
      background: grey value; the letters are black on it, or white where it is dark.
      seed: of the words.

    Returns:
      the pictures, or None where not even one line of three letters has room.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width, channels = image_shape
    font = ImageFont.load_default(size)
    advances = [font.getlength(letter) for letter in ALPHABET]
    cell_w, cell_h = int(np.ceil(max(advances))) + 1, int(np.ceil(1.25 * size))
    columns, rows = width // cell_w, height // cell_h
    if columns < 3 or rows < 1:
        return None
    ink = 0 if background > 127 else 255

    def cell(letter: int) -> np.ndarray:
        picture = Image.new("L", (cell_w, cell_h), background)
        x = int((cell_w - advances[letter]) // 2)
        ImageDraw.Draw(picture).text((x, size), ALPHABET[letter], ink, font, anchor="ls")
        return np.asarray(picture)

    cells = np.stack([cell(letter) for letter in range(len(ALPHABET))])
    rng = np.random.default_rng([seed, size])
    images = np.full((num_pictures, height, width), background, np.uint8)
    texts, letters = [], []
    top, left = (height - rows * cell_h) // 2, (width - columns * cell_w) // 2
    for picture in range(num_pictures):
        lines = [_line(rng, columns) for _ in range(rows)]
        texts.append("\n".join(lines))
        for row, line in enumerate(lines):
            for column, character in enumerate(line):
                if character == " ":
                    continue
                letter = ALPHABET.index(character)
                y, x = top + row * cell_h, left + column * cell_w
                images[picture, y : y + cell_h, x : x + cell_w] = cells[letter]
                letters.append((picture, y, x, letter))
    return TextPictures(
        size,
        np.repeat(images[..., None], channels, -1),
        tuple(texts),
        np.array(letters),
        cells.astype(np.float32) / 255,
    )


def read_letters(images: Num[np.ndarray, "n H W c"], pictures: TextPictures) -> np.ndarray:
    """What the nearest glyph reads at the place of each letter, int [M] in ALPHABET.

    Args:
      images: the pictures or reconstructions of them.
      pictures: where the letters stand.
    """
    grey = images.mean(-1) / 255.0
    height, width = pictures.glyphs.shape[1:]
    found = np.stack([grey[n, y : y + height, x : x + width] for n, y, x, _ in pictures.letters])
    return np.argmax(_unit(found) @ _unit(pictures.glyphs).T, axis=1)


def find_reader() -> tuple[str, Reader] | None:
    """Name and function of an installed OCR package that works, or None."""
    return _tesseract() or _easyocr()


def score_text(
    reconstruct: Callable[[np.ndarray], np.ndarray],
    image_shape: tuple[int, int, int],
    *,
    sizes: Sequence[int] = SIZES,
    num_pictures: int = 8,
    background: int = 255,
    seed: int = 0,
    reader: Reader | None = None,
) -> tuple[list[TextScores], list[tuple[np.ndarray, np.ndarray]]]:
    """Draws text in all sizes that have room, reconstructs it and reads it back.

    Args:
      reconstruct: uint8 [N, H, W, c] -> the same.
      image_shape: (H, W, c).
      sizes: of the letters in pixels.
      num_pictures: of each size.
      background, seed: see render.
      reader: an OCR package, or None.

    Returns:
      the scores of each size, and for each the first picture with its reconstruction.
    """
    scores, examples = [], []
    for size in sizes:
        pictures = render(size, image_shape, num_pictures, background=background, seed=seed)
        if pictures is None:
            continue
        made = reconstruct(pictures.images)
        kept = read_letters(made, pictures) == pictures.letters[:, 3]
        values = {}
        if reader is not None:
            for name, images in (("ocr_original", pictures.images), ("ocr", made)):
                pairs = zip(images, pictures.texts, strict=True)
                values[name] = float(np.mean([_read_back(reader, i, t) for i, t in pairs]))
        scores.append(
            TextScores(
                size,
                num_pictures,
                len(kept),
                float(np.minimum(psnr(pictures.images, made), MAX_PSNR).mean()),
                float(edge_error(pictures.images, made).mean()),
                float(kept.mean()),
                **values,
            )
        )
        examples.append((pictures.images[0], made[0]))
    return scores, examples


def character_accuracy(read: str, truth: str) -> float:
    """1 - edit distance / length of the truth, at least 0; case and kinds of space do not count."""
    read, truth = (" ".join(text.upper().split()) for text in (read, truth))
    distance = list(range(len(truth) + 1))
    for i, a in enumerate(read, 1):
        above, distance[0] = distance[0], i
        for j, b in enumerate(truth, 1):
            above, distance[j] = (
                distance[j],
                min(distance[j] + 1, distance[j - 1] + 1, above + (a != b)),
            )
    return max(0.0, 1 - distance[-1] / max(len(truth), 1))


def _line(rng: np.random.Generator, columns: int) -> str:
    line = ""
    while True:
        room = columns - len(line) - bool(line)
        fitting = [word for word in _WORDS if len(word) <= room]
        if not fitting:
            return line
        line += (" " if line else "") + str(rng.choice(fitting))


def _unit(cells: np.ndarray) -> np.ndarray:
    """Cells [n, h, w] -> unit vectors [n, h * w] around their own mean."""
    flat = cells.reshape(len(cells), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _read_back(reader: Reader, image: np.ndarray, text: str) -> float:
    # OCR packages want letters of some thirty pixels.
    larger = np.repeat(np.repeat(image, 3, 0), 3, 1)
    if larger.shape[-1] == 1:
        larger = np.repeat(larger, 3, -1)
    return character_accuracy(reader(larger), text)


def _tesseract() -> tuple[str, Reader] | None:
    try:
        import pytesseract
        from PIL import Image

        version = pytesseract.get_tesseract_version()
    # Without its program the package raises an error of its own.
    except Exception:
        return None

    def read(image: np.ndarray) -> str:
        return pytesseract.image_to_string(Image.fromarray(image), config="--psm 6")

    return f"tesseract {version}", read


def _easyocr() -> tuple[str, Reader] | None:
    try:
        import easyocr

        package: Any = easyocr.Reader(["en"], gpu=False, download_enabled=False, verbose=False)
    # Without its models the package raises errors of several kinds.
    except Exception:
        return None

    def read(image: np.ndarray) -> str:
        return "\n".join(package.readtext(image, detail=0))

    return "easyocr", read

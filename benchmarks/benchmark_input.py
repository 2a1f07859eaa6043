"""Measures the input pipeline: photographs against PyTorch's DataLoader, and cached tokens.

  python -m benchmarks.benchmark_input                       # 500x375 px JPEGs made on the spot
  python -m benchmarks.benchmark_input --path=/data/imagenet/val --num_workers=8
Prints images/s of each loader with the same number of workers, best of --repeats rounds in turn
(so that both meet the same load of the machine), and cached tokens/s of one thread and core.
The PyTorch part needs the package torch and is left out without it.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import app, flags, logging
from PIL import Image

from launch import cli
from var_jax.data import Pipeline, make_source, make_transform
from var_jax.data.token_cache import TokenCache, TokenCacheSettings, TokenCacheWriter, token_field
from var_jax.pyramid import ScalePyramid

_PATH = cli.define_path("path", None, "Folder of class folders; by default, made pictures.")
_SIZE = flags.DEFINE_integer("size", 256, "Pixels of a side after cropping.", 8)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images a batch.", 1)
_WORKERS = flags.DEFINE_integer("num_workers", os.cpu_count() or 1, "Worker processes.", 0)
_IMAGES = flags.DEFINE_integer("num_images", 512, "Pictures to make without --path.", 1)
_BATCHES = flags.DEFINE_integer("num_batches", 20, "Batches timed in each round.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Rounds.", 1)
_FAST = flags.DEFINE_bool("fast_decode", False, "Also time ImageTransform(fast_decode=True).")
_TOKENS = flags.DEFINE_integer("num_tokens_samples", 50_000, "Samples of the token cache.", 1)


def make_pictures(folder: str, count: int) -> None:
    """Writes photograph-like JPEGs of ImageNet's usual 500x375 px, about 100 KB each."""
    rng = np.random.Generator(np.random.Philox(key=0))
    for i in range(count):
        layers = [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (n * 3, n * 4, 3), dtype=np.uint8)).resize(
                    (500, 375), Image.Resampling.BICUBIC
                ),
                np.float32,
            )
            for n in (2, 8, 32)
        ]
        pixels = np.tensordot((0.5, 0.3, 0.2), layers, 1)
        pixels += rng.normal(0, 6, pixels.shape)
        data = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(data, "JPEG", quality=95)
        path = os.path.join(folder, f"class{i % 4}")
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, f"{i:05d}.jpg"), "wb") as file:
            file.write(data.getvalue())


class TorchPictures:
    """VAR's preprocessing as a map-style PyTorch data set (Pillow, as torchvision does it)."""

    def __init__(self, files: list[str], size: int) -> None:
        self._files = files
        self._size = size

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        with open(self._files[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        short, (width, height) = round(1.125 * self._size), image.size
        scale_by = min(width, height)
        image = image.resize(
            (int(short * width / scale_by), int(short * height / scale_by)),
            Image.Resampling.LANCZOS,
        )
        left = np.random.randint(image.width - self._size + 1)  # noqa: NPY002
        top = np.random.randint(image.height - self._size + 1)  # noqa: NPY002
        return np.array(image.crop((left, top, left + self._size, top + self._size)))


def images_per_second(batches: Iterator, count: int, batch_size: int) -> float:
    """Throughput after the first batches, which pay for starting the workers."""
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch_size / (time.perf_counter() - start)


def benchmark_pictures(path: str) -> dict[str, float]:
    """images/s by loader."""
    source = make_source("folder", "train", path=path)
    logging.info("%d pictures, %d workers.", len(source), _WORKERS.value)

    def ours(workers: int, **options) -> Iterator:
        transform = make_transform(source, _SIZE.value, train=True, **options)
        pipeline = Pipeline(source, transform, _BATCH.value, num_workers=workers)
        return pipeline.batches()

    loaders: dict[str, Callable[[], Iterator]] = {"var_jax": lambda: ours(_WORKERS.value)}
    if _WORKERS.value:
        loaders["var_jax (4 threads)"] = lambda: ours(0)
    if _FAST.value:
        loaders["var_jax (fast_decode)"] = lambda: ours(_WORKERS.value, fast_decode=True)
    try:
        import torch

        files = [source.name(i) for i in range(len(source))]
        dataset = TorchPictures(files, _SIZE.value)

        def theirs() -> Iterator:
            sampler = torch.utils.data.RandomSampler(
                dataset, replacement=True, num_samples=(_BATCHES.value + 8) * _BATCH.value
            )
            return iter(
                torch.utils.data.DataLoader(
                    dataset, _BATCH.value, sampler=sampler, num_workers=_WORKERS.value
                )
            )

        loaders["torch DataLoader"] = theirs
    except ImportError:
        print("torch is not installed: no comparison.")
    best = dict.fromkeys(loaders, 0.0)
    for _ in range(_REPEATS.value):
        for name, build in loaders.items():
            batches = build()
            rate = images_per_second(batches, _BATCHES.value, _BATCH.value)
            best[name] = max(best[name], rate)
            if hasattr(batches, "close"):
                batches.close()
            del batches
    return best


def benchmark_tokens(folder: str) -> dict[str, float]:
    """Cached samples/s of 680 tokens: by wall clock, and by processor seconds (one core's)."""
    shapes = ScalePyramid.for_image_size(256).shapes
    settings = TokenCacheSettings(
        fingerprint="benchmark",
        shapes=shapes,
        field=token_field(shapes, 4096),
        num_images=_TOKENS.value,
        crops=1,
        class_names=tuple(str(i) for i in range(1000)),
        source="random",
        image_size=256,
        seed=0,
    )
    writer = TokenCacheWriter(folder, settings)
    rng = np.random.Generator(np.random.Philox(key=0))
    for start in range(0, _TOKENS.value, 1000):
        index = np.arange(start, min(start + 1000, _TOKENS.value))
        tokens = rng.integers(0, 4096, (len(index), settings.pyramid.length))
        writer.write(tokens, index % 1000, index)
    writer.close()
    pipeline = Pipeline(TokenCache(folder), None, 256)
    pipeline.batch(0)
    best = {"cached tokens (wall)": 0.0, "cached tokens (a core)": 0.0}
    for _ in range(_REPEATS.value):
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(1, 41):
            pipeline.batch(step)
        for name, seconds in zip(
            best, (time.perf_counter() - wall, time.process_time() - cpu), strict=True
        ):
            best[name] = max(best[name], 40 * 256 / seconds)
    return best


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown argument {argv[1]!r}.")
    with tempfile.TemporaryDirectory() as folder:
        path = _PATH.value
        if path is None:
            path = os.path.join(folder, "pictures")
            make_pictures(path, _IMAGES.value)
        rates = benchmark_pictures(path)
        rates |= benchmark_tokens(os.path.join(folder, "tokens"))
    for name, rate in rates.items():
        print(f"{name:>24}: {rate:10,.0f} images/s")
    if "torch DataLoader" in rates:
        print(f"var_jax / torch = {rates['var_jax'] / rates['torch DataLoader']:.2f}")
    print(json.dumps(rates))


if __name__ == "__main__":
    app.run(main)

"""How watermarks survive what happens to images, on samples of a small model.

    python -m launch.pair_codes --tokenizer runs/quickstart/tokenizer \
        --output runs/quickstart/pairs.npz
    python -m benchmarks.compare_watermarks --checkpoint runs/quickstart/transformer \
        --pairs runs/quickstart/pairs.npz

Each mark is drawn into as many images; these are rounded to 8 bits, changed, and encoded again, and
green codes are counted, each once in a level of an image. z is the mean score. "found" is the share
of images whose score is above that of 99 in 100 unmarked samples of the same model, encoded again;
so 1% would be found by chance. The last column is the share of those unmarked samples above z =
2.33, which would be 1% if codes were independent.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags, logging
from jaxtyping import UInt8
from PIL import Image

from launch import cli
from var_jax.evaluation.report import markdown_table

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_PAIRS = cli.define_path("pairs", None, "npz file of launch.pair_codes.")
_NUM = flags.DEFINE_integer("num_images", 500, "Samples of each mark.", 100)
_SEED = flags.DEFINE_integer("seed", 0, "Of samples and noise.", 0)
_JSON = cli.define_path("json", None, "File for the numbers.")

_KEY = 20260
#: z that independent codes exceed in one image of 100.
_ONE_PERCENT = 2.33


def each(change: Callable[[Image.Image], Image.Image]) -> Callable[..., np.ndarray]:
    """A change of all images from one of a picture."""

    def run(images: UInt8[np.ndarray, "n H W c"], seed: int) -> np.ndarray:
        del seed
        changed = [np.asarray(change(Image.fromarray(x.squeeze()))) for x in images]
        return np.stack(changed).reshape(images.shape)

    return run


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Written as JPEG and read."""

    def run(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return run


def cropped(picture: Image.Image) -> Image.Image:
    """The middle seven eighths of each side, at the size from before."""
    width, height = picture.size
    box = (width // 16, height // 16, width - width // 16, height - height // 16)
    return picture.crop(box).resize(picture.size, Image.Resampling.BICUBIC)


def noisy(deviation: float) -> Callable[..., np.ndarray]:
    """Normal noise in grey levels."""

    def run(images: UInt8[np.ndarray, "n H W c"], seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
        return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)

    return run


CHANGES: dict[str, Callable[..., np.ndarray]] = {
    "encoded again": lambda images, seed: images,
    "JPEG 90": each(jpeg(90)),
    "JPEG 50": each(jpeg(50)),
    "noise of 5": noisy(5.0),
    "noise of 20": noisy(20.0),
    "cropped by an eighth": each(cropped),
}


def marks(pairs: str | None) -> dict[str, dict[str, Any]]:
    """Logit processors by what the table calls them."""
    found: dict[str, dict[str, Any]] = {
        f"green list, delta {delta:g}": dict(kind="green_list", key=_KEY, delta=delta)
        for delta in (2.0, 5.0)
    }
    for threshold in (1.0, 9.0) if pairs else ():
        name = f"IndexMark, threshold {threshold:g}"
        found[name] = dict(kind="index_mark", key=_KEY, pairs=pairs, threshold=threshold)
    return found


def main() -> None:
    import var_jax
    from var_jax.build import registry
    from var_jax.heads.watermark import detection_score
    from var_jax.paths import write_json

    cli.on_one_host()
    model = var_jax.load(_CHECKPOINT.value, _TOKENIZER.value)
    codec = model.tokenizer.module.codec
    labels = np.arange(_NUM.value) % model.num_classes

    def scores(images: np.ndarray, mark: Any) -> np.ndarray:
        tokens, vocab_size = model.encode(images), codec.target.num_values
        return detection_score(tokens, mark, codec.pyramid, vocab_size, distinct=True)

    plain = model.sample(labels, seed=_SEED.value)
    rows: list[dict[str, Any]] = []
    for name, settings in marks(_PAIRS.value).items():
        logging.info("Drawing samples with the mark: %s.", name)
        mark = registry.make("processor", settings, "the mark")
        images = model.sample(labels, seed=_SEED.value + 1, processors=(settings,))
        unmarked = scores(plain, mark)
        bound = float(np.quantile(unmarked, 0.99))
        for what, change in CHANGES.items():
            z = scores(change(images, _SEED.value), mark)
            rows.append(
                {
                    "mark": name,
                    "images": what,
                    "z": float(z.mean()),
                    "found": float((z > bound).mean()),
                    "z_of_unmarked": float(unmarked.mean()),
                    "false_alarms": float((unmarked > _ONE_PERCENT).mean()),
                }
            )
    if _JSON.value:
        write_json(_JSON.value, rows)
    shown = [
        (
            row["mark"],
            row["images"],
            f"{row['z']:.1f}",
            f"{100 * row['found']:.0f}%",
            f"{row['z_of_unmarked']:.1f}",
            f"{100 * row['false_alarms']:.0f}%",
        )
        for row in rows
    ]
    header = ("mark", "images", "z", "found", "z of unmarked", "of these above 2.33")
    print(markdown_table(header, shown))


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)

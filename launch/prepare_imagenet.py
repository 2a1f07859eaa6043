"""Writes ImageNet, or any data set in class folders, as ArrayRecord shards.

From the official files (nothing is unpacked; about 150 GB to write):
  python -m launch.prepare_imagenet --train=ILSVRC2012_img_train.tar \
    --val=ILSVRC2012_img_val.tar --output=/data/imagenet
From class folders, made smaller on the way (288 = 1.125 * 256 px; fewer bytes to read and decode):
  python -m launch.prepare_imagenet --train=/data/raw/train --val=/data/raw/val \
    --output=gs://bucket/imagenet288 --resize=288
Then, in a config: source 'array_record' with path=<output>. Interrupted, run it again: it goes
on after the last finished shard. On a TPU VM with a small disk, run it on a CPU VM and let
--output be a bucket. A gs:// path in the config is copied to each host's cache directory
($VAR_JAX_CACHE) first; mount the bucket (gcsfuse) where it does not fit on the disk.
"""

from __future__ import annotations

import os

from absl import flags

from launch import cli

_TRAIN = cli.define_path("train", None, "Tar file of class tars, or folder of class folders.")
_VAL = cli.define_path(
    "val", None, "Tar file of images, folder of class folders, or folder of images with val_labels."
)
_VAL_LABELS = cli.define_path(
    "val_labels",
    None,
    "Classes of validation images that are in no class folder: one per line in the order of the "
    "file names, or file name and class (text, or Kaggle's LOC_val_solution.csv). ImageNet's own "
    "need none.",
)
_OUTPUT = cli.define_path("output", None, "Directory to write, local or gs://.")
_RESIZE = flags.DEFINE_integer("resize", 0, "Short side in pixels to store; 0 keeps the files.", 0)
_QUALITY = flags.DEFINE_integer("quality", 95, "JPEG quality with --resize.", 1, 100)
_THREADS = flags.DEFINE_integer(
    "num_threads", min(16, os.cpu_count() or 1), "Shards written at the same time.", 1
)
flags.mark_flags_as_required(["train", "output"])


def main() -> None:
    from var_jax.data import image_writer, imagenet

    tables = imagenet.prepare(
        _OUTPUT.value,
        _TRAIN.value,
        _VAL.value,
        val_labels=_VAL_LABELS.value,
        resize=image_writer.Resize(_RESIZE.value, _QUALITY.value) if _RESIZE.value else None,
        num_threads=_THREADS.value,
        report=lambda line: print(line, flush=True),
    )
    for split, table in tables.items():
        count = sum(shard["records"] for shard in table["shards"])
        size = sum(shard["bytes"] for shard in table["shards"]) / 1e9
        skipped = len(table["skipped"])
        print(
            f"{_OUTPUT.value}/{split}: {count:,} images, {len(table['class_names'])} classes, "
            f"{size:.1f} GB" + (f", {skipped} unreadable ones left out" if skipped else "")
        )


if __name__ == "__main__":
    cli.run(main)

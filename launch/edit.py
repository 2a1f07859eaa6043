"""Draws parts of a picture anew; docs/editing.md has an example of each use.

python -m launch.edit --checkpoint runs/quickstart/transformer --image digit.png \
    --mask mask.png --labels 3 --num_per_label 4 --output edited.png

White pixels of the mask are drawn, black ones stay; --expand 0.25 draws a border around the
picture in its place; without both, all is drawn, after as many levels of the picture as --level
says (variations), or as a small picture can fill (--refine). --mix_with draws nothing: finer
levels are another picture's. A .png has a row for each label: the picture, what of it is drawn in
grey, the results; an .npz holds `images` (uint8 NHWC), `labels`, `source` and `mask`. Runs on one
host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from launch import cli

if TYPE_CHECKING:
    import numpy as np

    from var_jax.pyramid import ScalePyramid

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_IMAGE = cli.define_path("image", None, "The picture: any file that Pillow reads.")
_MASK = cli.define_path("mask", None, "Picture whose white pixels are drawn anew.")
_EXPAND = flags.DEFINE_float("expand", None, "Width of a new border as a share of the side.")
_REFINE = flags.DEFINE_bool("refine", False, "Keep the levels that a small picture can fill.")
_MIX = cli.define_path("mix_with", None, "Picture that gives the levels from --level on.")
_LABELS = flags.DEFINE_list("labels", ["-1"], "What results should show; -1 is 'no class'.")
_SHOWN = flags.DEFINE_integer("shown", -1, "What the picture shows, for --rule relabel.", -1)
_NUM = flags.DEFINE_integer("num_per_label", 1, "Results for each entry of --labels.", 1)
_RULE = flags.DEFINE_string(
    "rule", "refit", "refit, forced or relabel; or JSON of a kind and its settings."
)
_LEVEL = flags.DEFINE_integer("level", 0, "Levels that are the picture's own.", 0)
_CANDIDATES = flags.DEFINE_integer(
    "candidates", 1, "Draws for each result; the one that fits best is taken.", 1
)
_KEPT = flags.DEFINE_string(
    "kept", "reconstructed", "What stands where pixels stay: reconstructed, source or decoded."
)
_FADE = flags.DEFINE_float("fade", 2.0, "Pixels over which the difference of it fades out.", 0.0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the results.", 0)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Results at once.", 1)
_OUTPUT = cli.define_path("output", None, "File to write, .png or .npz; local or gs://.")
cli.define_sampling_flags()
flags.mark_flags_as_required(["checkpoint", "image", "output"])


def main() -> None:
    import numpy as np
    from etils import epath

    import var_jax
    from var_jax.data import edit_pictures
    from var_jax.evaluation.pictures import make_grid
    from var_jax.paths import check_writable, replacing, write_bytes
    from var_jax.pixels import encode_png

    cli.on_one_host()
    output = epath.Path(_OUTPUT.value)
    if output.suffix not in (".npz", ".png"):
        raise ValueError(f"--output must end in .npz or .png, got {output}.")
    check_writable(output)
    check_flags()
    picture = edit_pictures.read_picture(_IMAGE.value)
    marked = edit_pictures.read_mask(_MASK.value, picture) if _MASK.value else None
    other = edit_pictures.read_picture(_MIX.value) if _MIX.value else None
    rule = cli.json_section("rule", _RULE.value) if "{" in _RULE.value else _RULE.value

    model = var_jax.load(_CHECKPOINT.value, _TOKENIZER.value)
    size, _, channels = model.image_shape
    labels = np.repeat(cli.parse_labels(_LABELS.value, model.num_classes), _NUM.value)
    shown = model.num_classes if _SHOWN.value < 0 else _SHOWN.value
    if _EXPAND.value is not None:
        source, mask = edit_pictures.expand(picture, size, channels, _EXPAND.value)
    else:
        source = edit_pictures.fit(picture, size, channels)
        mask = np.ones((size, size), bool)
        mask = mask if marked is None else edit_pictures.fit_mask(marked, size)
    pyramid = model.tokenizer.module.codec.pyramid
    if other is not None:
        images = model.mix(
            source[None], edit_pictures.fit(other, size, channels)[None], level=_LEVEL.value
        )
        labels, mask = labels[:1], np.zeros_like(mask)
    else:
        stride = model.tokenizer.module.stride
        images = model.edit(
            np.repeat(source[None], len(labels), 0),
            labels,
            mask,
            rule=rule,
            level=filled_levels(picture, pyramid, stride) if _REFINE.value else _LEVEL.value,
            candidates=_CANDIDATES.value,
            kept=_KEPT.value,
            fade=_FADE.value,
            shown=np.full(len(labels), shown),
            seed=_SEED.value,
            batch_size=_BATCH.value,
            **cli.sampling_settings(),
        )
    if output.suffix == ".png":
        shown_mask = np.where(mask[..., None], source // 4 + 96, source).astype(np.uint8)
        rows = np.split(images, len(images) // _NUM.value) if other is None else [images]
        cells = [image for row in rows for image in (source, shown_mask, *row)]
        write_bytes(output, encode_png(make_grid(np.stack(cells), columns=2 + len(rows[0]))))
    else:
        with replacing(output) as file:
            np.savez(file, images=images, labels=labels, source=source, mask=mask)
    print(f"Wrote {len(images)} results to {output}.")


def check_flags() -> None:
    """Raises ValueError for flags that exclude each other."""
    uses = {"mask": _MASK.value, "expand": _EXPAND.value, "mix_with": _MIX.value}
    given = [f"--{name}" for name, value in uses.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are different edits; give one of them.")
    if _REFINE.value and (given or _LEVEL.value):
        extra = given[0] if given else "--level"
        raise ValueError(f"--refine says by itself what is drawn; leave out {extra}.")


def filled_levels(picture: np.ndarray, pyramid: ScalePyramid, stride: int) -> int:
    """The number of levels whose tokens a small picture has pixels for, all but one at most.

    Args:
      picture: as it was read.
      pyramid: of the model.
      stride: pixels of the model's images for one cell of its feature map.

    Raises:
      ValueError: the picture is not small, or too small for any level.
    """
    short = min(picture.shape[:2])
    count = pyramid.levels_within(short / stride)
    if not 0 < count < pyramid.num_levels:
        low, high = (max(pyramid.shapes[k]) * stride for k in (0, -1))
        raise ValueError(
            f"--refine is for pictures of {low} to {high - 1} pixels, and the short side of this "
            f"one has {short}; give a smaller or larger one, or say --level."
        )
    return count


if __name__ == "__main__":
    cli.run(main)

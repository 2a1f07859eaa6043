"""Scores a tokenizer: rFID, PSNR, SSIM, LPIPS, detail, text, codes, level by level.

python -m launch.evaluate_tokenizer --tokenizer checkpoints/var_d16/tokenizer \
    --config configs/var_imagenet256.py --inception pt_inception-2015-12-05-6726825d.pth \
    --lpips vgg16.pth --lpips_linear lpips_vgg.pth --output runs/tokenizer_scores

TOKENIZER is a tokenizer's workdir, or a transformer's with its tokenizer inside. The images are
those that the tokenizer was trained on (held out), those of --config, or those of --images.
Reconstructions are compared with the identically cropped originals; a --reference that was not
made of the same pictures is refused. OUTPUT gets report.html, report.md, scores.json and
manifest.json. Runs on one host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from launch import cli

_TOKENIZER = cli.define_path("tokenizer", None, "Workdir of a tokenizer or a transformer.")
_CONFIG = config_flags.DEFINE_config_file("config", help_string="Whose data is used.")
_SPLIT = flags.DEFINE_string("split", "val", "Split of the data.")
_IMAGES = cli.define_path(
    "images", None, "Instead of data: npz (arr_0 or images), npy, or a folder of pictures."
)
_RANGE = flags.DEFINE_enum(
    "value_range", None, cli.VALUE_RANGES, "What floating point images of --images span."
)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 0, "Images drawn from the data; 0 is all.", 0)
_INCEPTION, _INCEPTION_SHA256 = cli.define_inception_flags()
_LPIPS = cli.define_path("lpips", None, "Weights of torchvision's vgg16, for LPIPS.")
_LPIPS_LINEAR = cli.define_path(
    "lpips_linear", None, "The LPIPS release's vgg.pth; by default in the file of --lpips."
)
_REFERENCE = cli.define_path(
    "reference", None, "Take rFID to this file, made by launch.make_reference."
)
_ALLOW_MISMATCHED = cli.define_allow_mismatched_reference()
_OUTPUT = cli.define_path("output", None, "Folder to write.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images at once, over all devices.", 1)
_LEVEL_IMAGES = flags.DEFINE_integer("level_images", 256, "Images decoded level by level.", 1)
_PERTURBED_RATES = flags.DEFINE_list(
    "perturbed_rates", [], "Also pFID: shares of the tokens that take a code near to theirs."
)
_PERTURBED_NEAREST = flags.DEFINE_list(
    "perturbed_nearest", ["100"], "Of pFID: among how many nearest codes; each with each rate."
)
_TEXT = flags.DEFINE_bool("text", True, "Also draw text and read it back.")
_KEEP_IMAGES = flags.DEFINE_bool(
    "keep_images", False, "Also write reconstructions.npz, for other evaluators."
)
flags.mark_flags_as_required(["tokenizer", "output"])


@dataclasses.dataclass(frozen=True)
class Data:
    """Images to score.

    Attributes:
      batches: uint8 [n, H, W, c].
      total: how many are expected.
      note: where they come from and how they were cropped; see references.origin.
      background: grey value around them.
    """

    batches: Iterator[Any]
    total: int
    note: dict[str, Any]
    background: int = 255


def main() -> None:
    import jax
    from etils import epath

    from var_jax import build
    from var_jax.checkpoint.files import inspect, package_versions
    from var_jax.convert.lpips import load_lpips
    from var_jax.evaluation.generated import image_files, references
    from var_jax.evaluation.generated.adm import EVALUATOR
    from var_jax.evaluation.generated.npz_images import ImageSpool, note_array
    from var_jax.evaluation.generated.sampling_run import ROUNDING
    from var_jax.evaluation.inception.extractor import FeatureExtractor
    from var_jax.evaluation.inception.weights import file_sha256, load_inception
    from var_jax.evaluation.progress import Progress, ScoringProgress
    from var_jax.evaluation.reconstructed import text_preservation
    from var_jax.evaluation.reconstructed.perturbed_scores import PerturbedFID
    from var_jax.evaluation.reconstructed.tokenizer_report import TextPart, write_report
    from var_jax.evaluation.reconstructed.tokenizer_scores import TokenizerRunner, score_tokenizer
    from var_jax.parallel import sharding

    cli.on_one_host()
    if _REFERENCE.value and not _INCEPTION.value:
        raise ValueError("--reference needs --inception.")
    if _PERTURBED_RATES.value and not _INCEPTION.value:
        raise ValueError("--perturbed_rates needs --inception.")
    if _LPIPS_LINEAR.value and not _LPIPS.value:
        raise ValueError("--lpips_linear needs --lpips.")
    folder = epath.Path(_TOKENIZER.value)
    if inspect(folder).metadata.get("kind") == "transformer":
        folder = folder / "tokenizer"
    loaded = build.load_tokenizer(folder)
    shape = loaded.module.image_shape
    mesh = sharding.make_mesh(devices=jax.local_devices())
    batch = -(-_BATCH.value // mesh.size) * mesh.size
    if _IMAGES.value:
        data = from_file(_IMAGES.value, shape, batch, _RANGE.value)
    else:
        data = from_source(loaded, batch)
    about = {**data.note, "kind": references.RECONSTRUCTIONS}
    if _REFERENCE.value:
        references.check_reference(_REFERENCE.value)
        if not _ALLOW_MISMATCHED.value:
            references.check_comparable(shape[:2], about, _REFERENCE.value, _TOKENIZER.value)
    weights, extractor, lpips = None, None, None
    if _INCEPTION.value:
        weights = load_inception(_INCEPTION.value, sha256=_INCEPTION_SHA256.value)
        extractor = FeatureExtractor(weights, batch_size=batch)
    if _LPIPS.value:
        lpips = load_lpips(_LPIPS.value, _LPIPS_LINEAR.value or _LPIPS.value)
    runner = TokenizerRunner(loaded.module, loaded.params, batch, lpips, mesh)
    reference = None
    if _REFERENCE.value:
        reference = references.read_reference(
            _REFERENCE.value, extractor, keep_features=False, progress=ScoringProgress()
        )

    perturbed = None
    if _PERTURBED_RATES.value:
        perturbed = PerturbedFID(
            loaded.module,
            loaded.params,
            extractor,
            cli.numbers("perturbed_rates", _PERTURBED_RATES.value, float),
            cli.numbers("perturbed_nearest", _PERTURBED_NEAREST.value, int),
            batch,
            mesh,
        )
    progress = Progress("images", data.total)
    output = epath.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        spool = None
        if _KEEP_IMAGES.value:
            spool = stack.enter_context(ImageSpool(output / "reconstructions.npz"))

        def on_batch(images: Any, made: Any) -> None:
            progress.add(len(images))
            if spool is not None:
                spool.append(made)
            if perturbed is not None:
                perturbed.add(images)

        scores, examples = score_tokenizer(
            runner,
            data.batches,
            extractor,
            reference,
            num_level_images=_LEVEL_IMAGES.value,
            on_batch=on_batch,
        )
        if spool is not None:
            spool.finish(note=note_array({**about, "count": spool.count}))
    if perturbed is not None:
        found = perturbed.scores(reference.pool if reference else None)
        scores = dataclasses.replace(scores, perturbed=found)
    text = None
    if _TEXT.value:
        found = text_preservation.find_reader()
        name, reader = found or (None, None)
        logging.info("Text: %s.", f"read back with {name}" if name else "no OCR package, no OCR")
        sizes, pictures = text_preservation.score_text(
            lambda images: runner(images)[0], shape, background=data.background, reader=reader
        )
        text = TextPart(sizes, pictures, name)
    manifest = {
        **data.note,
        "num_images": scores.num_images,
        "tokenizer": str(folder),
        "tokenizer_fingerprint": loaded.fingerprint,
        "dtype": jax.numpy.dtype(loaded.module.dtype).name,
        "rounding": ROUNDING,
        "evaluator": EVALUATOR if weights else None,
        "inception_sha256": weights.sha256 if weights else None,
        "published_inception": bool(weights and weights.published),
        "reference": _REFERENCE.value or "the originals, identically cropped",
        "reference_sha256": image_files.sha256(_REFERENCE.value) if _REFERENCE.value else None,
        "mismatched_reference_allowed": _ALLOW_MISMATCHED.value,
        "lpips_sha256": file_sha256(_LPIPS.value) if _LPIPS.value else None,
        "lpips_linear_sha256": file_sha256(_LPIPS_LINEAR.value or _LPIPS.value)
        if _LPIPS.value
        else None,
        "devices": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "versions": package_versions(),
    }
    shapes = loaded.module.codec.pyramid.shapes
    print(json.dumps(write_report(output, scores, examples, text, shapes, manifest), indent=2))
    logging.info("Wrote %s.", output / "report.html")


def from_file(
    path: str, shape: tuple[int, int, int], batch_size: int, value_range: str | None = None
) -> Data:
    """The images of a file or a folder.

    Raises:
      FileNotFoundError, ValueError: they are not what the tokenizer reads.
    """
    from var_jax.evaluation.generated import image_files, npz_images

    file = image_files.open_images(path, value_range)
    if file.shape[1:3] != shape[:2] or file.shape[3] > shape[2]:
        raise ValueError(
            f"{path} holds images {list(file.shape)}, but the tokenizer reads "
            f"[N, {', '.join(map(str, shape))}]; crop or resize them first."
        )
    note = npz_images.read_note(path)
    note = {k: note.get(k, f"as in {path}") for k in ("source", "split", "crop")}
    batches = (images[..., : shape[2]] for images in file.batches(batch_size))
    return Data(batches, len(file), {**note, "image_size": shape[0], "channels": shape[2]})


def from_source(loaded: Any, batch_size: int) -> Data:
    """The images of --config, or of the tokenizer's own.

    Raises:
      ValueError: they are not what the tokenizer reads.
    """
    from var_jax import build
    from var_jax.evaluation.generated import references

    config = _CONFIG.value or loaded.config
    asked = (config.data.image_size, config.data.image_size, config.data.channels)
    if asked != tuple(loaded.module.image_shape):
        raise ValueError(
            f"The config's images are {list(asked)}, but the tokenizer reads "
            f"{list(loaded.module.image_shape)}; give a config of the same size."
        )
    source = build.source(config, _SPLIT.value)
    total = _NUM_IMAGES.value or len(source)
    if total > len(source):
        raise ValueError(
            f"--num_images is {total}, but {config.data.source}:{_SPLIT.value} has {len(source)}."
        )
    # Some of them: a shuffled order, since data sets are often sorted by class.
    some = total < len(source)
    images = build.pipeline(config, source, batch_size, train=some, augment=False, caption="none")
    note = references.origin(config.data.source, _SPLIT.value, images.transform)
    if some:
        note["count"] = total  # Not all of them: a reference of all is another set.
        note["chosen"] = f"{total} of {len(source)}, shuffled by the seed {config.seed}"

    def batches() -> Iterator[Any]:
        if some:
            left = total
            for found in images.batches(0, -(-total // batch_size)):
                yield found["image"][:left]
                left -= len(found["image"])
        else:
            for found in images.batches():
                yield found["image"][found["mask"]]

    return Data(batches(), total, note, getattr(images.transform, "background", 255))


if __name__ == "__main__":
    cli.run(main)

"""What a training evaluates on its way."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from var_jax.build.sections import Section, call, read


@dataclasses.dataclass(frozen=True)
class FIDSettings:
    """config.evaluation.fid.

    Attributes:
      inception: file of the Inception weights.
      reference: npz of real images, or an ADM reference with their statistics.
      num_samples: images of each evaluation.
      batch_size: images at once, over all devices.
      every: in steps, a multiple of config.evaluation.every; 0 is only at the end.
    """

    inception: str
    reference: str
    num_samples: int = 1000
    batch_size: int = 64
    every: int = 0


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """config.evaluation; all of it uses the parameters' moving average where there is one.

    A tokenizer's training reads every, reconstructions and rfid only, a transformer's not rfid.

    Attributes:
      every: in steps; 0 is only at the end, None takes evaluate_every of the training's section.
      likelihood: held-out negative log likelihood and accuracy.
      samples_per_class: rows of the picture of samples; 0 is none.
      max_classes: columns of it.
      prompts: the columns of a model of text; none are no picture.
      reconstructions: held-out images that the tokenizer shows beside the originals, with the
        PSNR of the whole split; None is 16 where it trains, and none where it is frozen.
      fid: None is none; so is a section whose inception and reference are both '', which a
        command line may fill in.
      rfid: file of the Inception weights, for the Frechet distance of all held-out images to
        their reconstructions; '' is none.
    """

    every: int | None = None
    likelihood: bool = True
    samples_per_class: int = 4
    max_classes: int = 10
    prompts: tuple[str, ...] = ()
    reconstructions: int | None = None
    fid: FIDSettings | None = None
    rfid: str = ""


#: None of it changes what is trained.
EVALUATION = Section(
    (EvaluationSettings,), sections={"fid": Section((FIDSettings,))}, changeable=True
)


def evaluation_settings(config: ConfigDict, section: str) -> EvaluationSettings:
    """Reads config.evaluation, which a config may leave out.

    Args:
      config: of the training.
      section: 'train' or 'tokenizer_train'.

    Raises:
      ValueError: an unknown or missing key, or steps that do not fit each other.
    """
    values = read(config.get("evaluation", {}), "config.evaluation", EVALUATION)
    fid = values.pop("fid", None)
    # A tokenizer draws no samples.
    off = section != "train" or not fid or not (fid.get("inception") or fid.get("reference"))
    fid = None if off else call(FIDSettings, "config.evaluation.fid", fid)
    settings = call(EvaluationSettings, "config.evaluation", values, fid=fid)
    if settings.every is None:
        every = config[section].get("evaluate_every", 0)
        settings = dataclasses.replace(settings, every=every)
    if fid is not None and fid.every and (not settings.every or fid.every % settings.every):
        raise ValueError(
            f"config.evaluation.fid.every is {fid.every}, which is no multiple of the "
            f"{settings.every} steps between evaluations (config.evaluation.every); make it one."
        )
    return settings

"""Negative log likelihood of the token maps of a split under a transformer.

python -m launch.likelihood --checkpoint runs/quickstart/transformer --split val \
    --output likelihood.json

Every example counts once, whatever the batch size and the number of devices. Prints a table (nats
and bits per token, accuracy, by level and in all) and writes the same as JSON. The images come from
the config of the run, cropped in the middle; --token_cache takes a cache's first crop of each.
"""

from __future__ import annotations

from typing import Any

from absl import flags, logging

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_SPLIT = flags.DEFINE_string("split", "val", "Split of the data source: train or val.")
_TOKEN_CACHE = cli.define_path("token_cache", "", "Cached tokens in place of images.")
_OUTPUT = cli.define_path("output", None, "JSON file to write; local or gs://.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Examples at once, over all devices.", 1)
flags.mark_flags_as_required(["checkpoint"])


def main() -> None:
    values = cli.scored(
        _OUTPUT.value,
        lambda: score(
            _CHECKPOINT.value,
            _SPLIT.value,
            tokenizer_path=_TOKENIZER.value,
            token_cache=_TOKEN_CACHE.value,
            batch_size=_BATCH.value,
        ),
    )
    if values is None:
        return
    from var_jax.evaluation.token_likelihood import table

    print(table(values))
    print(
        f"{values['nats']:.2f} nats a token map, {values['bits_per_token']:.4f} bits a dimension "
        f"of the token map ({values['bits_per_pixel_channel']:.4f} bits a pixel and channel, as a "
        f"rate); mean of {values['num_examples']} examples."
    )


def score(
    checkpoint: str,
    split: str,
    *,
    tokenizer_path: str | None = None,
    token_cache: str = "",
    batch_size: int = 64,
) -> dict[str, Any]:
    """Scores a checkpoint on a split; JSON.

    Args:
      checkpoint: workdir of a transformer.
      split: 'train' or 'val'.
      tokenizer_path: another place of its tokenizer.
      token_cache: read tokens from there; '' encodes images.
      batch_size: examples at once, over all devices.
    """
    from var_jax import build
    from var_jax.evaluation.token_likelihood import TokenLikelihood
    from var_jax.objectives.likelihood import Likelihood
    from var_jax.parallel import sharding

    # The mesh of the training may not fit the devices that are here.
    mesh = sharding.make_mesh()
    loaded = build.load_transformer(checkpoint, tokenizer_path, mesh=mesh)
    config, tokenizer = loaded.config, loaded.tokenizer
    if not loaded.network.head.has_likelihood:
        raise ValueError(
            f"The transformer in {checkpoint} has no likelihood, its head draws without one; its "
            "training reports held-out losses as eval/loss_mean."
        )
    cached = bool(token_cache)
    config.token_cache = token_cache
    source = build.training_source(config, split, tokenizer.fingerprint)
    build.check_same_classes(loaded.metadata, source, f"The transformer in {checkpoint}")
    if source.num_classes > loaded.network.transformer.num_classes:
        raise ValueError(
            f"The data has {source.num_classes} classes, but the transformer was trained with "
            f"{loaded.network.transformer.num_classes}; give the data it was trained on."
        )
    batch_size = sharding.padded_batch(batch_size, mesh)
    pipeline = build.pipeline(config, source, batch_size, train=False, mesh=mesh)
    objective = Likelihood(loaded.network, tokenizer.module, from_images=not cached)
    frozen = build.place_frozen(objective, config, mesh, tokenizer)
    logging.info("Scoring %d examples of %s.", pipeline.num_samples, split)
    scores = TokenLikelihood(objective, frozen, pipeline, mesh)(loaded.params)
    return {
        "checkpoint": str(checkpoint),
        "step": loaded.step,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "split": split,
        "read_from": token_cache if cached else config.data.source,
        "conditional_on": loaded.network.transformer.conditioning().fields[0].name,
        **scores.as_dict(tokenizer.module.image_shape),
    }


if __name__ == "__main__":
    cli.run(main)

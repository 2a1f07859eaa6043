"""Writes the model that an adapter makes of its base as a checkpoint of its own.

python -m launch.merge_adapter --checkpoint runs/lora --output runs/merged

OUTPUT gets what the workdir of a training has: the transformer, and its tokenizer in `tokenizer`.
What an adapter's workdir holds can be drawn from, scored, fine-tuned and exported without this;
merged, it no longer needs its `reference`. No accelerator; memory for both models.
"""

from __future__ import annotations

from absl import flags

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a run with config.train.adapter.")
_OUTPUT = cli.define_path("output", None, "New folder; local or gs://.")
flags.mark_flags_as_required(["checkpoint", "output"])


def main() -> None:
    from var_jax.build import merging

    cli.on_one_host()
    merging.merge_adapter(_CHECKPOINT.value, _OUTPUT.value)


if __name__ == "__main__":
    cli.run(main, on_cpu=True)

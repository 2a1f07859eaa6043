"""Imports the official PyTorch files of VAR, and exports to them.

python -m launch.convert_torch import --vae vae_ch160v4096z32.pth --transformer var_d30.pth \
    --output checkpoints/var_d30
python -m launch.convert_torch export --checkpoint checkpoints/var_d30 --output exported

import needs no PyTorch. It writes the transformer to OUTPUT and its tokenizer to
OUTPUT/tokenizer, or a tokenizer alone to OUTPUT; launch.sample, launch.evaluate,
launch.reconstruct and fine-tuning (config.train.initial_checkpoint) take OUTPUT. Files may be
.pth or safetensors, in parts too (the folder, the index or a part); bare state dicts, the official
trainer's, Lightning's, with or without the names of wrappers; local or gs://. Where a file holds
several of a kind, --group names the one to take. Memory stays near the size of the larger file.
The files of HMAR (its next-scale stage), FlexVAR, MAR, xAR, the autoencoder of latent diffusion (KL
f16), Infinity's transformers (but the 8B one) and its tokenizers are read too.

export writes vae_*.safetensors and var_*.safetensors with the official names, buffers
included, and the same as .pth where PyTorch is installed.
"""

from __future__ import annotations

from absl import flags

from launch import cli

_VAE = cli.define_path("vae", None, "import: the tokenizer's file.")
_TRANSFORMER = cli.define_path("transformer", None, "import: the transformer's file.")
_TOKENIZER = cli.define_path(
    "tokenizer", None, "import: a tokenizer checkpoint of ours, where there is no --vae."
)
_GROUP = flags.DEFINE_string(
    "group", None, "import: which of a file's dicts, such as ema; inspect_checkpoint lists them."
)
_PATCH_NUMS = flags.DEFINE_string(
    "patch_nums",
    None,
    "import: side lengths of the levels, such as 1,2,3,5,8, where no published pyramid fits.",
)
_NUM_HEADS = flags.DEFINE_integer(
    "num_heads", None, "import: where neither attention scales nor heads of 64 tell.", 1
)
_TEXT_ENCODER = cli.define_path(
    "text_encoder", None, "import: folder of the T5 encoder that an Infinity model asks."
)
_CHECKPOINT = cli.define_path("checkpoint", None, "export: folder of a run or of an import.")
_OUTPUT = cli.define_path("output", None, "New folder.")
flags.mark_flags_as_required(["output"])

_OF_IMPORT = (_VAE, _TRANSFORMER, _TOKENIZER, _GROUP, _PATCH_NUMS, _NUM_HEADS, _TEXT_ENCODER)


def parse_patch_nums(text: str) -> tuple[int, ...]:
    """'1,2,3' -> (1, 2, 3).

    Raises:
      ValueError: they are no positive numbers.
    """
    try:
        values = tuple(int(n) for n in text.replace("_", ",").split(","))
    except ValueError:
        values = (0,)
    if min(values) < 1:
        raise ValueError(f"--patch_nums takes side lengths such as 1,2,3,5,8, got {text!r}.")
    return values


def main(command: str) -> None:
    from var_jax.build import official_files

    if command == "import":
        if _CHECKPOINT.value:
            raise ValueError("import takes no --checkpoint; it is of export.")
        official_files.import_files(
            _OUTPUT.value,
            vae=_VAE.value,
            transformer=_TRANSFORMER.value,
            tokenizer=_TOKENIZER.value,
            group=_GROUP.value,
            patch_nums=parse_patch_nums(_PATCH_NUMS.value) if _PATCH_NUMS.value else None,
            num_heads=_NUM_HEADS.value,
            text_encoder=_TEXT_ENCODER.value,
        )
    elif command == "export":
        for flag in _OF_IMPORT:
            if flag.value is not None:
                raise ValueError(f"export takes no --{flag.name}; it is of import.")
        if not _CHECKPOINT.value:
            raise ValueError("export needs --checkpoint.")
        official_files.export_files(_CHECKPOINT.value, _OUTPUT.value)
    else:
        raise ValueError(f"The command is import or export, not {command!r}.")


if __name__ == "__main__":
    cli.run(main, words=["import or export"], on_cpu=True)

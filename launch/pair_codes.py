"""Pairs the codes of a tokenizer by likeness, for the watermark `index_mark`.

python -m launch.pair_codes --tokenizer runs/quickstart/tokenizer --output runs/quickstart/pairs.npz

The file is no secret, the key is: which code of each pair is green. One host, no accelerator.
"""

from __future__ import annotations

from absl import flags

from launch import cli

_TOKENIZER = cli.define_path("tokenizer", None, "Workdir of a tokenizer.")
_OUTPUT = cli.define_path("output", None, "npz file to write; local or gs://.")
_GREEDY = flags.DEFINE_bool("greedy", False, "Pair as the public code does, best pairs first.")
flags.mark_flags_as_required(["tokenizer", "output"])


def main() -> None:
    import numpy as np

    from var_jax import build, paths
    from var_jax.quantizers.pairing import greedy_pairs, improved_pairs, similarities

    cli.on_one_host()
    paths.check_writable(_OUTPUT.value)
    loaded = build.load_tokenizer(_TOKENIZER.value)
    if not loaded.module.codec.codebook_size:
        raise ValueError(
            f"The tokenizer in {_TOKENIZER.value} has no codebook, whose codes could be paired."
        )
    codebook = np.asarray(loaded.params["codec"]["codebook"])
    pairs = greedy_pairs(codebook)
    if not _GREEDY.value:
        pairs = improved_pairs(codebook, pairs)
    with paths.replacing(_OUTPUT.value) as file:
        np.savez_compressed(file, pairs=pairs, vocab_size=len(codebook))
    cosine = similarities(codebook)[pairs[:, 0], pairs[:, 1]].mean()
    print(f"{_OUTPUT.value}: {len(pairs)} pairs, whose cosine is {cosine:.3f} on average.")


if __name__ == "__main__":
    cli.run(main, on_cpu=True)

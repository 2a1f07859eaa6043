"""From pictures, masks and seeds to edited pictures, as one compiled program."""

from __future__ import annotations

from collections.abc import Callable

import jax

from var_jax.decoding.edit_rules import blend
from var_jax.decoding.editing import Editing, Source
from var_jax.decoding.images import Samples, sample_keys
from var_jax.network import Network
from var_jax.parallel import sharding
from var_jax.pixels import to_float, to_uint8
from var_jax.resample import resize
from var_jax.tokenizer.vqvae import VQVAE

#: What may stand where pixels stay, see `edited`.
KEPT = ("reconstructed", "source", "decoded")


def jit_editing(
    network: Network,
    tokenizer: VQVAE,
    editing: Editing,
    mesh: jax.sharding.Mesh,
    kept: str = "reconstructed",
    fade: float = 2.0,
) -> Callable[..., Samples]:
    """`edited` as it runs.

    Args:
      network, tokenizer, editing, kept, fade: see `edited`.
      mesh: over which batches are cut.

    Returns:
      see `edited`; cut over the batch.

    Raises:
      ValueError: `kept` or `fade` is wrong.
    """
    return jax.jit(
        edited(network, tokenizer, editing, kept, fade),
        out_shardings=sharding.batch_sharding(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )


def edited(
    network: Network,
    tokenizer: VQVAE,
    editing: Editing,
    kept: str = "reconstructed",
    fade: float = 2.0,
) -> Callable[..., Samples]:
    """Encoding, editing and decoding, for a program.

    Args:
      network, tokenizer: modules.
      editing: how levels are drawn.
      kept: what stands where pixels stay, one of KEPT: 'source', the picture's own pixels;
        'reconstructed', as the tokenizer reconstructs the picture; 'decoded', what comes out of the
        decoder, which hangs on all of the features, so that new ones change it everywhere.
      fade: pixels over which the difference that this makes at the border fades out, 0 or more.

    Returns:
      (params, the tokenizer's, seed uint32, images uint8 [B, H, W, c], keep float32 [B, H, W] with
      1 for pixels that stay, given [B], shown [B], index uint32 [B]) -> Samples. Given, shown:
      see `Source`.

    Raises:
      ValueError: `kept` or `fade` is wrong.
    """
    if kept not in KEPT:
        raise ValueError(f"kept is {kept!r}; choose one of {', '.join(KEPT)}.")
    if not fade >= 0:
        raise ValueError(f"fade is a number of pixels, 0 or more, got {fade}.")

    def run(params, tokenizer_params, seed, images, keep, given, shown, index):
        variables = {"params": tokenizer_params}
        pictures = to_float(images)
        features = tokenizer.apply(variables, pictures, method="features")
        cells = resize(keep[..., None], tokenizer.codec.pyramid.grid, "area")[..., 0]
        result = editing(
            network,
            params,
            tokenizer.codec,
            tokenizer_params.get("codec", {}),
            Source(given, features, cells, shown),
            sample_keys(seed, index),
        )
        made = tokenizer.apply(variables, result.features, method="decode")
        if kept == "source":
            made = blend(made, pictures, keep, fade)
        elif kept == "reconstructed":
            whole = tokenizer.apply(variables, pictures, method="reconstruct")
            made = blend(made, whole, keep, fade)
        return Samples(to_uint8(made), result.targets)

    return run

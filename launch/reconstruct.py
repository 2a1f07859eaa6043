"""Encodes and decodes images with a tokenizer.

python -m launch.reconstruct --checkpoint checkpoints/var_d30 --images in.npz --output out.npz

CHECKPOINT is a tokenizer's workdir, or a transformer's with its tokenizer inside. IMAGES are an
npz (`images` or `arr_0`), an npy or a folder of pictures, [N, H, W, c] of the tokenizer's image
size: uint8, or floating point that spans -1..1, or what --value_range says. out.npz holds
`images` of the same shape and range, `tokens` int32 [N, L] and `psnr` float32 [N] in dB.
"""

from __future__ import annotations

from absl import flags

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Local or gs:// folder.")
_IMAGES = cli.define_path("images", None, "npz, npy, or a folder of pictures.")
_RANGE = flags.DEFINE_enum(
    "value_range", None, cli.VALUE_RANGES, "What floating point images of --images span."
)
_OUTPUT = cli.define_path("output", None, "npz file to write.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images at a time.", 1)
flags.mark_flags_as_required(["checkpoint", "images", "output"])


def main() -> None:
    import numpy as np
    from etils import epath

    from var_jax import build, paths
    from var_jax.checkpoint.files import inspect
    from var_jax.evaluation.generated.image_files import open_images
    from var_jax.evaluation.generated.npz_images import note_array

    cli.on_one_host()
    output = epath.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    paths.check_writable(output)
    images = open_images(_IMAGES.value, _RANGE.value)
    kind = inspect(_CHECKPOINT.value).metadata.get("kind")
    folder = epath.Path(_CHECKPOINT.value)
    tokenizer = build.load_tokenizer(folder / "tokenizer" if kind == "transformer" else folder)
    check(images, tokenizer.module.image_shape)

    made, tokens, psnr = reconstruct(tokenizer, images, _BATCH_SIZE.value)
    arrays = {"images": made, "tokens": tokens, "psnr": psnr}
    if made.dtype != np.uint8:
        arrays["note"] = note_array({"value_range": images.value_range})
    with paths.replacing(output) as file:
        np.savez(file, **arrays)
    print(f"Wrote {len(made)} images to {output}, PSNR {psnr.mean():.2f} dB on average.")


def check(images, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless `images` have the shape that the tokenizer reads."""
    if images.shape[1:] != tuple(shape):
        raise ValueError(
            f"{images.path} holds images {list(images.shape)}, but the tokenizer reads "
            f"[N, {', '.join(map(str, shape))}]; crop or resize them first."
        )


def reconstruct(tokenizer, images, batch_size: int):
    """Encodes and decodes.

    Args:
      tokenizer: of build.load_tokenizer.
      images: of open_images.
      batch_size: images at once.

    Returns:
      (images in the same range, uint8 or float32; tokens int32 [N, L]; PSNR float32 [N]).
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from var_jax.evaluation.generated.image_files import RANGES
    from var_jax.parallel import sharding
    from var_jax.pixels import to_float, to_uint8

    module = tokenizer.module
    params = tokenizer.on(sharding.make_mesh(devices=jax.local_devices()[:1])).params

    @jax.jit
    def run(params, x):
        tokens = module.apply({"params": params}, x, method="encode")
        return module.apply({"params": params}, tokens, method="decode_tokens"), tokens

    integer = images.value_range == "uint8"
    low, high = (0, 255) if integer else RANGES[images.value_range]
    center, half = (low + high) / 2, (high - low) / 2  # 0 and 1 for -1..1, which stays as it is
    made, tokens, psnr = [], [], []
    for batch in images.raw(batch_size):
        # The last batch is filled up, so that one program serves all.
        fill = np.repeat(batch[-1:], batch_size - len(batch), 0)
        x = np.concatenate([batch, fill])
        x = to_float(x) if integer else (x.astype(np.float32) - center) / half
        y, codes = jax.device_get(run(params, jnp.asarray(x)))
        y = to_uint8(y[: len(batch)]) if integer else y[: len(batch)] * half + center
        error = (y.astype(np.float32) - batch.astype(np.float32)) / (high - low)
        error = np.square(error, dtype=np.float64).mean((1, 2, 3))
        psnr.append(-10 * np.log10(np.maximum(error, 1e-10)))
        made.append(y)
        tokens.append(codes[: len(batch)])
    return np.concatenate(made), np.concatenate(tokens), np.concatenate(psnr).astype(np.float32)


if __name__ == "__main__":
    cli.run(main)

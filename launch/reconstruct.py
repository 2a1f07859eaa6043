"""Encodes and decodes images with a tokenizer.

python -m launch.reconstruct --checkpoint checkpoints/var_d30 --images in.npz --output out.npz

CHECKPOINT is a tokenizer's workdir, or a transformer's with its tokenizer inside. in.npz holds
`images` [N, H, W, c]: uint8, or floating point in [-1, 1]. out.npz holds `images` of the same
shape, type and range, `tokens` int32 [N, L] and `psnr` float32 [N] in dB. H and W must be the
tokenizer's image size.
"""

from __future__ import annotations

from absl import flags

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Local or gs:// folder.")
_IMAGES = cli.define_path("images", None, "npz file with `images`.")
_OUTPUT = cli.define_path("output", None, "npz file to write.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images at a time.", 1)
flags.mark_flags_as_required(["checkpoint", "images", "output"])


def main() -> None:
    import numpy as np
    from etils import epath

    from var_jax import build
    from var_jax.checkpoint.files import inspect

    cli.on_one_host()
    from var_jax.paths import replacing

    with epath.Path(_IMAGES.value).open("rb") as file, np.load(file) as archive:
        if "images" not in archive:
            raise ValueError(
                f"{_IMAGES.value} has no array 'images'; it has {', '.join(archive.files)}."
            )
        images = archive["images"]
    kind = inspect(_CHECKPOINT.value).metadata.get("kind")
    folder = epath.Path(_CHECKPOINT.value)
    tokenizer = build.load_tokenizer(folder / "tokenizer" if kind == "transformer" else folder)
    check(images, tokenizer.module.image_shape, _IMAGES.value)

    made, tokens, psnr = reconstruct(tokenizer, images, _BATCH_SIZE.value)
    output = epath.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as file:
        np.savez(file, images=made, tokens=tokens, psnr=psnr)
    print(f"Wrote {len(made)} images to {output}, PSNR {psnr.mean():.2f} dB on average.")


def check(images, shape: tuple[int, int, int], path: str) -> None:
    """Raises ValueError unless `images` are what the tokenizer reads."""
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise ValueError(
            f"{path} holds images {list(images.shape)}, but the tokenizer reads "
            f"[N, {', '.join(map(str, shape))}]; crop or resize them first."
        )
    if images.dtype != "uint8" and images.dtype.kind != "f":
        raise ValueError(
            f"{path} holds images of {images.dtype}; give uint8, or floating point in [-1, 1]."
        )
    if images.dtype.kind == "f" and not abs(images).max() <= 1.0001:
        raise ValueError(
            f"{path} holds floating point images outside [-1, 1] (up to {abs(images).max():.3g}); "
            "scale them, or give uint8."
        )


def reconstruct(tokenizer, images, batch_size: int):
    """(images like the given ones, tokens int32 [N, L], PSNR float32 [N])."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from var_jax.parallel import sharding
    from var_jax.pixels import to_float, to_uint8

    module = tokenizer.module
    params = tokenizer.on(sharding.make_mesh(devices=jax.local_devices()[:1])).params

    @jax.jit
    def run(params, x):
        tokens = module.apply({"params": params}, x, method="encode")
        return module.apply({"params": params}, tokens, method="decode_tokens"), tokens

    integer = images.dtype == np.uint8
    made, tokens, psnr = [], [], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        # The last batch is filled up, so that one program serves all.
        fill = np.repeat(batch[-1:], batch_size - len(batch), 0)
        x = to_float(np.concatenate([batch, fill]))
        y, codes = jax.device_get(run(params, jnp.asarray(x)))
        y, x = y[: len(batch)], x[: len(batch)]
        if integer:
            y = to_uint8(y)
            error = (y.astype(np.float32) - batch) / 255
        else:
            error = (y - x) / 2
        error = np.square(error, dtype=np.float64).mean((1, 2, 3))
        psnr.append(-10 * np.log10(np.maximum(error, 1e-10)))
        made.append(y)
        tokens.append(codes[: len(batch)])
    return np.concatenate(made), np.concatenate(tokens), np.concatenate(psnr).astype(np.float32)


if __name__ == "__main__":
    cli.run(main)

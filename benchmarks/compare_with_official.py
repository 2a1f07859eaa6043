"""Runs a checkpoint in the official PyTorch code (a clone of FoundationVision/VAR) too.

python -m benchmarks.compare_with_official --official ~/VAR --checkpoint checkpoints/var_d16

Exports the checkpoint, loads it there with strict=True, and prints how far features, tokens,
teacher-forcing inputs, pictures, logits and greedy generations are apart on random images and
labels. Needs PyTorch, on the CPU. benchmarks.compare_training compares training.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from benchmarks.official_clone import use_official
from launch import cli

_OFFICIAL = cli.define_path("official", None, "Clone of FoundationVision/VAR.")
_CHECKPOINT = cli.define_path("checkpoint", None, "Transformer, of a run or an import.")
_BATCH = flags.DEFINE_integer("batch_size", 2, "Pictures to compare.", 1)
flags.mark_flags_as_required(["official", "checkpoint"])


def largest_difference(name: str, ours: Any, theirs: Any) -> None:
    """Prints the largest difference and its ratio to the largest value there."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{name}: {ours.shape} here, {theirs.shape} there.")
    worst, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
    print(f"{name:34s} {worst:9.2e}  relative {worst / size:8.1e}", flush=True)


def token_agreement(name: str, ours: Any, theirs: Any) -> None:
    """Prints how many tokens are equal."""
    equal = np.asarray(ours) == np.asarray(theirs)
    print(f"{name:34s} {equal.sum()} of {equal.size} equal", flush=True)


def main() -> None:
    use_official(_OFFICIAL.value)
    import jax
    import torch

    from var_jax import build
    from var_jax.build import official_files
    from var_jax.decoding.guidance import LinearGuidance
    from var_jax.decoding.next_scale import NextScale
    from var_jax.heads.categorical import CategoricalSampling

    loaded = build.load_transformer(_CHECKPOINT.value)
    tokenizer = loaded.tokenizer.module
    codec, pyramid = tokenizer.codec, loaded.network.transformer.pyramid
    with tempfile.TemporaryDirectory() as folder:
        official_files.export_files(_CHECKPOINT.value, folder)
        var_path, vae_path = sorted(epath.Path(folder).glob("*.pth"), key=lambda p: p.name)[::-1]
        var_state, vae_state = torch.load(var_path), torch.load(vae_path)

    from models import build_vae_var

    vae, var = build_vae_var(
        device="cpu",
        patch_nums=pyramid.patch_nums,
        V=codec.vocab_size,
        Cvae=codec.code_dim,
        ch=tokenizer.channels,
        share_quant_resi=codec.phi_sharing,
        num_classes=loaded.network.transformer.num_classes,
        depth=loaded.network.transformer.depth,
        shared_aln=loaded.network.transformer.shared_adaln,
        attn_l2_norm=loaded.network.transformer.qk_norm,
    )
    vae.load_state_dict(vae_state, strict=True)
    var.load_state_dict(var_state, strict=True)
    vae.eval(), var.eval()
    # The official forward drops labels even in evaluation mode.
    var.cond_drop_rate = 0.0
    print("load_state_dict(strict=True) passed for both modules.")

    rng = np.random.default_rng(0)
    shape = (_BATCH.value, *tokenizer.image_shape)
    images = rng.uniform(-1, 1, shape).astype(np.float32)
    labels = rng.integers(0, loaded.network.transformer.num_classes, _BATCH.value).astype(np.int32)

    def apply(x, method):
        return jax.jit(lambda p, x: tokenizer.apply({"params": p}, x, method=method))(
            loaded.tokenizer.params, x
        )

    @jax.jit
    def logits(params, codec_params, tokens, labels):
        inputs = codec.apply({"params": codec_params}, tokens, method="teacher_inputs")
        hidden, _ = loaded.network.hidden(params, inputs, labels)
        return loaded.network.head.apply({"params": params["head"]}, hidden), inputs

    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        features = vae.quant_conv(vae.encoder(pixels))
        levels = vae.img_to_idxBl(pixels)
        there = torch.cat(levels, 1)
        inputs = vae.quantize.idxBl_to_var_input(levels)
        there_logits = var(torch.from_numpy(labels).long(), inputs)
        picture = vae.idxBl_to_img(levels, same_shape=True, last_one=True)
        largest_difference("features", apply(images, "features"), features.permute(0, 2, 3, 1))
        token_agreement("tokens of random images", apply(images, "encode"), there)
        here, here_inputs = logits(
            loaded.params, loaded.tokenizer.params["codec"], there.numpy(), labels
        )
        largest_difference("teacher inputs", here_inputs[:, pyramid.sizes[0] :], inputs)
        decoded = apply(there.numpy().astype(np.int32), "decode_tokens")
        largest_difference("pictures of the same tokens", decoded, picture.permute(0, 2, 3, 1))
        largest_difference("logits", here, there_logits)
        for cfg in (1.5, 4.0):
            decoder = NextScale(LinearGuidance(cfg), CategoricalSampling(top_k=1, top_p=0.0))
            chosen: list[torch.Tensor] = []
            embedding = vae.quantize.embedding
            hook = embedding.register_forward_hook(
                lambda _, inputs, __, chosen=chosen: chosen.append(inputs[0].clone())
            )
            image = var.autoregressive_infer_cfg(
                _BATCH.value, torch.from_numpy(labels).long(), cfg=cfg, top_k=1
            )
            hook.remove()
            made = jax.jit(
                lambda p, c, labels, keys, decoder=decoder: decoder(
                    loaded.network, p, codec, c, labels, keys
                )
            )(
                loaded.params,
                loaded.tokenizer.params["codec"],
                labels,
                jax.random.split(jax.random.key(0), _BATCH.value),
            )
            token_agreement(f"greedy tokens, cfg {cfg}", made.targets, torch.cat(chosen, 1))
            ours = (apply(made.features, "decode") + 1) / 2
            largest_difference(f"greedy pictures, cfg {cfg}", ours, image.permute(0, 2, 3, 1))


if __name__ == "__main__":
    cli.run(main, on_cpu=True)

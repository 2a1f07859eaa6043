"""VAR on ImageNet at 256 px: the published recipes of d16, d20, d24 and d30.

    python -m launch.train --config configs/var_imagenet256.py:d16 --workdir gs://BUCKET/var-d16 \
        --config.tokenizer_checkpoint=gs://BUCKET/tokenizer --config.token_cache=gs://BUCKET/tokens

Data: `python -m launch.prepare_imagenet` writes the shards, `python -m launch.cache_tokens` the
tokens; without a token cache the step encodes images of config.data. The tokenizer is the
converted official one (`python -m launch.convert_torch`) or your own
(configs/tokenizer_imagenet256.py).

Hardware and time: `python -m launch.compile_for_tpu --config configs/var_imagenet256.py:d30
--topology v5e:16x16` says for any slice whether it fits and what it costs. remat dots costs least
where it fits; on 8 chips most want --config.model.remat=full (docs/topologies.md). The mesh cuts
the parameters over 16 devices, or as many as divide both 16 and the slice.
Published results (FoundationVision/VAR; cfg 1.5, top_k 900, top_p 0.96, 50,000 samples): FID 3.55
(d16), 2.95 (d20), 2.33 (d24), 1.97 (d30). Not trained here.

Official flag -> key: depth -> the variant, bs -> train.batch_size, ep -> train.num_steps (in
steps), tblr -> train.optimizer.learning_rate, twd/twde -> weight_decay/weight_decay_end, wpe ->
end_factor, alng -> model.adaln_gamma_init, saln -> model.shared_adaln, pn -> patch_nums, pg/pg0 ->
train.progressive.until/first, data_path -> data.options.path.
"""

from ml_collections import ConfigDict

IMAGES = 1281167

# batch size, epochs, learning rate a 256 images, gamma init, final learning rate, final decay
RECIPES = {
    "d16": (16, 768, 200, 1e-4, 1e-3, 0.1, 0.05),
    "d20": (20, 768, 250, 1e-4, 1e-3, 0.1, 0.05),
    "d24": (24, 768, 350, 8e-5, 1e-4, 0.01, 0.05),
    "d30": (30, 1024, 350, 8e-5, 1e-5, 0.01, 0.08),
}


def get_config(variant: str = "d16") -> ConfigDict:
    """Variants: d16, d20, d24, d30."""
    if variant not in RECIPES:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(RECIPES)}.")
    depth, batch, epochs, rate, gamma, end, decay_end = RECIPES[variant]
    return ConfigDict(
        dict(
            seed=0,
            patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
            tokenizer_checkpoint="",
            token_cache="",
            sharding="fsdp",
            mesh=dict(data=-1, fsdp=-1, tensor=1, max_fsdp=16),
            data=dict(
                source="array_record",
                options=dict(path="data/imagenet256"),
                image_size=256,
                channels=3,
                transform=dict(flip=False),
                num_workers=16,
                num_threads=4,
                prefetch=32,
            ),
            tokenizer=dict(vocab_size=4096, code_dim=32, phi_sharing=4, channels=160),
            model=dict(
                depth=depth,
                width=64 * depth,
                num_heads=depth,
                num_classes=1000,
                adaln_gamma_init=gamma,
                drop_path_rate=0.1 * depth / 24,
                remat="dots",
                scan_unroll=1,
                dtype="bfloat16",
            ),
            train=dict(
                num_steps=epochs * IMAGES // batch,
                batch_size=batch,
                microbatches=1,
                ema_decay=0.0,
                optimizer=dict(
                    learning_rate=rate,
                    schedule="lin0",
                    warmup_steps=epochs * IMAGES // batch // 50,
                    end_factor=end,
                    weight_decay=0.05,
                    weight_decay_end=decay_end,
                ),
                progressive=dict(),
                log_every=100,
                save_every=2000,
                evaluate_every=10000,
                max_to_keep=3,
                profile_start=0,
                profile_steps=0,
                wandb_project="",
                initial_checkpoint="",
            ),
            sampling=dict(cfg=1.5, cfg_schedule="linear", top_k=900, top_p=0.96),
            # Every evaluate_every steps; the FID at every fifth of them, once it has the Inception
            # weights and the reference that launch.evaluate takes.
            evaluation=dict(
                likelihood=True,
                samples_per_class=4,
                max_classes=10,
                reconstructions=0,
                fid=dict(inception="", reference="", num_samples=5000, batch_size=256, every=50000),
            ),
        )
    )

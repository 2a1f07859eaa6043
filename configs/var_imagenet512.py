"""VAR-d36 with shared adaptive layer norm on ImageNet at 512 px (d36-s): the published recipe.

    python -m launch.train --config configs/var_imagenet512.py --workdir gs://BUCKET/var-d36 \
        --config.tokenizer_checkpoint=gs://BUCKET/tokenizer --config.token_cache=gs://BUCKET/tokens

As configs/var_imagenet256.py, which explains data, hardware, evaluation and the names of the
official flags. remat dots costs least on 256 chips and more; on 64 chips of v4, v5e or v6e give
--config.model.remat=full (docs/topologies.md).
Published result: FID 2.63. Not trained here.
"""

from ml_collections import ConfigDict

IMAGES, BATCH, EPOCHS, DEPTH = 1281167, 768, 350, 36


def get_config() -> ConfigDict:
    """The one variant."""
    num_steps = EPOCHS * IMAGES // BATCH
    return ConfigDict(
        dict(
            seed=0,
            patch_nums=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
            tokenizer_checkpoint="",
            token_cache="",
            sharding="fsdp",
            mesh=dict(data=-1, fsdp=-1, tensor=1, max_fsdp=16),
            data=dict(
                source="array_record",
                options=dict(path="data/imagenet512"),
                image_size=512,
                channels=3,
                transform=dict(flip=False),
                num_workers=16,
                num_threads=4,
                prefetch=32,
            ),
            tokenizer=dict(vocab_size=4096, code_dim=32, phi_sharing=4, channels=160),
            model=dict(
                depth=DEPTH,
                width=64 * DEPTH,
                num_heads=DEPTH,
                num_classes=1000,
                shared_adaln=True,
                adaln_gamma_init=5e-6,
                drop_path_rate=0.1 * DEPTH / 24,
                remat="dots",
                scan_unroll=1,
                dtype="bfloat16",
            ),
            train=dict(
                num_steps=num_steps,
                batch_size=BATCH,
                microbatches=1,
                ema_decay=0.0,
                optimizer=dict(
                    learning_rate=8e-5,
                    schedule="lin0",
                    warmup_steps=num_steps // 50,
                    end_factor=0.01,
                    weight_decay=0.05,
                    weight_decay_end=0.08,
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
            evaluation=dict(
                likelihood=True,
                samples_per_class=4,
                max_classes=10,
                reconstructions=0,
                fid=dict(inception="", reference="", num_samples=5000, batch_size=256, every=50000),
            ),
        )
    )

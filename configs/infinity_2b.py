"""Infinity 2B (arXiv 2412.04431): pictures of 1024 px from texts, on a pod.

    python -m launch.convert_torch import --vae infinity_vae_d32reg.pth --output gs://BUCKET/vae \
        --patch_nums 1,2,4,6,8,12,16,20,24,32,40,48,64
    python -m launch.train --config configs/infinity_2b.py --workdir gs://BUCKET/infinity \
        --config.tokenizer_checkpoint=gs://BUCKET/vae \
        --config.model.conditioner.encoder=gs://BUCKET/flan-t5-xl

'' has the thirteen levels of 1024 px, '512' the first ten, '256' the first seven: train them one
after the other, each from the one before (config.train.initial_checkpoint). The text encoder is a
folder of google/flan-t5-xl as transformers saves it; it reads the captions in the step, cut over
the mesh as the transformer is. Data: tar files of captioned pictures (docs/data.md). To go on from
the published model, import it with --transformer too.

`python -m launch.compile_for_tpu --config configs/infinity_2b.py --topology v5e:16x16` plans a step
whose text features come with the batch, since no encoder is named. Rates and decay are the defaults
of FoundationVision/Infinity (arg_util.py, scripts/train.sh), which does not publish its batch and
its steps: those here are a choice. Not trained here.
"""

from ml_collections import ConfigDict

LEVELS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
#: Variant -> number of levels, batch size.
VARIANTS = {"": (13, 256), "512": (10, 1024), "256": (7, 4096)}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' (1024 px), '512' and '256'."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r} of infinity_2b; choose '', '512' or '256'.")
    count, batch = VARIANTS[variant]
    levels = LEVELS[:count]
    return ConfigDict(
        dict(
            seed=0,
            patch_nums=levels,
            tokenizer_checkpoint="",
            token_cache="",
            sharding="fsdp",
            frozen_sharding="fsdp",
            mesh=dict(data=-1, fsdp=-1, tensor=1, max_fsdp=64),
            data=dict(
                source="tar",
                options=dict(path="data/shards", files="{split}-*.tar", captions=True),
                image_size=16 * levels[-1],
                channels=3,
                transform=dict(flip=False),
                num_workers=16,
                num_threads=4,
                prefetch=32,
            ),
            tokenizer=dict(
                codec=dict(kind="bitwise", num_bits=32, flip_levels=13, flip_strength=0.3),
                channels=128,
                multipliers=(1, 2, 4, 4, 4),
                num_res_blocks=2,
                attention=False,
                decoder_attention=False,
                latent_kernel=1,
                dtype="bfloat16",
            ),
            model=dict(
                depth=32,
                width=2048,
                num_heads=16,
                num_classes=1,
                shared_adaln=True,
                adaln_gamma_init=5e-6,
                drop_path_rate=0.1,
                cross_attention=True,
                cross_norm="input",
                conditioner=dict(
                    kind="text_features", feature_dim=2048, max_length=512, encoder=""
                ),
                # Those of 1024 px, whatever the levels.
                positions=dict(kind="rotary_2d", grid=(64, 64), num_levels=15),
                head=dict(kind="bitwise"),
                remat="full",
                scan_unroll=1,
                dtype="bfloat16",
            ),
            train=dict(
                num_steps=100_000,
                batch_size=batch,
                microbatches=1,
                ema_decay=0.0,
                weights=dict(kind="sqrt_area"),
                optimizer=dict(
                    learning_rate=6e-4,
                    schedule="lin0",
                    warmup_steps=1000,
                    end_factor=1.0,
                    weight_decay=0.005,
                    b2=0.97,
                    clip_norm=5.0,
                ),
                progressive=dict(),
                log_every=100,
                save_every=1000,
                evaluate_every=5000,
                max_to_keep=3,
                profile_start=0,
                profile_steps=0,
                wandb_project="",
                initial_checkpoint="",
            ),
            sampling=dict(cfg=3.0, cfg_schedule="constant", temperature=0.5, top_p=0.97),
            evaluation=dict(likelihood=True, samples_per_class=0),
        )
    )

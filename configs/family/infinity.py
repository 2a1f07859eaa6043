"""Infinity (arXiv 2412.04431) for classes: bits instead of codes, and their correction.

    python -m launch.train --model tokenizer --config configs/family/infinity.py \
        --workdir runs/infinity/tokenizer
    python -m launch.cache_tokens --tokenizer runs/infinity/tokenizer \
        --output runs/infinity/tokens --crops 4
    python -m launch.train --config configs/family/infinity.py --workdir runs/infinity/transformer \
        --config.tokenizer_checkpoint=runs/infinity/tokenizer \
        --config.token_cache=runs/infinity/tokens

Variants: '' is the 5,000 digits on two CPU cores, 'smallest' the same in seconds, for tests. 'd16'
is ImageNet at 256 px with VAR's recipe: the transformer of configs/var_imagenet256.py:d16, 32 bits
for each token and the tokenizer recipe of configs/tokenizer_imagenet256.py. Its authors trained on
texts; nobody has trained it here.

Official flag -> key: noise_apply_layers, noise_apply_strength -> tokenizer.codec.flip_levels,
flip_strength; apply_spatial_patchify -> tokenizer.codec.patch; reweight_loss_by_scale ->
train.weights; rope2d_normalized_by_hw=2 -> model.positions; cfg, tau -> sampling.cfg + 1,
temperature. A flip strength is drawn for each example here, not for a whole batch. With flips a
token cache holds features in float16; without (flip_levels=0) packed bits, a sixth of the bytes.
"""

from ml_collections import ConfigDict

IMAGES = 1281167


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    if variant not in ("", "smallest", "d16"):
        raise ValueError(
            f"Unknown variant {variant!r} of infinity; choose '', 'smallest' or 'd16'."
        )
    if variant == "d16":
        return imagenet()
    config = digits()
    if variant == "smallest":
        config.tokenizer_train.update(num_steps=4, batch_size=16, log_every=2)
        config.tokenizer_train.optimizer.warmup_steps = 1
        config.train.update(num_steps=4, batch_size=16, log_every=2)
        config.train.optimizer.warmup_steps = 1
        config.tokenizer.update(channels=8)
        config.tokenizer.codec.num_bits = 6
        config.model.update(depth=1, width=64, num_heads=1)
    return config


def digits() -> ConfigDict:
    """As configs/mnist5k.py, with bits."""
    return ConfigDict(
        dict(
            seed=0,
            patch_nums=(1, 2, 4, 4),
            tokenizer_checkpoint="",
            token_cache="",
            sharding="replicated",
            mesh=dict(data=-1, fsdp=1, tensor=1),
            data=dict(
                source="mnist5k",
                options=dict(),
                image_size=32,
                channels=1,
                transform=dict(
                    resize="pad",
                    background=0,
                    affine=dict(rotation=10.0, scale=0.1, shift=1.0),
                ),
                num_threads=1,
            ),
            tokenizer=dict(
                codec=dict(kind="bitwise", num_bits=16, flip_levels=3, flip_strength=0.3),
                channels=64,
                multipliers=(1, 2),
                patch_size=4,
                num_res_blocks=1,
                attention=False,
                norm_groups=8,
            ),
            tokenizer_train=dict(
                num_steps=1500,
                batch_size=32,
                optimizer=dict(
                    learning_rate=1.6e-2,
                    schedule="cosine",
                    warmup_steps=100,
                    end_factor=0.02,
                    weight_decay=0.0,
                    b2=0.99,
                    clip_norm=1.0,
                ),
                l1_weight=0.2,
                l2_weight=1.0,
                vq_weight=0.25,
                log_every=100,
                save_every=500,
            ),
            model=dict(
                num_classes=10,
                depth=4,
                width=128,
                num_heads=2,
                adaln_gamma_init=1e-2,
                drop_path_rate=0.0,
                scan_unroll=4,
                positions=dict(kind="rotary_2d", num_levels=4),
                head="bitwise",
            ),
            train=dict(
                initial_checkpoint="",
                num_steps=4300,
                batch_size=16,
                optimizer=dict(
                    learning_rate=3.2e-2,
                    schedule="cosine",
                    warmup_steps=200,
                    end_factor=0.01,
                    clip_norm=2.0,
                ),
                weights="sqrt_area",
                log_every=500,
                save_every=1000,
            ),
            sampling=dict(cfg=1.5, cfg_schedule="constant", temperature=1.0, top_p=0.97),
        )
    )


def imagenet() -> ConfigDict:
    """ImageNet at 256 px, d16."""
    batch, epochs, tokenizer_epochs = 768, 200, 100
    num_steps = epochs * IMAGES // batch
    tokenizer_steps = tokenizer_epochs * IMAGES // batch
    # Learning rates are for 256 images.
    optimizer = dict(
        learning_rate=1e-4,
        schedule="cosine",
        warmup_steps=tokenizer_steps // 100,
        end_factor=0.3,
        weight_decay=0.005,
        b1=0.5,
        b2=0.9,
        clip_norm=10.0,
    )
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
            tokenizer=dict(
                codec=dict(kind="bitwise", num_bits=32, flip_levels=10, flip_strength=0.3),
                channels=160,
                dropout=0.05,
                dtype="bfloat16",
                remat=True,
            ),
            tokenizer_train=dict(
                num_steps=tokenizer_steps,
                batch_size=batch,
                ema_decay=0.9999,
                optimizer=optimizer,
                lpips_vgg="",
                lpips_linear="",
                adversarial_weight=0.4,
                adversarial_start=int(0.22 * tokenizer_steps),
                adversarial_ramp=int(0.02 * tokenizer_steps),
                augmentations=("color", "translation", "cutout"),
                discriminator=dict(channels=64, num_layers=3, norm="group", spectral=False),
                discriminator_optimizer=dict(optimizer, weight_decay=0.0005),
                log_every=100,
                save_every=2000,
                max_to_keep=3,
            ),
            model=dict(
                depth=16,
                width=1024,
                num_heads=16,
                num_classes=1000,
                adaln_gamma_init=1e-3,
                drop_path_rate=0.1 * 16 / 24,
                remat="dots",
                dtype="bfloat16",
                positions=dict(kind="rotary_2d", num_levels=10),
                head="bitwise",
            ),
            train=dict(
                num_steps=num_steps,
                batch_size=batch,
                optimizer=dict(
                    learning_rate=1e-4,
                    schedule="lin0",
                    warmup_steps=num_steps // 50,
                    end_factor=0.1,
                    weight_decay=0.05,
                    weight_decay_end=0.05,
                ),
                weights="sqrt_area",
                log_every=100,
                save_every=2000,
                max_to_keep=3,
                initial_checkpoint="",
            ),
            sampling=dict(cfg=1.5, cfg_schedule="constant", temperature=1.0, top_p=0.97),
        )
    )

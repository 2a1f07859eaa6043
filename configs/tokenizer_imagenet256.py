"""The multi-scale tokenizer on ImageNet (or any folder of images) at 256 px.

    python -m launch.train --model tokenizer --config configs/tokenizer_imagenet256.py \
        --workdir gs://BUCKET/tokenizer --config.tokenizer_train.lpips_vgg=vgg16.pth \
        --config.tokenizer_train.lpips_linear=lpips_vgg.pth

The architecture is the released one (108.9M parameters, stride 16, 4,096 codes of 32 channels).
Its authors published no recipe. This one takes the settings of the single-scale trainer they
point to (vaex: losses, learning rate, clipping, moving average, start of the adversary after 22%
of training) with a PatchGAN discriminator in place of the DINO one. It is a starting point that
nobody has trained to the end. lpips_vgg is torchvision's vgg16, lpips_linear the LPIPS release's
vgg.pth; without them the perceptual loss is off and images come out smoother.
"""

from ml_collections import ConfigDict

IMAGES, BATCH, EPOCHS = 1281167, 768, 100


def get_config() -> ConfigDict:
    """The one variant."""
    num_steps = EPOCHS * IMAGES // BATCH
    # Learning rates are for 256 images: 3e-4 at a batch of 768.
    optimizer = dict(
        learning_rate=1e-4,
        schedule="cosine",
        warmup_steps=num_steps // 100,
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
            sharding="replicated",
            mesh=dict(data=-1, fsdp=1, tensor=1),
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
                vocab_size=4096,
                code_dim=32,
                phi_sharing=4,
                phi_ratio=0.5,
                normalize_codes=False,
                beta=0.25,
                channels=160,
                multipliers=(1, 1, 2, 2, 4),
                num_res_blocks=2,
                attention=True,
                norm_groups=32,
                dropout=0.05,
                dtype="bfloat16",
                remat=True,
                # With dtype="float32": 'highest' gives the same tokens on every backend, in six
                # passes of a TPU's matrix unit; 'high' takes three, 'default' one.
                encoder_precision="highest",
            ),
            tokenizer_train=dict(
                num_steps=num_steps,
                batch_size=BATCH,
                microbatches=1,
                ema_decay=0.9999,
                optimizer=optimizer,
                l1_weight=0.2,
                l2_weight=1.0,
                perceptual_weight=1.0,
                vq_weight=1.0,
                lpips_vgg="",
                lpips_linear="",
                adversarial_weight=0.4,
                adversarial_start=int(0.22 * num_steps),
                adversarial_ramp=int(0.02 * num_steps),
                augmentations=("color", "translation", "cutout"),
                discriminator=dict(channels=64, num_layers=3, norm="group", spectral=False),
                discriminator_optimizer=dict(optimizer, weight_decay=0.0005),
                warmup_steps=1000,
                restart_every=200,
                restart_until=num_steps // 2,
                log_every=100,
                save_every=2000,
                evaluate_every=10000,
                max_to_keep=3,
                profile_start=0,
                profile_steps=0,
                wandb_project="",
            ),
            # Every evaluate_every steps, on the held-out images, from the moving average: PSNR,
            # a picture and, with the file of Inception weights that launch.evaluate takes, rFID.
            evaluation=dict(reconstructions=16, rfid=""),
        )
    )

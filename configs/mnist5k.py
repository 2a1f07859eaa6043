"""MNIST digits on two CPU cores, tokenizer and transformer, in minutes.

    bash launch/quickstart.sh

or step by step:

    python -m launch.train --model tokenizer --config configs/mnist5k.py \
        --workdir runs/mnist/tokenizer
    python -m launch.cache_tokens --tokenizer runs/mnist/tokenizer --output runs/mnist/tokens \
        --crops 4
    python -m launch.train --config configs/mnist5k.py --workdir runs/mnist/transformer \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

`configs/mnist5k.py:smallest` runs the same path in seconds, for tests; its results mean nothing.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smallest'."""
    if variant not in ("", "smallest"):
        raise ValueError(f"Unknown variant {variant!r} of mnist5k; choose '' or 'smallest'.")
    config = ConfigDict(
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
                vocab_size=1024,
                code_dim=16,
                phi_sharing=4,
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
                # Without an adversary strokes come out soft, which the classifier sees.
                adversarial_weight=0.3,
                adversarial_start=750,
                adversarial_ramp=100,
                discriminator=dict(channels=16, num_layers=1, norm="none"),
                discriminator_optimizer=dict(
                    learning_rate=3.2e-3,
                    schedule="cosine",
                    warmup_steps=20,
                    weight_decay=0.0,
                    b1=0.5,
                    b2=0.9,
                    clip_norm=0.0,
                ),
                warmup_steps=120,
                restart_every=40,
                restart_until=1100,
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
                log_every=500,
                save_every=1000,
            ),
            # Warm where a digit takes its shape, cool where its strokes are drawn.
            sampling=dict(cfg=1.5, top_k=0, top_p=0.98, temperature=(1.6, 1.0, 0.8, 0.7)),
        )
    )
    if variant == "smallest":
        config.tokenizer_train.update(num_steps=4, batch_size=16, warmup_steps=1, log_every=2)
        config.tokenizer_train.optimizer.warmup_steps = 1
        config.tokenizer_train.discriminator_optimizer.warmup_steps = 1
        config.train.update(num_steps=4, batch_size=16, log_every=2)
        config.train.optimizer.warmup_steps = 1
        config.tokenizer.update(vocab_size=32, channels=8)
        config.model.update(depth=1, width=64, num_heads=1)
    return config

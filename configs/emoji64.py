"""OpenMoji pictograms at 64 px in colour: tokenizer and transformer on two CPU cores.

    python -m launch.train --model tokenizer --config configs/emoji64.py \
        --workdir runs/emoji/tokenizer
    python -m launch.cache_tokens --tokenizer runs/emoji/tokenizer --output runs/emoji/tokens \
        --crops 4
    python -m launch.train --config configs/emoji64.py --workdir runs/emoji/transformer \
        --config.tokenizer_checkpoint=runs/emoji/tokenizer --config.token_cache=runs/emoji/tokens

About 3,600 pictures to train and 170 held out; classes are the Unicode groups. The pictures are
OpenMoji's, CC BY-SA 4.0: say so wherever you show samples or reconstructions.
The tokenizer reaches 19.5 dB on held-out pictures in 36 minutes on one core; the transformer has
not been trained yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The one variant."""
    return ConfigDict(
        dict(
            seed=0,
            patch_nums=(1, 2, 3, 4, 6, 8),
            tokenizer_checkpoint="",
            token_cache="",
            sharding="replicated",
            mesh=dict(data=-1, fsdp=1, tensor=1),
            data=dict(
                source="emoji",
                options=dict(size=64),
                image_size=64,
                channels=3,
                transform=dict(
                    resize="pad",
                    background=255,
                    affine=dict(rotation=6.0, scale=0.05, shift=2.0),
                ),
                num_threads=1,
            ),
            tokenizer=dict(
                vocab_size=512,
                code_dim=16,
                phi_sharing=4,
                channels=64,
                multipliers=(1, 2),
                patch_size=4,
                num_res_blocks=1,
                attention=True,
                norm_groups=8,
            ),
            tokenizer_train=dict(
                num_steps=2600,
                batch_size=32,
                ema_decay=0.999,
                optimizer=dict(
                    learning_rate=8e-3,
                    schedule="cosine",
                    warmup_steps=100,
                    end_factor=0.02,
                    weight_decay=0.0,
                    b2=0.99,
                    clip_norm=1.0,
                ),
                l1_weight=0.5,
                l2_weight=1.0,
                vq_weight=0.25,
                adversarial_weight=0.0,
                warmup_steps=250,
                restart_every=40,
                restart_until=1900,
                log_every=50,
                save_every=500,
                evaluate_every=1000,
            ),
            model=dict(
                num_classes=0,
                depth=6,
                width=192,
                num_heads=3,
                adaln_gamma_init=1e-2,
                drop_path_rate=0.05,
                scan_unroll=6,
            ),
            train=dict(
                initial_checkpoint="",
                num_steps=6000,
                batch_size=16,
                ema_decay=0.999,
                optimizer=dict(
                    learning_rate=1.6e-2,
                    schedule="cosine",
                    warmup_steps=200,
                    end_factor=0.01,
                ),
                log_every=100,
                save_every=500,
                evaluate_every=2000,
            ),
            sampling=dict(cfg=1.5, top_k=0, top_p=0.95),
        )
    )

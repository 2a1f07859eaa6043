"""A config of a tiny model of text features, for tests: `tests/text_features_config.py:ROOT`.

ROOT holds a text encoder (t5), a model with its tokenizer (model) and tokens (tokens).
"""

import pathlib
import runpy

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def get_config(root):
    config = runpy.run_path(str(CONFIGS / "family/text.py"))["get_config"]("smallest")
    with config.unlocked():
        config.data.caption_length = 0
        config.model.update(num_heads=2, cross_norm="input")
        config.model.positions = dict(kind="rotary_2d", grid=(8, 8), num_levels=15)
        config.model.conditioner = dict(
            kind="text_features",
            feature_dim=16,
            max_length=5,
            pool_head_dim=8,
            encoder=f"{root}/t5",
        )
        config.tokenizer_checkpoint = f"{root}/model/tokenizer"
        config.token_cache = f"{root}/tokens"
        config.train.update(num_steps=3, batch_size=8, log_every=1)
        config.evaluation = dict(prompts=("a red bird", ""), samples_per_class=1, likelihood=True)
        config.sharding = config.frozen_sharding = "fsdp_tensor"
    return config

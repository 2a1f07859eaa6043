"""VAR-d36 with shared adaptive layer norm on ImageNet at 512 px (d36-s): the published recipe.

    python -m launch.train --config configs/var_imagenet512.py --workdir gs://BUCKET/var-d36 \
        --config.tokenizer_checkpoint=gs://BUCKET/tokenizer --config.token_cache=gs://BUCKET/tokens

As configs/var_imagenet256.py, which explains data, hardware, evaluation and the names of the
official flags. remat dots costs least on 256 chips and more; on 64 chips of v4, v5e or v6e give
--config.model.remat=full (docs/topologies.md).
Published result: FID 2.63. Not trained here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

IMAGES, BATCH, EPOCHS, DEPTH = 1281167, 768, 350, 36


def get_config() -> ConfigDict:
    """The one variant: configs/var_imagenet256.py:d30 but for what stands here."""
    num_steps = EPOCHS * IMAGES // BATCH
    base = pathlib.Path(__file__).with_name("var_imagenet256.py")
    config = runpy.run_path(str(base))["get_config"]("d30")
    config.patch_nums = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    config.data.image_size = 512
    config.data.options.path = "data/imagenet512"
    config.model.update(
        depth=DEPTH,
        width=64 * DEPTH,
        num_heads=DEPTH,
        shared_adaln=True,
        adaln_gamma_init=5e-6,
        drop_path_rate=0.1 * DEPTH / 24,
    )
    config.train.update(num_steps=num_steps, batch_size=BATCH)
    config.train.optimizer.update(
        learning_rate=8e-5, warmup_steps=num_steps // 50, end_factor=0.01, weight_decay_end=0.08
    )
    return config

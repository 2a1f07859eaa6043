"""HMAR's masked stage (arXiv 2506.04421): tokens of a level drawn again, given the confident ones.

    python -m launch.train --config configs/family/hmar_masked.py --workdir runs/hmar/masked \
        --config.train.initial_checkpoint=runs/hmar/transformer \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

The run starts from a transformer of configs/family/hmar.py, which stays as it is: a second copy of
its last blocks, its last norm and its head learns to fill in masked tokens. The checkpoint holds
both. How many tokens each pass of a level settles can be changed without training:

    python -m launch.sample --checkpoint runs/hmar/masked --labels 3,1 --output refined.png \
        --sampling '{"decoder": {"kind": "masked", "counts": [[1], [1, 3], [2, 4, 10]]}}'

'' and 'smallest' are the digits; d16 to d30 are the paper's: 8 blocks, 100 epochs, and passes for
256 px that cost four more than VAR's ten. Rate and batch are those of the next-scale stage, which
the paper does not say otherwise. Not trained here on ImageNet.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

#: Own blocks of the masked branch.
BLOCKS = {"": 2, "smallest": 1, "d16": 8, "d20": 8, "d24": 8, "d30": 8}
IMAGES, EPOCHS = 1281167, 100


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', smallest, d16, d20, d24, d30."""
    if variant not in BLOCKS:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(BLOCKS)}.")
    path = pathlib.Path(__file__).with_name("hmar.py")
    config = runpy.run_path(str(path))["get_config"](variant)
    published = variant.startswith("d")
    counts = ((1,), (1, 3), (1, 1, 2, 5)) if published else ((1,), (1, 3), (5, 11))
    with config.unlocked():
        del config.train.weights
        config.model.masked_blocks = BLOCKS[variant]
        config.train.objective = dict(kind="masked")
        config.sampling.decoder = dict(kind="masked", counts=counts)
    # Of blocks that do not train nothing is dropped.
    config.model.drop_path_rate = 0.0
    if published:
        steps = EPOCHS * IMAGES // config.train.batch_size
        config.train.num_steps = steps
        config.train.optimizer.warmup_steps = steps // 50
    elif not variant:
        config.train.num_steps = 1500
    return config

"""Text to image: captions through a byte-level encoder that trains along.

    python -m launch.train --model tokenizer --config configs/family/text.py \
        --workdir runs/emoji/tokenizer
    python -m launch.cache_tokens --tokenizer runs/emoji/tokenizer --output runs/emoji/tokens \
        --crops 4
    python -m launch.train --config configs/family/text.py --workdir runs/text/transformer \
        --config.tokenizer_checkpoint=runs/emoji/tokenizer --config.token_cache=runs/emoji/tokens
    python -m launch.sample --checkpoint runs/text/transformer --prompts prompts.txt \
        --output drawn.png

'' are OpenMoji's pictograms with their Unicode names, skin tones and groups as captions, with the
tokenizer of configs/emoji64.py; the transformer has not been trained to the end yet. 'smallest'
takes seconds and means nothing. The pictures are OpenMoji's, CC BY-SA 4.0: say so wherever you show
samples.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

#: What the picture of samples in training shows.
PROMPTS = (
    "woman firefighter, dark skin tone",
    "grinning face",
    "red apple",
    "blue heart",
    "black cat",
    "japan flag",
    "flags",
    "",
)


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smallest'."""
    if variant not in ("", "smallest"):
        raise ValueError(f"Unknown variant {variant!r} of text; choose '' or 'smallest'.")
    path = pathlib.Path(__file__).parents[1] / "emoji64.py"
    config = runpy.run_path(str(path))["get_config"]()
    # Longer than any caption of the emoji.
    config.data.caption_length = 80
    config.model.conditioner = dict(kind="caption", depth=3, num_heads=3)
    config.model.cross_attention = True
    config.evaluation = dict(prompts=PROMPTS)
    if variant == "smallest":
        config.patch_nums = (1, 2, 4)
        config.data.options.size = 32
        config.data.update(image_size=32, caption_length=16)
        config.tokenizer.update(vocab_size=32, channels=8)
        config.tokenizer_train.update(num_steps=4, batch_size=16, warmup_steps=1, log_every=2)
        config.tokenizer_train.optimizer.warmup_steps = 1
        config.model.update(depth=1, width=64, num_heads=1)
        config.model.conditioner.update(depth=1, num_heads=4)
        config.train.update(num_steps=4, batch_size=16, log_every=2)
        config.train.optimizer.warmup_steps = 1
        config.evaluation.prompts = PROMPTS[:2]
    return config

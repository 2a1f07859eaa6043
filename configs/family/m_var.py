"""M-VAR (arXiv 2411.10433): attention within a level, Mamba-2 from level to level.

    python -m launch.train --config configs/family/m_var.py --workdir runs/m_var/transformer \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

The tokenizer is VAR's: '' and 'smallest' take that of configs/mnist5k.py, the others that of
configs/var_imagenet256.py, whose recipes they follow as the authors did. A block has a third
branch, and 1.5 times the parameters of VAR's. Generation carries a state of one size from level to
level, in place of the keys and values of all tokens so far.

Its code scales the gates of attention and Mamba-2 by adaln_gamma_init but the MLP's by adaln_init;
here all three gates are scaled alike. Published (256 px, 50,000 samples): FID 3.07 (d16), 2.41
(d20), 1.93 (d24). Not trained here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASES = {
    "": ("mnist5k", ""),
    "smallest": ("mnist5k", "smallest"),
    **{size: ("var_imagenet256", size) for size in ("d16", "d20", "d24", "d30")},
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', smallest, d16, d20, d24, d30."""
    if variant not in BASES:
        raise ValueError(f"Unknown variant {variant!r} of m_var; choose one of {list(BASES)}.")
    name, of = BASES[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](of)
    mixer = dict(kind="mamba2")
    if variant == "smallest":
        mixer |= dict(state_dim=8, head_dim=16, chunk=8)
    with config.unlocked():
        config.model.context = dict(kind="own_scale")
        config.model.mixer = mixer
    return config

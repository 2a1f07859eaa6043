"""Fewer flow steps for later levels (DiSA, arXiv 2505.20297), with the network of flowar.py.

    python -m launch.sample --checkpoint runs/flowar/transformer --labels 3,1 --output digits.png \
        --sampling '{"num_steps": 20, "last_num_steps": 8, "annealing": "linear"}'

What is drawn later is known better, so fewer steps lead to it. Nothing trains otherwise, and the
head of diffusion.py takes the same keys, with latest_time=950 as officially. 'd16' has the
published numbers for FlowAR, 50 steps at the first level and 15 at the last.

'' is the digits on a CPU, 'smallest' takes seconds and means nothing, 'd16' is for ImageNet at
256 px.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    path = pathlib.Path(__file__).parent / "flowar.py"
    config = runpy.run_path(str(path))["get_config"](variant)
    first, last = {"": (20, 8), "smallest": (4, 2), "d16": (50, 15)}[variant]
    config.sampling.update(num_steps=first, last_num_steps=last, annealing="linear")
    return config

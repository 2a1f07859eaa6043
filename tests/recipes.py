"""The configs in configs/, by name."""

import pathlib
import runpy

from ml_collections import ConfigDict

FOLDER = pathlib.Path(__file__).parents[1] / "configs"

#: Those that train a transformer, with their variants.
TRANSFORMERS = [
    *(("mnist5k", variant) for variant in ("", "smallest")),
    ("emoji64",),
    *(("var_imagenet256", variant) for variant in ("d16", "d20", "d24", "d30")),
    ("var_imagenet512",),
    *(("infinity_2b", variant) for variant in ("", "512", "256")),
    *(("family/hmar", variant) for variant in ("", "smallest", "d16")),
    *(("family/mvar", variant) for variant in ("", "smallest", "d16", "d24_tuned")),
    *(("family/m_var", variant) for variant in ("", "smallest", "d16")),
    *(("family/flexvar", variant) for variant in ("", "smallest", "d16")),
    *(("family/subject", variant) for variant in ("", "d16")),
    *(("family/nfig", variant) for variant in ("", "smallest", "d20")),
]


def load(name: str, *variant: str) -> ConfigDict:
    return runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"](*variant)

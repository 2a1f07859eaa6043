"""The weights of the FID Inception: from the published PyTorch file to ours.

The file is read without PyTorch; batch normalisation is folded into the convolutions in
float64. The result can be kept as an npz with the hash of the file it came from.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import struct, traverse_util
from jaxtyping import PyTree

from var_jax import paths
from var_jax.convert.torch_file import open_state
from var_jax.evaluation.array_files import array_names, read_array
from var_jax.evaluation.inception.network import IMAGE_SIZE, Inception

PUBLISHED_SHA256 = "6726825d"  # first digits, as in the published file names
PUBLISHED_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
BATCH_NORM_EPSILON = 1e-3
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


@struct.dataclass
class InceptionWeights:
    """Parameters of `Inception` and where they came from.

    Attributes:
      params: the tree for `Inception().apply({'params': params}, ...)`, float32.
      sha256: hash of the file that the weights came from, 64 hexadecimal digits.
      published: whether that is the published file, whose scores can be compared with papers.
    """

    params: PyTree
    sha256: str = struct.field(pytree_node=False)

    @property
    def published(self) -> bool:
        return self.sha256.startswith(PUBLISHED_SHA256)


def file_sha256(path: str) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def load_inception(
    path: str, *, sha256: str | None = None, cache: str | None = None
) -> InceptionWeights:
    """Reads the weights of the FID Inception.

    Args:
      path: local or gs:// path of the pytorch-fid or torch-fidelity file, a safetensors file
        with the same names, or an npz written by `save_inception`.
      sha256: the hash (or its first digits, at least 8) that the file must have. Where it is
        not given and the file is named '...-<8 or more hexadecimal digits>.pth', as the
        published ones are, those digits.
      cache: an npz to keep the converted weights in; used instead of converting again where it
        came from this very file.

    Returns:
      InceptionWeights.

    Raises:
      FileNotFoundError, ValueError: one sentence.
    """
    file_path = epath.Path(path)
    if not file_path.exists() or file_path.is_dir():
        raise FileNotFoundError(
            f"There are no Inception weights at {path}; download {PUBLISHED_URL} and give its path."
        )
    named = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", file_path.name)
    if sha256 is None and named:
        sha256 = named.group(1)
    if file_path.suffix == ".npz":
        weights = _load_npz(path)
    else:
        actual = file_sha256(path)
        weights = _load_cache(cache) if cache and epath.Path(cache).exists() else None
        if weights is None or weights.sha256 != actual:
            weights = InceptionWeights(convert_inception(path), actual)
            if cache:
                save_inception(cache, weights)
    if sha256 is not None and not weights.sha256.startswith(sha256.lower()):
        raise ValueError(
            f"The Inception weights {path} have the SHA-256 {weights.sha256}, which does not begin "
            f"with {sha256}; download {PUBLISHED_URL} again, or rename the file if it is meant to "
            "differ."
        )
    return weights


def convert_inception(path: str) -> dict[str, Any]:
    """Folds and transposes the PyTorch file's arrays into the tree of `Inception`.

    Raises:
      ValueError: the names or shapes are not the FID Inception's.
    """
    expected = traverse_util.flatten_dict(abstract_params())
    params: dict[tuple[str, ...], np.ndarray] = {}
    with open_state(path, legacy=True) as state:
        missing = sorted(name for name in _torch_names(expected) if name not in state)
        if missing:
            raise ValueError(
                f"{path} is not a file of the FID Inception: it lacks {len(missing)} names, "
                f"among them {', '.join(missing[:3])}."
            )
        params[("fc_kernel",)] = state["fc.weight"].read().T
        params[("fc_bias",)] = state["fc.bias"].read()
        for key in expected:
            if key[-1] != "kernel":
                continue
            scope = ".".join(key[:-1])
            kernel = state[f"{scope}.conv.weight"].read().astype(np.float64)
            gain, shift, mean, variance = (
                state[f"{scope}.bn.{name}"].read().astype(np.float64) for name in _BATCH_NORM
            )
            gain = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
            folded = kernel.transpose(2, 3, 1, 0) * gain  # [out, in, h, w] -> [h, w, in, out]
            params[key] = folded.astype(np.float32)
            params[(*key[:-1], "bias")] = (shift - mean * gain).astype(np.float32)
    _check_shapes(params, expected, path)
    return traverse_util.unflatten_dict(params)


def save_inception(path: str, weights: InceptionWeights) -> None:
    """Writes converted weights as an npz that `load_inception` reads."""
    arrays = {
        "/".join(key): np.asarray(value)
        for key, value in traverse_util.flatten_dict(weights.params).items()
    }
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with paths.replacing(path) as file:
        np.savez(file, __sha256__=np.array(weights.sha256), **arrays)


def _load_cache(path: str) -> InceptionWeights | None:
    """None for a damaged file, which is written anew."""
    try:
        return _load_npz(path)
    except ValueError as error:
        logging.warning("%s They are converted again.", error)
        return None


def _load_npz(path: str) -> InceptionWeights:
    try:
        arrays = {name: read_array(path, name) for name in array_names(path)}
        sha256 = str(arrays.pop("__sha256__"))
        params = {tuple(name.split("/")): array for name, array in arrays.items()}
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is not an npz of converted Inception weights ({error}); give the PyTorch file."
        ) from error
    _check_shapes(params, traverse_util.flatten_dict(abstract_params()), path)
    return InceptionWeights(traverse_util.unflatten_dict(params), sha256)


def abstract_params() -> PyTree:
    """Shapes and types of `InceptionWeights.params`."""
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.uint8)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]


def _torch_names(expected: dict[tuple[str, ...], Any]) -> list[str]:
    names = ["fc.weight", "fc.bias"]
    for key in expected:
        if key[-1] == "kernel":
            scope = ".".join(key[:-1])
            names += [f"{scope}.conv.weight", *(f"{scope}.bn.{name}" for name in _BATCH_NORM)]
    return names


def _check_shapes(params: dict, expected: dict, path: str) -> None:
    for key, value in expected.items():
        found = params[key].shape if key in params else None
        if found != value.shape:
            raise ValueError(
                f"{path} is not a file of the FID Inception: {'/'.join(key)} has the shape {found} "
                f"where {value.shape} is due."
            )

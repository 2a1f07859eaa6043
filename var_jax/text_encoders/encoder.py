"""A text encoder as models ask it: texts in, vectors of their tokens out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float, Int

from var_jax.data.captions import clean
from var_jax.settings import Changeable
from var_jax.text_encoders import t5
from var_jax.transformer.text_features import TextFeatures

_TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class T5Encoder:
    """The encoder in a folder, which is read when it is first asked, and kept.

    Each text is encoded for itself, so that what it becomes does not depend on the others. On
    accelerators the encoder computes in bfloat16, on CPUs in float32.

    Attributes:
      folder: see `t5.read`; with tokenizer.json beside the weights.
    """

    folder: str

    def __call__(
        self, texts: Sequence[str], max_length: int
    ) -> tuple[Float[np.ndarray, "n T F"], Int[np.ndarray, " n"]]:
        """See `TextEncoder`; of texts that are cut a warning says so."""
        tokenize, settings, params = _loaded(self.folder)
        rows: list[np.ndarray] = []
        known: dict[str, np.ndarray] = {}
        for text in texts:
            text = clean(text, f"The prompt {text!r}")
            if text not in known:
                ids, count = tokenize(text, max_length)
                if count > len(ids):
                    logging.warning(
                        "The prompt %r has %d tokens, of which this model reads %d.",
                        text,
                        count,
                        len(ids),
                    )
                known[text] = _encoded(settings, params, ids)
            rows.append(known[text])
        features = np.zeros((len(rows), max_length, params["embedding"].shape[1]), np.float32)
        for place, row in zip(features, rows, strict=True):
            place[: len(row)] = row
        return features, np.array([len(row) for row in rows], np.int32)


def text_features(
    width: int,
    feature_dim: int,
    max_length: int = 512,
    drop_rate: float = 0.1,
    pool_head_dim: int = 128,
    encoder: Changeable[str] = "",
    dtype: jnp.dtype = jnp.float32,
) -> TextFeatures:
    """The conditioner of a config.

    Args:
      width, feature_dim, max_length, drop_rate, pool_head_dim, dtype: see `TextFeatures`.
      encoder: folder of a T5 encoder, see `T5Encoder`; '' is none.
    """
    return TextFeatures(
        width,
        feature_dim,
        max_length,
        drop_rate,
        pool_head_dim,
        T5Encoder(encoder) if encoder else None,
        dtype,
    )


def _encoded(settings: t5.T5Settings, params: dict[str, Any], ids: list[int]) -> np.ndarray:
    # Lengths are powers of two, so that few programs are compiled.
    length = max(8, 1 << (len(ids) - 1).bit_length())
    padded = np.zeros((1, length), np.int32)
    padded[0, : len(ids)] = ids
    found = t5.encode(settings, params, padded, np.arange(length)[None] < len(ids))
    return np.asarray(found)[0, : len(ids)]


@functools.cache
def _loaded(
    folder: str,
) -> tuple[Callable[[str, int], tuple[list[int], int]], t5.T5Settings, dict[str, Any]]:
    """The tokenizer and the encoder, its parameters on the first device of this process."""
    tokenize = _tokenizer(folder)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    logging.info("Reading the text encoder in %s.", folder)
    settings, params = t5.read(folder, dtype)
    return tokenize, settings, jax.device_put(params, jax.local_devices()[0])


def _tokenizer(folder: str) -> Callable[[str, int], tuple[list[int], int]]:
    """From a text and the most tokens there may be, the tokens, and how many there would be."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(
            "A T5 encoder needs the package tokenizers: pip install 'var_jax[text]'."
        ) from error
    path = epath.Path(folder) / _TOKENIZER
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give the folder of a text encoder with its {_TOKENIZER}, such "
            "as a download of google/flan-t5-xl."
        )
    try:
        made = Tokenizer.from_str(path.read_text())
    except Exception as error:  # The library raises bare exceptions.
        raise ValueError(f"{path} is damaged ({error}); copy it again.") from error
    made.no_padding()

    def tokenize(text: str, max_length: int) -> tuple[list[int], int]:
        made.no_truncation()
        count = len(made.encode(text).ids)
        made.enable_truncation(max_length)
        return made.encode(text).ids, count

    return tokenize

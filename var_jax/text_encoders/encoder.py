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
    """The encoder in a folder, which is read when it is first needed.

    Asked for texts it encodes each for itself, so that what one becomes does not depend on the
    others; on accelerators in bfloat16, on CPUs in float32.

    Attributes:
      folder: see `t5.read`; with tokenizer.json beside the weights.
    """

    folder: str

    def __call__(
        self, texts: Sequence[str], max_length: int
    ) -> tuple[Float[np.ndarray, "n T F"], Int[np.ndarray, " n"]]:
        """See `TextEncoder`; of texts that are cut a warning says so."""
        settings = _settings(self.folder)
        features = np.zeros((len(texts), max_length, settings.width), np.float32)
        lengths = np.zeros(len(texts), np.int32)
        if not texts:
            return features, lengths
        tokenize, known = tokens_of(self.folder), {}
        # On a device while they are needed, no longer: the model itself fills what there is.
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        params = jax.device_put(_params(self.folder, dtype), jax.local_devices()[0])
        for i, text in enumerate(texts):
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
            lengths[i] = len(known[text])
            features[i, : lengths[i]] = known[text]
        return features, lengths

    def init(self, key: jax.Array, dtype: jnp.dtype) -> Any:
        """See `TextEncoder`."""
        return t5.init(_settings(self.folder), key, dtype)

    def load(self, dtype: jnp.dtype) -> Any:
        """See `TextEncoder`."""
        return _params(self.folder, dtype)

    def encode(
        self, params: Any, ids: Int[jax.Array, "B T"], lengths: Int[jax.Array, " B"]
    ) -> Float[jax.Array, "B T F"]:
        """See `TextEncoder`."""
        there = jnp.arange(ids.shape[1]) < lengths[:, None]
        return t5.encode(_settings(self.folder), params, ids, there)


@dataclasses.dataclass(frozen=True)
class WrittenTokens:
    """From a caption to what a batch holds of it for `TextFeatures`.

    Attributes:
      folder: of the encoder.
      max_length: T; what is longer is cut.
    """

    folder: str
    max_length: int

    def __call__(self, text: str) -> dict[str, np.ndarray]:
        ids, _ = tokens_of(self.folder)(text, self.max_length)
        row = np.zeros(self.max_length, np.int32)
        row[: len(ids)] = ids
        return {"text_ids": row, "text_length": np.array(len(ids), np.int32)}


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
def _settings(folder: str) -> t5.T5Settings:
    return t5.read_settings(folder)


@functools.cache
def _params(folder: str, dtype: Any) -> dict[str, Any]:
    """On the host."""
    logging.info("Reading the text encoder in %s.", folder)
    return t5.read(folder, dtype)[1]


@functools.cache
def tokens_of(folder: str) -> Callable[[str, int], tuple[list[int], int]]:
    """From a text and the most tokens there may be, the tokens, and how many there would be.

    Raises:
      ImportError: the package tokenizers is not installed.
      FileNotFoundError, ValueError: no tokenizer in the folder, or a damaged one.
    """
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
    made.no_truncation()

    def tokenize(text: str, max_length: int) -> tuple[list[int], int]:
        ids = made.encode(text).ids
        if len(ids) <= max_length:
            return ids, len(ids)
        # The last one ends a text.
        return [*ids[: max_length - 1], ids[-1]], len(ids)

    return tokenize

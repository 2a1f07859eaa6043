"""The encoder of T5 (arXiv 1910.10683), T5 1.1 and Flan-T5, as Hugging Face's `transformers` names
its parts.

What a text becomes does not depend on how far it is padded, nor on other texts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from var_jax.convert.mapping import flatten
from var_jax.convert.torch_file import open_state

_LAYER = "encoder.block.{}.layer"
#: Ours -> theirs, of a block; matrices there are [out, in].
_BLOCK = {
    **{x: f"{_LAYER}.0.SelfAttention.{x}.weight" for x in "qkvo"},
    "attention_norm": f"{_LAYER}.0.layer_norm.weight",
    "mlp_norm": f"{_LAYER}.1.layer_norm.weight",
    "down": f"{_LAYER}.1.DenseReluDense.wo.weight",
}
_GATED = {
    "gate": f"{_LAYER}.1.DenseReluDense.wi_0.weight",
    "up": f"{_LAYER}.1.DenseReluDense.wi_1.weight",
}
_PLAIN = {"up": f"{_LAYER}.1.DenseReluDense.wi.weight"}
_WEIGHTS = ("model.safetensors.index.json", "model.safetensors")


@dataclasses.dataclass(frozen=True)
class T5Settings:
    """What the encoder's config.json says.

    Attributes:
      vocab_size: rows of the embedding.
      width: of the model, F.
      hidden: width of the middle of the MLPs.
      num_heads, head_dim: of the attention, whose width need not be that of the model.
      depth: number of blocks.
      num_buckets, max_distance: of relative positions; what is farther counts as max_distance.
      gated: MLPs are GELU(gate) * up (T5 1.1); else ReLU(up).
    """

    vocab_size: int
    width: int
    hidden: int
    num_heads: int
    head_dim: int
    depth: int
    num_buckets: int = 32
    max_distance: int = 128
    gated: bool = True


def read_settings(folder: epath.PathLike) -> T5Settings:
    """What the config.json in a folder says.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is of another kind of model.
    """
    config = epath.Path(folder) / "config.json"
    if not config.exists():
        raise FileNotFoundError(
            f"{config} does not exist; give the folder of a text encoder, such as a download of "
            "google/flan-t5-xl."
        )
    return _settings(config)


def init(settings: T5Settings, key: jax.Array, dtype: jnp.dtype) -> dict[str, Any]:
    """Random parameters in the boxes of their logical axis names: for their shapes."""
    width, inner = settings.width, settings.num_heads * settings.head_dim
    into, out = ("embed", "heads"), ("heads", "embed")
    shapes: dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]] = {
        **{x: ((width, inner), into) for x in "qkv"},
        "o": ((inner, width), out),
        **{x: ((width, settings.hidden), ("embed", "mlp")) for x in _mlp(settings)},
        "down": ((settings.hidden, width), ("mlp", "embed")),
        "attention_norm": ((width,), ("embed",)),
        "mlp_norm": ((width,), ("embed",)),
    }

    def made(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Any:
        return nn.Partitioned(jax.random.normal(key, shape, dtype), axes)

    depth = settings.depth
    return {
        "embedding": made((settings.vocab_size, width), ("vocab", "embed")),
        "relative_position": made((settings.num_buckets, settings.num_heads), (None, "heads")),
        "blocks": {k: made((depth, *s), ("layers", *a)) for k, (s, a) in shapes.items()},
        "final_norm": made((width,), ("embed",)),
    }


def _mlp(settings: T5Settings) -> dict[str, str]:
    return _GATED if settings.gated else _PLAIN


def read(folder: epath.PathLike, dtype: jnp.dtype) -> tuple[T5Settings, dict[str, Any]]:
    """Settings and parameters of a folder as `transformers` saves it.

    Args:
      folder: local or gs://; with config.json, and model.safetensors or another file of weights, in
        one or several parts. A decoder in it is not read.
      dtype: of the parameters.

    Raises:
      FileNotFoundError: no such folder or file.
      ValueError: another kind of model, or a file that is damaged or does not fit its config.
    """
    root, settings = epath.Path(folder), read_settings(folder)
    known = (root / name for name in _WEIGHTS)
    with open_state(str(next((p for p in known if p.exists()), root))) as state:
        tensors = {k: t for group in state.groups().values() for k, t in group.items()}

        def tensor(name: str) -> np.ndarray:
            if name not in tensors:
                raise ValueError(f"{root} has no {name}, so its weights are of no T5 encoder.")
            return np.asarray(tensors[name].read()).astype(dtype)

        def stacked(name: str) -> np.ndarray:
            found = np.stack([tensor(name.format(i)) for i in range(settings.depth)])
            return found.swapaxes(1, 2) if found.ndim == 3 else found

        names = _BLOCK | _mlp(settings)
        shared = "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight"
        position = f"{_LAYER.format(0)}.0.SelfAttention.relative_attention_bias.weight"
        params = {
            "embedding": tensor(shared),
            "relative_position": tensor(position),
            "blocks": {ours: stacked(theirs) for ours, theirs in names.items()},
            "final_norm": tensor("encoder.final_layer_norm.weight"),
        }
    wanted = jax.eval_shape(functools.partial(init, settings, dtype=dtype), jax.random.key(0))
    found = flatten(params)
    for name, leaf in flatten(nn.unbox(wanted)).items():
        if found[name].shape != leaf.shape:
            raise ValueError(
                f"The weights in {root} do not fit its config.json: {name} is "
                f"{list(found[name].shape)}, not {list(leaf.shape)}."
            )
    return settings, params


def _settings(path: epath.Path) -> T5Settings:
    try:
        found = json.loads(path.read_text())
        if found["model_type"] != "t5":
            raise ValueError(f"it is of a {found['model_type']!r}")
        activation = found.get("feed_forward_proj", "relu")
        if activation not in ("relu", "gated-gelu"):
            raise ValueError(f"its MLPs are {activation!r}")
        if found.get("layer_norm_epsilon", 1e-6) != 1e-6:
            raise ValueError(f"its norms add {found['layer_norm_epsilon']}, not 1e-6")
        return T5Settings(
            found["vocab_size"],
            found["d_model"],
            found["d_ff"],
            found["num_heads"],
            found["d_kv"],
            found["num_layers"],
            found.get("relative_attention_num_buckets", 32),
            found.get("relative_attention_max_distance", 128),
            activation == "gated-gelu",
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} describes no T5 that is read here: {error}.") from None


@functools.partial(jax.jit, static_argnums=0)
def encode(
    settings: T5Settings,
    params: dict[str, Any],
    ids: Int[jax.Array, "B T"],
    there: Bool[jax.Array, "B T"],
) -> Float[jax.Array, "B T F"]:
    """The vectors of the last layer, float32; those of tokens that are not there mean nothing.

    Norms, logits and softmax are float32, the rest has the type of the parameters.

    Args:
      ids: of tokens.
      there: which of them are; one at least.
    """
    dtype = params["embedding"].dtype
    x = jnp.take(params["embedding"], ids, axis=0)
    heads = (*ids.shape, settings.num_heads, settings.head_dim)
    bias = jnp.take(params["relative_position"], _buckets(settings, ids.shape[1]), axis=0)
    bias = bias.astype(jnp.float32).transpose(2, 0, 1)

    def block(x: jax.Array, p: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        y = _norm(x, p["attention_norm"]).astype(dtype)
        q, k, v = ((y @ p[name]).reshape(heads) for name in "qkv")
        logits = jnp.einsum("bqnh,bknh->bnqk", q, k, preferred_element_type=jnp.float32) + bias
        logits = jnp.where(there[:, None, None], logits, -jnp.inf)
        y = jnp.einsum("bnqk,bknh->bqnh", jax.nn.softmax(logits).astype(dtype), v)
        x = x + y.reshape(*ids.shape, -1) @ p["o"]
        y = _norm(x, p["mlp_norm"]).astype(dtype)
        y = jax.nn.gelu(y @ p["gate"]) * (y @ p["up"]) if "gate" in p else jax.nn.relu(y @ p["up"])
        return x + y @ p["down"], None

    x, _ = jax.lax.scan(block, x, params["blocks"])
    return _norm(x, params["final_norm"])


def _norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * gain


def _buckets(settings: T5Settings, length: int) -> np.ndarray:
    """int [length, length]: the bucket of each key's place before (the first half of the buckets)
    or after each query's; distances are exact up to a quarter of the buckets, then logarithmic."""
    places = np.arange(length)
    offset = places[None] - places[:, None]
    half = settings.num_buckets // 2
    exact, distance = half // 2, np.abs(offset)
    far = np.log(np.maximum(distance, 1) / exact) / math.log(settings.max_distance / exact)
    far = np.minimum(exact + (far.astype(np.float32) * (half - exact)).astype(int), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)

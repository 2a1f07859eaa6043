"""Untrained models, filled on the host: that takes no compilation."""

import json

import jax
import numpy as np
from recipes import load

from var_jax import build
from var_jax.checkpoint import Checkpointer, fingerprint
from var_jax.parallel import sharding


def write_model(folder, config=None):
    """Writes a transformer's workdir with its tokenizer inside; returns it.

    The config is that of the smallest digits, unless another is given.
    """
    config = config or load("mnist5k", "smallest")
    tokenizer, key = build.tokenizer(config), jax.random.key(0)
    shapes = {
        "tokenizer": jax.eval_shape(tokenizer.init_params, key),
        **jax.eval_shape(build.network(config).init_params, key),
    }
    rng = np.random.default_rng(0)

    def random(path, leaf):
        # A mean of squares is not negative; with it, a standard deviation is 1.
        drawn = [0, 1] if path[-1].key == "moments" else rng.normal(0, 0.2, leaf.shape)
        return jax.numpy.asarray(drawn, "float32")

    params = jax.tree_util.tree_map_with_path(random, sharding.unbox(shapes))
    frozen = params.pop("tokenizer")
    about = {
        "config": json.loads(json.dumps(config.to_dict())),
        "tokenizer_fingerprint": fingerprint(frozen),
    }
    with Checkpointer(folder) as writer:
        writer.save(3, {"params": params}, {"kind": "transformer", **about})
    with Checkpointer(folder / "tokenizer") as writer:
        state = {"params": {"tokenizer": frozen}}
        writer.save(0, state, {"kind": "tokenizer", **about})
    return folder

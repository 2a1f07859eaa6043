"""A transformer of one or two blocks over a small pyramid, at random parameters."""

import functools

import jax
import numpy as np

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 4))
CLASSES, VOCAB, CODE_DIM = 3, 32, 4
CODEC = ResidualVQ(PYRAMID, VOCAB, CODE_DIM, phi_sharing=2)


def network(depth=2, width=32, pyramid=PYRAMID, classes=CLASSES):
    transformer = VAR(pyramid, classes, CODE_DIM, depth=depth, width=width, num_heads=2)
    return Network(transformer, CategoricalHead(VOCAB, width, init_factor=20.0))


def filled(init, seed):
    """Parameters of the shapes that `init` makes, filled on the host: no compilation."""
    rng = np.random.default_rng(seed)
    shapes = sharding.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


@functools.cache
def model(depth=2, seed=0):
    """(network, its parameters)."""
    made = network(depth)
    return made, filled(made.init_params, seed)


@functools.cache
def codec_params():
    features = np.zeros((1, *PYRAMID.grid, CODE_DIM), np.float32)

    def init(key):
        return CODEC.init(key, features, method="encode")["params"]

    return filled(init, 9)


def generate(decoder, labels, made=None, own_params=None, seed=7, **kwargs):
    """What a decoder draws for labels, as NumPy arrays."""
    net, params = made or model()

    @jax.jit
    def run(params, frozen, own, labels, keys):
        return decoder(net, params, CODEC, frozen, labels, keys, own_params=own, **kwargs)

    labels = np.asarray(labels, np.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(len(labels)))
    return jax.tree.map(np.asarray, run(params, codec_params(), own_params, labels, keys))

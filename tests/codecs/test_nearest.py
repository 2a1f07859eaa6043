"""`Codec.nearest` of every codec: a step of encoding that can begin anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import filled

from var_jax.codecs.bitwise import Bitwise
from var_jax.codecs.ground_truth_vq import GroundTruthVQ
from var_jax.codecs.latent import Latent
from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3, 4))
CODECS = {
    "residual_vq": ResidualVQ(PYRAMID, 19, 5, phi_sharing=2),
    "residual_vq of directions": ResidualVQ(PYRAMID, 19, 5, normalize_codes=True),
    "residual_vq of frequencies": ResidualVQ(PYRAMID, 19, 5, down="cosine", up="cosine"),
    "ground_truth_vq": GroundTruthVQ(PYRAMID, 19, 5),
    "bitwise": Bitwise(ScalePyramid(((1, 1), (1, 2), (2, 3)), grid=(4, 6)), 5, patch=2),
    "bitwise with flips": Bitwise(PYRAMID, 5, flip_levels=3),
    "latent": Latent(PYRAMID, 5, scale=2.0),
}


@pytest.mark.parametrize("name", CODECS)
def test_a_step_of_encoding_that_counts_some_cells_only(name):
    codec = CODECS[name]
    rng = np.random.default_rng(0)
    grid = codec.pyramid.grid
    features, other = rng.normal(size=(2, 3, *grid, 5)).astype(np.float32)
    weights = (rng.random((3, *grid)) < 0.6).astype(np.float32)
    weights[:, 0, 0] = 1.0

    def init(key):
        return codec.init(key, jnp.asarray(features), method="encode")

    variables = jax.tree.map(jnp.asarray, filled(init, 1))

    @jax.jit
    def run(features, other, weights):
        def call(method, *args):
            return codec.apply(variables, *args, method=method)

        carry, plain, ones, hidden, seen = None, [], [], [], []
        mixed = jnp.where(weights[..., None] > 0, features, other)
        for k in range(codec.pyramid.num_levels):
            plain.append(call("nearest", features, carry, k))
            ones.append(call("nearest", features, carry, k, jnp.ones_like(weights)))
            hidden.append(call("nearest", mixed, carry, k, weights))
            seen.append(call("nearest", features, carry, k, weights))
            carry, _ = call("advance", carry, k, plain[-1])
        return call("encode", features), plain, ones, hidden, seen

    encoded, plain, ones, hidden, seen = run(features, other, weights)
    np.testing.assert_array_equal(np.concatenate(plain, 1), encoded)
    np.testing.assert_array_equal(np.concatenate(ones, 1), encoded)
    np.testing.assert_array_equal(np.concatenate(hidden, 1), np.concatenate(seen, 1))
    assert (np.concatenate(seen, 1) != encoded).any()

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.codecs.ground_truth_vq import GroundTruthVQ
from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3, 4))
#: Some levels more, some fewer, the last one not the grid.
OTHER = ScalePyramid.from_patch_nums((1, 3), PYRAMID.grid)
VOCAB, DIM = 19, 5


@pytest.fixture(scope="module")
def setup():
    rng = np.random.default_rng(0)
    codebook = jnp.asarray(rng.normal(size=(VOCAB, DIM)), jnp.float32)
    features = jnp.asarray(rng.normal(size=(2, *PYRAMID.grid, DIM)), jnp.float32)
    return GroundTruthVQ(PYRAMID, VOCAB, DIM), {"codebook": codebook}, features


def apply(setup, x, *args, method):
    codec, params, _ = setup
    return codec.apply({"params": params}, x, *args, method=method)


def tokens_of_side(tokens, pyramid, side):
    return pyramid.split(tokens)[pyramid.shapes.index((side, side))]


@pytest.mark.parametrize("side", [1, 3])
def test_tokens_of_shared_levels_do_not_depend_on_the_schedule(setup, side):
    features = setup[2]
    own, other = (apply(setup, features, p, method="lesson").targets for p in (PYRAMID, OTHER))
    first, second = tokens_of_side(own, PYRAMID, side), tokens_of_side(other, OTHER, side)
    np.testing.assert_array_equal(first, second)


def test_those_of_a_residual_codec_do():
    def encode(patch_nums):
        pyramid = ScalePyramid.from_patch_nums(patch_nums)
        codec = ResidualVQ(pyramid, VOCAB, DIM, phi_ratio=0.0)
        rng = np.random.default_rng(0)
        params = {"codebook": jnp.asarray(rng.normal(size=(VOCAB, DIM)), jnp.float32)}
        features = jnp.asarray(rng.normal(size=(2, 4, 4, DIM)), jnp.float32)
        tokens = codec.apply({"params": params}, features, method="encode")
        return tokens_of_side(tokens, pyramid, 4)

    assert (encode((1, 2, 3, 4)) != encode((1, 3, 4))).any()


@pytest.mark.parametrize("pyramid", [PYRAMID, OTHER])
def test_lessons_are_advance_folded(setup, pyramid):
    codec, params, features = setup
    lesson = apply(setup, features, pyramid, method="lesson")
    carry, inputs = None, [np.zeros((2, 1, DIM))]
    for k, target in enumerate(pyramid.split(lesson.targets)):
        carry, following = codec.apply(
            {"params": params}, carry, k, target, pyramid, method="advance"
        )
        inputs += [] if following is None else [following]
    np.testing.assert_array_equal(lesson.inputs, np.concatenate(inputs, 1))
    finished = apply(setup, carry, method="finish")
    np.testing.assert_array_equal(finished, apply(setup, lesson.targets, pyramid, method="decode"))
    assert finished.shape == features.shape


def test_codes_stand_for_directions(setup):
    codec, params, features = setup
    longer = {"codebook": params["codebook"] * jnp.linspace(0.1, 9, VOCAB)[:, None]}
    first, second = (
        codec.apply({"params": p}, x, method="lesson")
        for p, x in ((params, features), (longer, 7 * features))
    )
    np.testing.assert_array_equal(first.targets, second.targets)
    np.testing.assert_allclose(first.inputs, second.inputs, atol=1e-6)
    # Of the last level, which is the grid, the decoder gets the codes as they are.
    decoded = apply(setup, first.targets, method="decode")
    np.testing.assert_allclose(jnp.linalg.norm(decoded, axis=-1), 1, rtol=1e-5)
    last = PYRAMID.split(first.targets)[-1]
    one_hot = jax.nn.one_hot(last, VOCAB)
    soft, _ = codec.apply({"params": params}, None, 3, one_hot, method="advance")
    np.testing.assert_allclose(soft, decoded, atol=1e-6)


def test_quantize_agrees_with_encode_and_passes_gradients_on(setup):
    codec, params, features = setup
    direction = features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    @jax.jit
    def run(params, features):
        def value(params, features):
            found = codec.apply({"params": params}, features, method="quantize")
            return (found.features * direction).sum() + found.loss, found

        grads, found = jax.grad(value, (0, 1), has_aux=True)(params, features)
        exact = codec.apply({"params": params}, features, True, method="quantize")
        return grads, found, exact

    (codebook, gradient), found, exact = run(params, features)
    np.testing.assert_array_equal(found.targets, apply(setup, features, method="encode"))
    decoded = apply(setup, found.targets, method="decode")
    np.testing.assert_allclose(found.features, decoded, atol=1e-6)
    used = np.unique(found.targets)
    assert np.abs(codebook["codebook"])[used].max(-1).all() and np.abs(gradient).max(-1).all()
    # Exact: as if the nearest code were the direction itself.
    np.testing.assert_allclose(exact.features, direction, atol=1e-6)
    assert exact.loss == 0 and found.loss > 0
    assert found.vectors.shape == (2, PYRAMID.length, DIM)


def test_features_of_another_size_are_refused(setup):
    with pytest.raises(ValueError, match=r"features of \(4, 4, 5\)"):
        apply(setup, jnp.zeros((1, 3, 3, DIM)), method="encode")

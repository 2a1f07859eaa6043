import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import load_state

from var_jax.codecs.residual_vq import ResidualVQ, phi_indices
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.nearest import nearest_codes

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def golden_codec(case):
    """The codec of a golden case, its parameters and the reference's outputs."""
    config = json.loads((GOLDENS / case / "config.json").read_text())
    state = load_state(GOLDENS / case / "vae_layout.json")
    codec = ResidualVQ(
        ScalePyramid.from_patch_nums(config["pn"]), config["V"], config["Cvae"], config["phi"]
    )
    prefix = "quantize.quant_resi.qresi"
    names = [f"{prefix}_ls.{i}" for i in range(config["phi"])] if config["phi"] > 1 else [prefix]
    params = {
        "codebook": state["quantize.embedding.weight"],
        "phi_kernel": np.stack([state[f"{n}.weight"].transpose(2, 3, 1, 0) for n in names]),
        "phi_bias": np.stack([state[f"{n}.bias"] for n in names]),
    }
    outputs = dict(np.load(GOLDENS / case / "outputs.npz"))
    return codec, jax.tree.map(jnp.asarray, params), outputs


def small_codec(**changes):
    settings = {
        "pyramid": ScalePyramid.from_patch_nums((1, 2, 3, 4)),
        "vocab_size": 19,
        "code_dim": 5,
        "phi_sharing": 2,
    }
    codec = ResidualVQ(**{**settings, **changes})
    shapes = jax.eval_shape(
        lambda key: codec.init(
            key, jnp.zeros((1, codec.pyramid.length), jnp.int32), method="decode"
        ),
        jax.random.key(0),
    )
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=box.unbox().shape) * 0.4, jnp.float32)
        for name, box in shapes["params"].items()
    }
    if codec.phi_ratio:
        params["phi_kernel"] = params["phi_kernel"].at[:, 1, 1].add(jnp.eye(codec.code_dim))
    return codec, params


def random_tokens(codec, batch=2):
    shape = (batch, codec.pyramid.length)
    return jnp.asarray(np.random.default_rng(1).integers(codec.vocab_size, size=shape))


def random_features(codec, batch=2):
    shape = (batch, *codec.pyramid.grid, codec.code_dim)
    return jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)


def run(codec, params, *args, method, **kwargs):
    # One program a call: eager operations would each be compiled alone.
    def apply(params, *arrays):
        filled = iter(arrays)
        full = [next(filled) if isinstance(a, (jax.Array, np.ndarray)) else a for a in args]
        return codec.apply({"params": params}, *full, method=method, **kwargs)

    return jax.jit(apply)(params, *[a for a in args if isinstance(a, (jax.Array, np.ndarray))])


def assert_close(actual, expected, tolerance=1e-4):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def nhwc(x):
    return np.transpose(x, (0, 2, 3, 1))


@pytest.mark.parametrize(
    "levels, sharing, expected",
    [
        (10, 4, (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)),
        (14, 4, (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3)),
        (10, 1, (0,) * 10),
        (1, 4, (0,)),
        (1, 0, (0,)),
        (4, 0, (0, 1, 2, 3)),
        (10, 0, tuple(range(10))),
    ],
)
def test_phi_table(levels, sharing, expected):
    assert phi_indices(levels, sharing) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalize_codes": True},
        {"phi_sharing": 0},
        {"pyramid": ScalePyramid(((1, 1), (1, 3), (2, 6), (3, 7)))},
        {"pyramid": ScalePyramid(((1, 1), (5, 2), (3, 3)))},
        {"pyramid": ScalePyramid(((1, 1),))},
        {"phi_ratio": 0.0},
        {"down": "cosine", "up": "cosine"},
    ],
)
def test_teacher_inputs_are_a_fold_of_advance(changes):
    codec, params = small_codec(**changes)
    pyramid = codec.pyramid
    tokens = random_tokens(codec, 3)
    inputs = run(codec, params, tokens, method="teacher_inputs")
    assert inputs.shape == (3, pyramid.length, codec.code_dim)
    assert inputs.dtype == jnp.float32
    expected, carry = [jnp.zeros((3, 1, codec.code_dim))], None
    for k, target in enumerate(pyramid.split(tokens)):
        carry, next_input = run(codec, params, carry, k, target, method="advance")
        expected.append(next_input)
    assert expected.pop() is None
    # A loop over padded matrices and the levels one by one round differently.
    assert_close(inputs, jnp.concatenate(expected, 1), 2e-6)
    features = run(codec, params, carry, method="finish")
    np.testing.assert_array_equal(features, run(codec, params, tokens, method="decode"))


def test_teacher_inputs_see_only_coarser_levels():
    codec, params = small_codec()
    tokens = random_tokens(codec)
    before = run(codec, params, tokens, method="teacher_inputs")
    for k in range(codec.pyramid.num_levels):
        part = codec.pyramid.level(k)
        changed = tokens.at[:, part].set((tokens[:, part] + 1) % codec.vocab_size)
        after = run(codec, params, changed, method="teacher_inputs")
        assert jnp.array_equal(before[:, : part.stop], after[:, : part.stop])


def test_a_distribution_adds_the_expected_code():
    codec, params = small_codec()
    tokens = random_tokens(codec)[:, :4]
    carry = random_features(codec)
    hard = run(codec, params, carry, 1, tokens, method="advance")
    one_hot = jax.nn.one_hot(tokens, codec.vocab_size)
    soft = run(codec, params, carry, 1, one_hot, method="advance")
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), soft, hard)


@pytest.mark.parametrize("normalize", [False, True])
def test_encode_repeats_itself_and_agrees_with_quantize(normalize):
    codec, params = small_codec(normalize_codes=normalize)
    features = random_features(codec)
    tokens = run(codec, params, features, method="encode")
    assert tokens.shape == (2, codec.pyramid.length) and tokens.dtype == jnp.int32
    quantized = run(codec, params, features, method="quantize")
    np.testing.assert_array_equal(tokens, quantized.targets)
    assert_close(quantized.features, run(codec, params, tokens, method="decode"), 1e-5)
    # What a level's code was chosen for is what the levels before it left over.
    np.testing.assert_array_equal(
        nearest_codes(quantized.vectors, params["codebook"], normalize), tokens
    )
    np.testing.assert_allclose(
        quantized.vectors[:, 0], jnp.mean(features, (1, 2)), rtol=1e-4, atol=1e-5
    )


def test_encoding_what_was_decoded_gives_the_same_tokens():
    # Codes that mark one level each (orthogonal, far apart) come back from their own sum.
    codec, params = small_codec(
        vocab_size=8, code_dim=4, pyramid=ScalePyramid.from_patch_nums((1, 4))
    )
    codebook = jnp.concatenate([jnp.eye(4), 100 * jnp.eye(4)])
    params = {**params, "codebook": codebook, "phi_bias": jnp.zeros((2, 4))}
    params["phi_kernel"] = jnp.zeros((2, 3, 3, 4, 4)).at[:, 1, 1].set(jnp.eye(4))
    coarse = jnp.array([[4], [6]])
    fine = jnp.tile(jnp.array([0, 1, 2, 3]), (2, 4))
    tokens = jnp.concatenate([coarse, fine], 1)
    features = run(codec, params, tokens, method="decode")
    np.testing.assert_array_equal(run(codec, params, features, method="encode"), tokens)


def test_features_by_level_add_up():
    codec, params = small_codec()
    tokens = random_tokens(codec)
    by_level = run(codec, params, tokens, method="features_by_level")
    carry = None
    for k, target in enumerate(codec.pyramid.split(tokens)):
        carry, _ = run(codec, params, carry, k, target, method="advance")
        np.testing.assert_array_equal(by_level[k], carry)


def test_normalized_codes_go_by_direction():
    codebook = jnp.array([[10.0, 0.0], [0.0, 0.1]])
    vectors = jnp.array([[0.1, 1.0]])
    assert nearest_codes(vectors, codebook)[0] == 1
    assert nearest_codes(10 * vectors, codebook, normalize=True)[0] == 1
    assert nearest_codes(jnp.array([[0.2, 0.1]]), codebook)[0] == 1
    assert nearest_codes(jnp.array([[0.2, 0.1]]), codebook, normalize=True)[0] == 0


def test_exact_codes_rebuild_the_features_at_no_loss():
    codec, params = small_codec()
    params = {**params, "phi_bias": jnp.zeros((2, 5))}
    params["phi_kernel"] = jnp.zeros((2, 3, 3, 5, 5)).at[:, 1, 1].set(jnp.eye(5))
    features = random_features(codec)
    quantized = run(codec, params, features, method="quantize", exact=True)
    assert_close(quantized.features, features, 1e-6)
    assert quantized.loss == 0
    grads = jax.grad(
        lambda p: run(codec, p, features, method="quantize", exact=jnp.array(True)).loss
    )(params)
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_sums_and_distances_ask_for_full_precision():
    codec, params = small_codec()
    features = jnp.zeros((1, 4, 4, codec.code_dim))
    text = str(jax.make_jaxpr(lambda x: run(codec, params, x, method="encode"))(features))
    products = text.count("dot_general[") + text.count("conv_general_dilated[")
    assert products > 0
    assert text.count("Precision.HIGHEST") >= products


def test_a_feature_map_of_another_size_is_refused():
    codec, params = small_codec()
    with pytest.raises(ValueError, match="last level"):
        run(codec, params, jnp.zeros((1, 8, 8, codec.code_dim)), method="encode")


def test_rectangles_work():
    codec, params = small_codec(pyramid=ScalePyramid(((1, 1), (1, 3), (2, 6))))
    features = random_features(codec)
    tokens = run(codec, params, features, method="encode")
    assert tokens.shape == (2, 16)
    assert run(codec, params, tokens, method="teacher_inputs").shape == (2, 16, codec.code_dim)


@pytest.mark.parametrize("case", ["a", "b"])
def test_agrees_with_the_official_quantizer(case):
    codec, params, golden = golden_codec(case)
    features = nhwc(golden["features"])
    tokens = np.concatenate([golden[f"tokens_{k}"] for k in range(codec.pyramid.num_levels)], 1)
    np.testing.assert_array_equal(run(codec, params, features, method="encode"), tokens)
    by_level = run(codec, params, tokens, method="features_by_level")
    assert_close(by_level[0], nhwc(golden["f_hat_0"]))
    assert_close(by_level[-1], nhwc(golden["f_hat"]))
    inputs = run(codec, params, tokens, method="teacher_inputs")
    assert not np.any(inputs[:, : codec.pyramid.sizes[0]])
    assert_close(inputs[:, codec.pyramid.sizes[0] :], golden["teacher_forcing_input"])

    cotangent = nhwc(golden["quantizer_cotangent"])

    def loss(params, features):
        quantized = run(codec, params, features, method="quantize")
        return jnp.sum(quantized.features * cotangent) + quantized.loss, quantized.loss

    (grads, grad_features), value = jax.grad(loss, (0, 1), has_aux=True)(
        params, jnp.asarray(features)
    )
    assert_close(value, golden["quantizer_loss"].reshape(()))
    assert_close(grad_features, nhwc(golden["quantizer_grad_features"]))
    norm = np.linalg.norm(grads["codebook"])
    assert_close(norm, golden["quantizer_grad_codebook_norm"].reshape(()))

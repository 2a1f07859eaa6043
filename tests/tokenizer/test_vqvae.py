import functools
import json
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import load_state

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"

# Random numbers take most of the compile time of initialisation and need no optimised code.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def torch_name(path):
    """The official state-dict name of one of our autoencoder parameters."""
    *modules, leaf = path
    renamed = []
    for name in modules:
        kind, _, index = name.rpartition("_")
        if kind in ("down", "up", "block", "attn") and "mid" not in renamed:
            renamed += [kind, index]
        else:
            renamed.append({"shortcut": "nin_shortcut"}.get(name, name))
    return ".".join([*renamed, "bias" if leaf == "bias" else "weight"])


def golden_tokenizer(case):
    """The tokenizer of a golden case, its parameters and the reference's outputs."""
    config = json.loads((GOLDENS / case / "config.json").read_text())
    state = load_state(GOLDENS / case / "vae_layout.json")
    pyramid = ScalePyramid.from_patch_nums(config["pn"])
    codec = ResidualVQ(pyramid, config["V"], config["Cvae"], config["phi"])
    tokenizer = VQVAE(codec, channels=config["ch"])

    def load(path, leaf):
        path = [key.key for key in path]
        if path[0] == "codec":
            resi = "quantize.quant_resi.qresi"
            names = [f"{resi}_ls.{i}" for i in range(config["phi"])]
            names = names if config["phi"] > 1 else [resi]
            return {
                "codebook": lambda: state["quantize.embedding.weight"],
                "phi_bias": lambda: np.stack([state[f"{n}.bias"] for n in names]),
                "phi_kernel": lambda: np.stack(
                    [state[f"{n}.weight"].transpose(2, 3, 1, 0) for n in names]
                ),
            }[path[1]]()
        array = state[torch_name(path)]
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        assert array.shape == leaf.shape, path
        return array

    params = jax.tree_util.tree_map_with_path(load, abstract_params(tokenizer))
    outputs = dict(np.load(GOLDENS / case / "outputs.npz"))
    return tokenizer, params, outputs


def abstract_params(tokenizer):
    images = jax.ShapeDtypeStruct((1, *tokenizer.image_shape), jnp.float32)
    return nn.unbox(jax.eval_shape(tokenizer.init, jax.random.key(0), images))["params"]


def tiny(patch_nums=(1, 2, 4), **changes):
    codec = ResidualVQ(ScalePyramid.from_patch_nums(patch_nums), 16, 4, 1)
    settings = {
        "image_channels": 1,
        "channels": 8,
        "multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention": False,
        "norm_groups": 4,
    }
    return VQVAE(codec, **{**settings, **changes})


def init(tokenizer):
    images = jnp.zeros((1, *tokenizer.image_shape))
    return nn.unbox(
        jax.jit(tokenizer.init, compiler_options=FAST_COMPILE)(jax.random.key(0), images)
    )["params"]


def nhwc(x):
    return np.transpose(x, (0, 2, 3, 1))


def assert_close(actual, expected, tolerance=1e-4):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def test_the_released_size_has_108_9_million_parameters():
    codec = ResidualVQ(ScalePyramid.for_image_size(256), 4096, 32)
    tokenizer = VQVAE(codec)
    assert tokenizer.image_shape == (256, 256, 3)
    count = sum(x.size for x in jax.tree.leaves(abstract_params(tokenizer)))
    assert round(count / 1e5) == 1089


def test_every_parameter_carries_known_logical_names():
    tokenizer = tiny(attention=True)
    images = jax.ShapeDtypeStruct((1, *tokenizer.image_shape), jnp.float32)
    boxes = jax.eval_shape(tokenizer.init, jax.random.key(0), images)["params"]
    leaves = jax.tree.leaves(boxes, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    for box in leaves:
        assert isinstance(box, nn.Partitioned)
        assert len(box.names) == box.value.ndim
        assert set(box.names) <= {None, "conv_in", "conv_out"}
    # Image and code channels are too few to be divided among devices.
    assert boxes["encoder"]["conv_in"]["kernel"].names == (None, None, None, "conv_out")
    assert boxes["decoder"]["conv_out"]["kernel"].names == (None, None, "conv_in", None)


@pytest.mark.parametrize("case", ["a", "b"])
def test_agrees_with_the_official_tokenizer(case):
    tokenizer, params, golden = golden_tokenizer(case)
    images = nhwc(golden["image"])

    @jax.jit
    def run(params, images):
        features = tokenizer.apply(params, images, method="features")
        tokens = tokenizer.apply(params, images, method="encode")
        return features, tokens, tokenizer.apply(params, tokens, method="decode_tokens")

    features, tokens, reconstruction = run({"params": params}, images)
    assert_close(features, nhwc(golden["features"]))
    levels = range(tokenizer.codec.pyramid.num_levels)
    expected = np.concatenate([golden[f"tokens_{k}"] for k in levels], 1)
    np.testing.assert_array_equal(tokens, expected)
    assert_close(reconstruction, nhwc(golden["reconstruction"]))


@pytest.mark.parametrize("channels", [1, 3])
def test_methods_agree_with_each_other(channels):
    tokenizer = tiny(image_channels=channels)
    params = {"params": init(tokenizer)}
    shape = (2, *tokenizer.image_shape)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    @jax.jit
    def run(params, images):
        apply = tokenizer.apply
        tokens = apply(params, images, method="encode")
        output = apply(params, images)
        by_level = apply(params, tokens, method="decode_levels")
        return tokens, output, by_level, apply(params, images, method="reconstruct")

    tokens, output, by_level, reconstruction = run(params, images)
    assert tokens.shape == (2, 21) and reconstruction.shape == shape
    assert by_level.shape == (3, *shape)
    np.testing.assert_array_equal(output.quantized.targets, tokens)
    assert_close(by_level[-1], reconstruction, 1e-5)
    assert_close(jnp.clip(output.reconstruction, -1, 1), reconstruction, 1e-4)
    assert jnp.abs(by_level).max() <= 1
    # The codec works alone on its own subtree, which is all that transformer training loads.
    codec_params = {"params": params["params"]["codec"]}
    inputs = tokenizer.codec.apply(codec_params, tokens, method="teacher_inputs")
    assert inputs.shape == (2, 21, 4)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters_and_features():
    tokenizer = tiny(dtype=jnp.bfloat16)
    abstract = abstract_params(tokenizer)
    assert {x.dtype for x in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((1, *tokenizer.image_shape), jnp.float32)
    output = jax.eval_shape(tokenizer.apply, {"params": abstract}, images)
    assert output.hidden.dtype == jnp.bfloat16
    assert output.quantized.features.dtype == jnp.float32
    assert output.reconstruction.dtype == jnp.float32


def test_a_picture_is_computed_in_the_same_way_in_any_batch():
    """Codes hang on small differences, so how a sum is rounded may not hang on the batch.

    It is what we choose that is compared. XLA on CPUs chooses the algorithm of some products by
    their size, the batch included; these differ by about 1e-6, where the two kinds of convolution
    differ by 1e-5.
    """
    # Wide and large enough that None chooses filtered convolutions on CPUs.
    tokenizer = tiny((1, 2, 4, 8, 16), channels=64, image_channels=3, attention=True)
    params = {"params": abstract_params(tokenizer)}

    def sums(batch):
        images = jax.ShapeDtypeStruct((batch, *tokenizer.image_shape), jnp.float32)
        reconstruct = functools.partial(tokenizer.apply, method="reconstruct")
        text = str(jax.make_jaxpr(reconstruct)(params, images))
        return re.findall(r"(?:conv_general_dilated|dot_general|reduce_sum)\[", text)

    alone = sums(1)
    for batch in (2, 3, 8, 64):
        assert sums(batch) == alone


@pytest.mark.parametrize(
    ("name", "dtype", "precision"),
    [
        ("highest", jnp.float32, jax.lax.Precision.HIGHEST),
        ("high", jnp.float32, jax.lax.Precision.HIGH),
        ("default", jnp.float32, jax.lax.Precision.DEFAULT),
        # Products of bfloat16 numbers are exact in one pass.
        ("highest", jnp.bfloat16, None),
    ],
)
def test_encoder_precision_is_that_of_its_products(name, dtype, precision):
    tokenizer = tiny(encoder_precision=name, dtype=dtype, attention=True)
    params = abstract_params(tokenizer)["encoder"]
    images = jax.ShapeDtypeStruct((1, *tokenizer.image_shape), jnp.float32)

    def encode(params, images):
        return tokenizer.bind({"params": {"encoder": params}}).encoder(images)

    asked = {
        eqn.params["precision"]
        for eqn in jax.make_jaxpr(encode)(params, images).eqns
        if eqn.primitive.name == "conv_general_dilated"
    }
    assert asked == {precision and (precision, precision)}


def test_wrong_sizes_are_refused_in_one_sentence():
    tokenizer = tiny()
    with pytest.raises(ValueError, match=r"\(8, 8, 1\).*got \(16, 16, 1\)"):
        jax.eval_shape(tokenizer.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    with pytest.raises(ValueError, match="encoder_precision 'float64'"):
        tiny(encoder_precision="float64")
    with pytest.raises(ValueError, match="32 normalisation groups do not divide 8 channels"):
        abstract_params(tiny(norm_groups=32))

"""Infinity's quantizer, flips, bits, rotary table and level weights (its text is not built)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from family.case import by_level, nchw, nhwc

from var_jax.codecs.bitwise import Bitwise
from var_jax.heads.bitwise import BitwiseSampling, choose_bits
from var_jax.objectives.level_weights import AreaWeights
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.spherical import bits_of, codes_of
from var_jax.transformer.rotary import Rotary2D, grid_positions


def pyramid_of(case):
    return ScalePyramid(tuple(map(tuple, case.config["scales"])))


def codec_of(case):
    pyramid, patch = pyramid_of(case), 1 + case.config["patchify"]
    grid = tuple(patch * n for n in pyramid.shapes[-1])
    pyramid = dataclasses.replace(pyramid, grid=grid)
    return Bitwise(pyramid, case.config["d"], patch, case.config["noise_layers"])


def apply(codec, method, *args):
    return jax.jit(lambda *args: codec.apply({}, *args, method=method))(*args)


def tokens_of(codec, name, case):
    """Arrays of a level's cells [B, h, w, d] -> bits of all tokens [B, L, b]."""
    levels = [case.outputs[f"{name}_{k}"] for k in range(codec.pyramid.num_levels)]
    made = [codec.apply({}, jnp.asarray(x), method="_in_tokens") for x in levels]
    return jnp.concatenate(made, 1)


def check_quantizer(case):
    codec, features = codec_of(case), nhwc(case.outputs["features"])
    bits = tokens_of(codec, "bits", case).astype(jnp.uint8)
    np.testing.assert_array_equal(apply(codec, "encode", features), bits)
    case.close(nchw(apply(codec, "quantize", features).features), "quantized")
    case.close(nchw(apply(codec, "decode", bits)), "decoded_from_bits")
    code = codes_of(bits_of(jnp.asarray(nhwc(case.outputs["code_0"]))))
    case.close(nchw(code), "code_0")


def check_lessons(case):
    codec, features = codec_of(case), nhwc(case.outputs["features"])
    flips = tokens_of(codec, "flip", case)
    flipped = codec.pyramid.level_ids < case.config["noise_layers"]
    if not case.config["requant"]:
        # Without it the reference draws flips that nothing reads.
        flipped &= False
    flips &= flipped[:, None]
    first = codec.pyramid.sizes[0]
    for name, lesson in {
        "clean": apply(codec, "lesson", features),
        "flipped": apply(codec, "corrected", features, flips),
    }.items():
        case.close(lesson.inputs[:, first:], f"input_{name}")
        case.equal(lesson.targets, f"target_bits_{name}")


def check_rotary(case):
    rows, columns = case.config["rope_grid"]
    for name, grid in {"rows": rows, "cols": columns}.items():
        for key, expected in case.outputs.items():
            if key.startswith(f"rope_{name}_"):
                case.equal(grid_positions(len(expected), grid), key)
    head_dim = case.config["width"] // case.config["heads"]
    rotary, pyramid = Rotary2D(case.config["width"], (rows, columns)), pyramid_of(case)
    angles = rotary.angles(pyramid, head_dim)
    case.close(np.cos(angles), "rope_cos")
    case.close(np.sin(angles), "rope_sin")
    # A pair (1, 0) becomes (cos, sin).
    x = jnp.tile(jnp.array([1.0, 0.0]), (1, pyramid.length, 1, head_dim // 2))
    turned = rotary.rotate(x, pyramid, range(pyramid.num_levels))[0, :, 0]
    case.close(turned[:, ::2], "rope_cos")
    case.close(turned[:, 1::2], "rope_sin")


def check_draws(case):
    codec = codec_of(case)
    drawn = BitwiseSampling(1.0, case.config["top_p"], case.config["top_k"])
    greedy = BitwiseSampling(1.0, 0.0, 1)
    for name in ("greedy", "greedy_layer_cfg", "sampled"):
        # The logits have been divided by the temperature.
        logits, noise = by_level(case.outputs, f"{name}_logits"), by_level(case.outputs, "gumbel")
        log_odds, noise = (x[..., 1] - x[..., 0] for x in (logits, noise))
        bits = choose_bits(log_odds, noise, drawn if name == "sampled" else greedy)
        np.testing.assert_array_equal(bits, by_level(case.outputs, f"{name}_bits"), err_msg=name)
        case.close(nchw(apply(codec, "decode", bits)), f"{name}_features")


def check_level_weights(case):
    weights = AreaWeights().weights(pyramid_of(case))
    case.close(weights, "loss_weight")
    tokens = case.outputs["train_token_loss"]
    case.close((tokens * weights).sum(1).mean(), "train_loss")
    case.close(tokens.mean(), "train_loss_unweighted")


CHECKS = {
    "quantizer": check_quantizer,
    "lessons": check_lessons,
    "rotary": check_rotary,
    "draws": check_draws,
    "level_weights": check_level_weights,
}

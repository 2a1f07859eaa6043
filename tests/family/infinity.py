"""Infinity: quantizer, flips, bits, rotary table, level weights, logits and draws from texts."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from family.case import by_level, lazy_state, nchw, nhwc, read_params
from flax.core import FrozenDict

from var_jax.codecs.bitwise import Bitwise
from var_jax.convert import infinity_text
from var_jax.decoding.guidance import LayerGuidance, PerLevelGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.base import mixed
from var_jax.heads.bitwise import BitwiseHead, BitwiseSampling, choose_bits
from var_jax.objectives.level_weights import AreaWeights
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.spherical import bits_of, codes_of
from var_jax.transformer.rotary import Rotary2D, grid_positions
from var_jax.transformer.text_features import Features


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


@functools.cache
def case_network(case):
    """Our network and its parameters."""
    tensors = lazy_state(case.state()).tree
    sides = tuple(rows for rows, _ in case.config["scales"])
    shape = infinity_text.TRANSFORMER.infer(tensors, sides)
    pyramid, grid = pyramid_of(case), tuple(case.config["rope_grid"])
    network = infinity_text.build(shape, pyramid, grid)
    abstract = nn.unbox(jax.eval_shape(network.init_params, jax.random.key(0)))
    state = {name: tensor.read() for name, tensor in infinity_text.view(tensors).items()}
    buffers = infinity_text.BUFFERS
    return network, read_params(state, infinity_text.ROWS, abstract, buffers)[0]


def asked_of(case):
    """The packed text features as ours: rows of one length, and how much of each is there."""
    lengths, (_, channels) = case.outputs["text_lens"], case.outputs["text"].shape
    rows = np.zeros((len(lengths), case.config["text_maxlen"], channels), np.float32)
    packed = np.split(case.outputs["text"], np.cumsum(lengths)[:-1])
    for row, text in zip(rows, packed, strict=True):
        row[: len(text)] = text
    return Features(jnp.asarray(rows), jnp.asarray(lengths), jnp.ones(len(rows), bool))


def inputs_of(case, name):
    """Inputs of all tokens; those of the first level are not read."""
    x = case.outputs[name]
    return jnp.pad(x, ((0, 0), (pyramid_of(case).sizes[0], 0), (0, 0)))


def check_logits(case):
    network, params = case_network(case)
    asked = asked_of(case)

    @jax.jit
    def logits(inputs, asked):
        hidden, _ = network.hidden(params, inputs, asked)
        variables = {"params": params["head"]}
        found = network.head.apply(variables, hidden, method=lambda head, x: head.projection(x))
        return hidden, found

    def theirs(found):
        """Two logits of a bit beside each other."""
        return found.swapaxes(-1, -2).reshape(*found.shape[:2], -1)

    clean, nothing = inputs_of(case, "input_clean"), network.transformer.conditioner.null(asked)
    case.close(theirs(logits(clean, asked)[1]), "logits")
    case.close(theirs(logits(clean, nothing)[1]), "logits_uncond")
    dropped = jnp.asarray(case.outputs["text_dropped"] == 0)
    hidden, _ = logits(inputs_of(case, "input_flipped"), asked.replace(asked=dropped))
    target = jnp.asarray(case.outputs["target_bits_flipped"]).astype(jnp.uint8)
    loss, _ = network.loss(params, hidden, target, None, pyramid_of(case))
    case.close(loss, "train_token_loss")


class GivenNoise(BitwiseHead):
    """Draws by the noise of a case."""

    noise: tuple = ()

    def sample(self, hiddens, weights, keys, settings):
        log_odds = mixed(tuple(self(hidden) for hidden in hiddens), weights)
        bits = choose_bits(log_odds, self.noise[log_odds.shape[1]], settings)
        return bits, bits


def check_samples(case):
    network, params = case_network(case)
    config, codec, sizes = case.config, codec_of(case), pyramid_of(case).sizes
    noise = {}
    for k, size in enumerate(sizes):
        given = case.outputs[f"gumbel_{k}"]
        noise[size] = given[..., 1] - given[..., 0]
    head = GivenNoise(network.head.target, network.head.width, noise=FrozenDict(noise))
    network = dataclasses.replace(network, head=head)
    asked = asked_of(case)
    keys = jax.random.split(jax.random.key(0), len(asked.lengths))
    plain = PerLevelGuidance(tuple(cfg - 1 for cfg in config["cfg_list"]))
    inside = PerLevelGuidance(tuple(cfg - 1 for cfg in config["layer_cfg"]))
    greedy, drawn = (0.0, 1), (config["top_p"], config["top_k"])
    for name, guidance, filters in (
        ("greedy", plain, greedy),
        ("greedy_layer_cfg", LayerGuidance(inside, tuple(config["insertion"])), greedy),
        ("sampled", plain, drawn),
    ):
        decoder = NextScale(guidance, BitwiseSampling(tuple(config["tau_list"]), *filters))
        run = jax.jit(lambda p, d=decoder: d(network, p, codec, {}, asked, keys))
        found = run(params)
        np.testing.assert_array_equal(found.targets, by_level(case.outputs, f"{name}_bits"))
        case.close(nchw(found.features), f"{name}_features")


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
    "logits": check_logits,
    "samples": check_samples,
}

"""ACDiT: who sees whom, positions, and what the network makes of noisy cells.

Source of the numbers: thunlp/ACDiT 135ff06.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from family.case import read_params

from var_jax.codecs.latent import Latent
from var_jax.context import dense_mask
from var_jax.convert.mapping import Row
from var_jax.convert.vit import linear
from var_jax.heads.linear_velocity import LinearVelocity
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.acdit import ACDiT, _angles, skip_causal

BLOCKS, THEIRS = "transformer/stack/blocks", "blocks.{stack}"


ROWS = (
    Row("transformer/class_embedding", "y_embedder.embedding_table.weight", "k c -> k c"),
    *linear("transformer/time/up", "t_embedder.mlp.0"),
    *linear("transformer/time/out", "t_embedder.mlp.2"),
    Row("transformer/token_projection/kernel", "x_embedder.weight", "o i -> i o"),
    Row("transformer/final_norm", "final_layer.norm_final.weight", "c -> c"),
    Row(
        "transformer/final_modulation/kernel",
        "final_layer.adaLN_modulation.1.weight",
        "(s d) c -> c s d",
    ),
    Row("transformer/final_modulation/bias", "final_layer.adaLN_modulation.1.bias", "(s d) -> s d"),
    *linear("head/out", "final_layer.linear"),
    Row(f"{BLOCKS}/norm_gains", f"{THEIRS}.norms", "s c -> s c"),
    Row(f"{BLOCKS}/adaln/kernel", f"{THEIRS}.adaLN_modulation.1.weight", "(s d) c -> c s d"),
    Row(f"{BLOCKS}/adaln/bias", f"{THEIRS}.adaLN_modulation.1.bias", "(s d) -> s d"),
    Row(f"{BLOCKS}/attention/qkv_kernel", f"{THEIRS}.attn.qkv.weight", "(s n h) c -> c s n h"),
    *(
        Row(f"{BLOCKS}/attention/{x}_bias", f"{THEIRS}.attn.{x}.bias", "(n h) -> n h")
        for x in "qkv"
    ),
    Row(f"{BLOCKS}/attention/q_gain", f"{THEIRS}.attn.q_norm.weight", "h -> h"),
    Row(f"{BLOCKS}/attention/k_gain", f"{THEIRS}.attn.k_norm.weight", "h -> h"),
    Row(f"{BLOCKS}/attention/out/kernel", f"{THEIRS}.attn.proj.weight", "c (n h) -> n h c"),
    Row(f"{BLOCKS}/attention/out/bias", f"{THEIRS}.attn.proj.bias", "c -> c"),
    *linear(f"{BLOCKS}/mlp/up", f"{THEIRS}.mlp.fc1"),
    *linear(f"{BLOCKS}/mlp/down", f"{THEIRS}.mlp.fc2"),
)


def ours(state):
    """Their tensors with ours in the order of our vectors and ours apart.

    A block's shift, scale and gate of attention and MLP are here gates, scales, shifts; the last
    layer's shift and scale are scale and shift.
    """
    made = {}
    for name, x in state.items():
        stem, _, kind = name.rpartition(".")
        if "adaLN_modulation" in name:
            order = [1, 0] if name.startswith("final") else [2, 5, 1, 4, 0, 3]
            made[name] = np.concatenate([np.split(x, len(order))[i] for i in order])
        elif name.endswith("qkv.bias"):
            parts = zip("qkv", np.split(x, 3), strict=True)
            made |= {name.replace("qkv", letter): part for letter, part in parts}
        elif stem.endswith("norm1"):
            second = state[name.replace("norm1", "norm2")]
            made[name.replace("norm1.weight", "norms")] = np.stack([x, second])
        elif not stem.endswith("norm2"):
            made[name] = x
    return made


@functools.cache
def case_network(case):
    """Our network and its parameters."""
    config = case.config
    side = round(config["spatial_len"] ** 0.5)
    transformer = ACDiT(
        ScalePyramid(((side, side),)),
        config["num_classes"],
        config["latent_size"],
        config["depth"],
        config["hidden_size"],
        config["num_heads"],
        cells=round(config["ar_len"] ** 0.5),
        mlp_ratio=config["mlp_ratio"],
    )
    codec = Latent(transformer.pyramid, config["latent_size"])
    network = Network(transformer, LinearVelocity(codec.target, config["hidden_size"]))
    abstract = nn.unbox(jax.eval_shape(network.init_params, jax.random.key(0)))
    return network, read_params(ours(case.state()), ROWS, abstract)[0]


def check_visibility(case):
    entities, side = case_network(case)[0].denoiser.entities, case.outputs["position_ids"].max() + 1
    laid_out, segments = skip_causal(entities)
    seen = dense_mask(segments, sum(hi - lo for lo, hi in laid_out))
    tokens = np.concatenate([np.arange(lo, hi) for lo, hi in laid_out])
    found = np.zeros((len(seen), len(seen)), int)
    np.add.at(found.T, tokens, seen.T)
    assert found.max() == 1, "No key counts twice."
    # Ours leaves out the last clean cell, which no noisy one sees.
    length, left_out = entities.length, entities.level(entities.num_levels - 1)
    theirs = np.delete(case.outputs["mask"], np.r_[left_out], 1)
    assert not case.outputs["mask"][length:, left_out].any()
    np.testing.assert_array_equal(found, np.delete(theirs, np.r_[left_out], 0))

    network = case_network(case)[0]
    rows, columns = np.divmod(network.denoiser.order, side)
    case.equal(np.stack([rows, columns]), "position_ids")
    head_dim = case.config["hidden_size"] // case.config["num_heads"]
    cells = round(case.config["ar_len"] ** 0.5)
    angles = np.concatenate(_angles(network.denoiser.pyramid, cells, head_dim), 1)
    case.close(np.cos(angles), "rope_cos")
    case.close(np.sin(angles), "rope_sin")


def check_prediction(case):
    network, params = case_network(case)
    outputs, entities = case.outputs, network.denoiser.entities
    clean, noised = (
        x.reshape(len(x), entities.length, -1) for x in (outputs["clean"], outputs["noised"])
    )
    times = jnp.asarray((outputs["t"] + 0.5) / 1000)
    labels = jnp.asarray(outputs["labels"])

    def of(hidden):
        return network.head.apply({"params": params["head"]}, hidden)

    @jax.jit
    def whole(given):
        return of(network.denoised(params, noised, given, times=times, clean=clean)[0])

    @jax.jit
    def by_cell(given):
        cache, found = network.denoiser.new_cache(), []
        for k in range(entities.num_levels):
            at, levels = entities.level(k), range(k, k + 1)
            settings = dict(levels=levels, cache=cache)
            hidden, _ = network.denoised(
                params, noised[:, at], given, times=times[:, k : k + 1], **settings
            )
            found.append(of(hidden))
            _, cache = network.denoised(params, clean[:, at], given, **settings)
        return jnp.concatenate(found, 1)

    case.close(whole(labels), "prediction")
    case.close(whole(jnp.full_like(labels, case.config["num_classes"])), "prediction_null")
    case.close(by_cell(labels), "prediction_cached")


CHECKS = {"visibility": check_visibility, "prediction": check_prediction}

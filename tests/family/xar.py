"""xAR: cells, conditions, velocity, loss and gradients, and what its samplers draw.

Source of the numbers: OliverRensu/xAR 121e9c9.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from family.case import check_grad_norms, nchw, nhwc, read_params

from var_jax.codecs.latent import Latent
from var_jax.convert.mapping import Row
from var_jax.decoding.guidance import ConstantGuidance, LinearGuidance
from var_jax.decoding.next_entity import NextEntity
from var_jax.heads.linear_velocity import LinearVelocity
from var_jax.heads.ode import FlowSampling
from var_jax.network import Network
from var_jax.objectives.flow_matching import FlowMatching
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.rotary import angles_by_level
from var_jax.transformer.xar import XAR


def linear(ours, theirs):
    return (
        Row(f"{ours}/kernel", f"{theirs}.weight", "o i -> i o"),
        Row(f"{ours}/bias", f"{theirs}.bias", "o -> o"),
    )


def blocks(name):
    ours, theirs = f"transformer/{name}/blocks", f"{name}_blocks.{{stack}}"
    return (
        Row(f"{ours}/adaln/kernel", f"{theirs}.ada_lin.1.weight", "(s d) c -> c s d"),
        Row(f"{ours}/adaln/bias", f"{theirs}.ada_lin.1.bias", "(s d) -> s d"),
        Row(f"{ours}/attention/qkv_kernel", f"{theirs}.attn.qkv.weight", "(s n h) c -> c s n h"),
        Row(f"{ours}/attention/qkv_bias", f"{theirs}.attn.qkv.bias", "(s n h) -> s n h"),
        Row(f"{ours}/attention/out/kernel", f"{theirs}.attn.proj.weight", "c (n h) -> n h c"),
        Row(f"{ours}/attention/out/bias", f"{theirs}.attn.proj.bias", "c -> c"),
        *linear(f"{ours}/mlp/gate", f"{theirs}.mlp.fc1_g"),
        *linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1_x"),
        *linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    )


ROWS = (
    Row("transformer/class_embedding", "class_emb.weight", "k c -> k c"),
    Row("transformer/encoder_position", "encoder_pos_embed_learned", "1 l c -> l c"),
    Row("transformer/decoder_position", "decoder_pos_embed_learned", "1 l c -> l c"),
    Row("transformer/input_norm", "z_proj_ln.weight", "c -> c"),
    Row("transformer/encoder_norm", "encoder_norm.weight", "c -> c"),
    Row("transformer/decoder_norm", "decoder_norm.weight", "c -> c"),
    *linear("transformer/time/up", "time_embed.mlp.0"),
    *linear("transformer/time/out", "time_embed.mlp.2"),
    *linear("transformer/token_projection", "z_proj"),
    *linear("transformer/decoder_projection", "decoder_embed"),
    *blocks("encoder"),
    *blocks("decoder"),
    *linear("head/out", "pred"),
)


def joined(params):
    """Our parameters with the biases of queries, keys and values as one, as theirs."""

    def of(tree):
        if "q_bias" not in tree:
            return {k: of(v) if isinstance(v, dict) else v for k, v in tree.items()}
        rest = {k: v for k, v in tree.items() if not k.endswith("_bias")}
        biases = [tree[f"{name}_bias"] for name in "qkv"]
        return {**rest, "qkv_bias": jnp.stack(biases, 1)}

    return of(params)


def parted(params):
    """The inverse of `joined`."""

    def of(tree):
        if "qkv_bias" not in tree:
            return {k: of(v) if isinstance(v, dict) else v for k, v in tree.items()}
        biases = {f"{name}_bias": tree["qkv_bias"][:, i] for i, name in enumerate("qkv")}
        return {**{k: v for k, v in tree.items() if k != "qkv_bias"}, **biases}

    return of(params)


@functools.cache
def case_network(case):
    """Our network, its parameters, and the places of the names."""
    config = case.config
    cells = round(config["clusters"] ** 0.5)
    pyramid = ScalePyramid(((config["side"],) * 2,))
    channels = case.outputs["latents"].shape[1]
    transformer = XAR(
        pyramid,
        config["classes"],
        channels,
        config["enc"],
        config["width"],
        config["heads"],
        decoder_depth=config["dec"],
        cells=cells,
    )
    codec = Latent(pyramid, channels)
    network = Network(transformer, LinearVelocity(codec.target, config["width"]))
    abstract = nn.unbox(jax.eval_shape(network.init_params, jax.random.key(0)))
    abstract = jax.eval_shape(joined, abstract)
    params, slots = read_params(case.state(), ROWS, abstract)
    return network, codec, parted(params), slots


def cells_of(network, latents):
    """[B, K, n, c] of latents NCHW."""
    tokens = nhwc(latents).reshape(len(latents), network.denoiser.pyramid.length, -1)
    return by_cell(network, tokens[:, network.denoiser.order])


def by_cell(network, tokens):
    return tokens.reshape(len(tokens), network.denoiser.entities.num_levels, -1, tokens.shape[-1])


def check_cells(case):
    network = case_network(case)[0]
    case.equal(cells_of(network, case.outputs["latents"]), "cells")
    back = case.outputs["cells"].reshape(
        len(case.outputs["cells"]), network.denoiser.pyramid.length, -1
    )
    side = case.config["side"]
    back = back[:, np.argsort(network.denoiser.order)].reshape(len(back), side, side, -1)
    case.equal(nchw(back), "x_from_cells")
    angles = angles_by_level(network.denoiser.pyramid, case.config["width"] // case.config["heads"])
    angles = np.repeat(angles[network.denoiser.order], 2, 1)
    case.close(np.cos(angles), "rope_cos")
    case.close(np.sin(angles), "rope_sin")


def check_loss(case):
    (network, codec, params, slots), outputs = case_network(case), case.outputs
    labels, train_labels = (jnp.asarray(outputs[x]) for x in ("labels", "train_labels"))
    times = jnp.asarray(outputs["t"])
    data, noise = (jnp.asarray(outputs[x]) for x in ("cells", "eps"))
    data, noise = (x.reshape(len(x), -1, x.shape[-1]) for x in (data, noise))
    objective = FlowMatching(network, VQVAE(codec))

    @jax.jit
    def run(params, labels):
        t = jnp.repeat(times, data.shape[1] // times.shape[1], 1)[..., None]
        noisy = (1 - t) * data + t * noise
        (hidden, _), seen = network.denoiser.apply(
            {"params": params["transformer"]},
            noisy,
            labels,
            times=times,
            capture_intermediates=lambda module, _: module.name == "time",
        )
        (time,) = seen["intermediates"]["time"]["__call__"]
        condition = params["transformer"]["class_embedding"][labels][:, None] + time
        return noisy, condition, network.head.apply({"params": params["head"]}, hidden)

    noisy, condition, velocity = run(params, labels)
    case.close(by_cell(network, noisy), "x_t")
    case.close(condition, "condition")
    case.close(by_cell(network, velocity), "velocity")

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        losses = [
            objective.error(params, data, times, noise, asked).mean()
            for asked in (labels, train_labels)
        ]
        return losses[1], losses

    (_, losses), grads = loss(params)
    case.close(losses[0], "loss")
    case.close(losses[1], "train_loss")
    check_grad_norms(joined(grads), slots, case.grad_norms["all"])


@dataclasses.dataclass(frozen=True, eq=False)
class GivenNoise(NextEntity):
    """Begins with the noise of a case, and adds that of its steps."""

    noise: Any = None
    added: Any = None

    def start_noise(self, keys, shape, level):
        return jnp.asarray(self.noise[:, level])

    def step_noise(self, keys, shape, level):
        added = jnp.asarray(self.added[:, :, level])
        return lambda number: added[jnp.minimum(number, len(added) - 1)]


def generate(case, sampling, guidance):
    """Latents NCHW."""
    network, codec, params, _ = case_network(case)
    outputs, labels = case.outputs, jnp.asarray(case.outputs["labels"])
    decoder = GivenNoise(guidance, sampling, outputs["noise"], outputs["sde_noise"])
    keys = jax.random.split(jax.random.key(0), len(labels))
    run = jax.jit(lambda params: decoder(network, params, codec, {}, labels, keys).features)
    return nchw(run(params))


def check_samples(case):
    config, outputs, steps = case.config, case.outputs, case.config["steps"]
    sde = FlowSampling(steps, 1.0, solver="euler_maruyama")
    entities = case_network(case)[0].denoiser.entities
    times = sde.at(0, entities).times
    case.close(times, "sde_t_grid", 1e-6)
    case.equal(np.floor(times[:-1].astype("f4") * np.float32(1000)).astype("i4"), "sde_timesteps")
    guided = LinearGuidance(config["cfg"] - 1)
    case.close(generate(case, sde, guided), "sample_sde")
    case.close(generate(case, sde, ConstantGuidance(0.0)), "sample_sde_unguided")
    ode = FlowSampling(steps, 1.0, uniform=True)
    case.close(generate(case, ode, guided), "sample_ode")
    first, last = (int(outputs["disa_steps"][i]) for i in (0, -1))
    disa = dataclasses.replace(sde, num_steps=first, last_num_steps=last, annealing="linear")
    found = [disa.at(k, entities).num_steps for k in range(entities.num_levels)]
    case.equal(found, "disa_steps")
    case.close(generate(case, disa, guided), "sample_sde_disa")


CHECKS = {"cells": check_cells, "loss": check_loss, "samples": check_samples}

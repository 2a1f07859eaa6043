"""MAR: what encoder and decoder say, the loss, the iterations and the latents that are drawn.

Source of the numbers: LTH14/mar fe470ac.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from family import mar_diffloss

from var_jax.codecs.latent import Latent
from var_jax.decoding.guidance import ConstantGuidance, LinearGuidance
from var_jax.decoding.random_order import RandomOrder, masked_after
from var_jax.heads.diffusion import DiffusionSampling
from var_jax.network import Network
from var_jax.objectives.masked import over_masked
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.mar import MAR


def side(config):
    return config["img_size"] // config["vae_stride"] // config["patch_size"]


@functools.cache
def case_network(case):
    """Our network and its parameters."""
    config, state = case.config, case.state()
    channels, width = config["vae_embed_dim"] * config["patch_size"] ** 2, "encoder_embed_dim"
    assert config[width] == config["decoder_embed_dim"]
    assert config["encoder_num_heads"] == config["decoder_num_heads"]
    transformer = MAR(
        ScalePyramid(((side(config),) * 2,)),
        config["class_num"],
        channels,
        config["encoder_depth"],
        config[width],
        config["encoder_num_heads"],
        decoder_depth=config["decoder_depth"],
        num_buffer=config["buffer_size"],
        mlp_ratio=config["mlp_ratio"],
    )
    net = config["diffloss_w"], config["diffloss_d"]
    head = mar_diffloss.head_of(channels, config[width], *net)
    params = {
        "transformer": transformer_params(state, config),
        "head": mar_diffloss.read_params(mar_diffloss.of_net(state), config["diffloss_d"]),
    }
    network = Network(transformer, head)
    expected = nn.unbox(jax.eval_shape(network.init_params, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)
    return network, params


def transformer_params(state, config):
    """Our parameters of encoder and decoder. A bias of keys moves all logits of a query alike."""
    heads, width = config["encoder_num_heads"], config["encoder_embed_dim"]

    def linear(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def block(name):
        first, second = (norm(f"{name}.norm{i}") for i in (1, 2))
        out = linear(f"{name}.attn.proj")
        q_bias, _, v_bias = state[f"{name}.attn.qkv.bias"].reshape(3, heads, -1)
        return {
            "norms": {
                "scale": np.stack([first["scale"], second["scale"]]) - 1,
                "bias": np.stack([first["bias"], second["bias"]]),
            },
            "attention": {
                "qkv_kernel": state[f"{name}.attn.qkv.weight"].T.reshape(width, 3, heads, -1),
                "q_bias": q_bias,
                "v_bias": v_bias,
                "out": out | {"kernel": out["kernel"].reshape(heads, -1, width)},
            },
            "mlp": {"up": linear(f"{name}.mlp.fc1"), "down": linear(f"{name}.mlp.fc2")},
        }

    def stack(name):
        blocks = [block(f"{name}_blocks.{i}") for i in range(config[f"{name}_depth"])]
        return {"blocks": jax.tree.map(lambda *x: np.stack(x), *blocks)}

    return {
        "class_embedding": np.concatenate([state["class_emb.weight"], state["fake_latent"]]),
        "encoder_position": state["encoder_pos_embed_learned"][0],
        "decoder_position": state["decoder_pos_embed_learned"][0],
        "state_position": state["diffusion_pos_embed_learned"][0],
        "mask_embedding": state["mask_token"][0],
        "token_projection": linear("z_proj"),
        "decoder_projection": linear("decoder_embed"),
        "input_norm": norm("z_proj_ln"),
        "encoder_norm": norm("encoder_norm"),
        "decoder_norm": norm("decoder_norm"),
        "encoder": stack("encoder"),
        "decoder": stack("decoder"),
    }


def check_network(case):
    (network, params), outputs, config = case_network(case), case.outputs, case.config
    length = network.mar.pyramid.length
    masked = np.argsort(outputs["orders"], 1) < np.ceil(length * config["mask_rate"])
    np.testing.assert_array_equal(masked, outputs["mask"])
    repeats, labels = config["diffusion_batch_mul"], jnp.asarray(outputs["labels"])
    batch = len(labels)

    def by_example(x):
        """Rows that repeat the batch's tokens, as one long row of tokens an example."""
        x = jnp.asarray(x).reshape(repeats, batch, length, *x.shape[1:])
        return jnp.moveaxis(x, 0, 1).reshape(batch, repeats * length, *x.shape[3:])

    def rows(x):
        return np.moveaxis(np.reshape(x, (batch, repeats, length)), 1, 0).reshape(-1)

    @jax.jit
    def run(params, patches):
        hidden, seen = network.mar.apply(
            {"params": params["transformer"]},
            patches,
            labels,
            masked=jnp.asarray(masked),
            capture_intermediates=lambda module, _: module.name == "encoder_norm",
        )
        terms = network.head.apply(
            {"params": params["head"]},
            jnp.tile(hidden, (1, repeats, 1)),
            jnp.tile(patches, (1, repeats, 1)),
            by_example(outputs["loss_t"]),
            by_example(outputs["loss_noise"]),
            method="terms",
        )
        loss = sum(terms).reshape(batch, repeats, length).mean(1)
        (encoded,) = seen["intermediates"]["encoder_norm"]["__call__"]
        return hidden, encoded, terms, over_masked(loss, jnp.asarray(masked)).mean()

    hidden, encoded, terms, loss = run(params, jnp.asarray(outputs["patches"]))
    known = network.mar.num_buffer + (~masked).sum(1)
    assert set(known) == {outputs["encoder_out"].shape[1]} and known[0] < encoded.shape[1]
    case.close(encoded[:, : known[0]], "encoder_out")
    case.close(hidden, "decoder_out")
    for found, name in zip(terms, ("loss_mse", "loss_vb"), strict=True):
        case.close(rows(found), name)
    case.close(loss, "loss")


def guidance(settings):
    rules = {"linear": LinearGuidance, "constant": ConstantGuidance}
    return rules[settings.get("cfg_schedule", "linear")](settings["cfg"] - 1)


def check_iterations(case):
    for i, settings in enumerate(case.config["schedules"]):
        length, count = settings["seq_len"], settings["num_iter"]
        case.equal(-np.diff([length, *masked_after(length, count)]), f"schedule{i}_counts")
        decoder = RandomOrder(guidance(settings), num_iterations=count)
        case.close(np.array(decoder.weights(length)) + 1, f"schedule{i}_cfg", 1e-6)


@dataclasses.dataclass(frozen=True, eq=False)
class GivenOrder(RandomOrder):
    """Tokens in a given order."""

    order: Any = None

    def draw_order(self, keys, length):
        return jnp.asarray(self.order)


@dataclasses.dataclass(frozen=True, eq=False)
class GivenNoise(Network):
    """A network whose draws take the noise of a token where its key stands in a table.

    Attributes:
      keys: of all tokens.
      noise: [tokens, step, channels], with what begins behind the steps.
    """

    keys: Any = None
    noise: Any = None

    def sample(self, params, hiddens, weights, keys, settings):
        same = jax.random.key_data(keys)[:, None] == jax.random.key_data(self.keys)
        token = same.all(-1).argmax(1)
        latents = self.head.apply(
            {"params": params["head"]},
            lambda step: self.noise[token, step][:, None],
            hiddens,
            weights,
            settings,
            method="denoise",
        )
        return latents, latents


def check_samples(case):
    (network, params), outputs, config = case_network(case), case.outputs, case.config
    length, labels = network.mar.pyramid.length, jnp.asarray(outputs["labels"])
    codec = Latent(network.mar.pyramid, network.mar.code_dim)
    keys = jax.random.split(jax.random.key(0), len(labels))
    token_keys = jax.vmap(jax.random.split, out_axes=1)(keys)[1]
    each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    token_keys = each(token_keys, jnp.arange(length)).reshape(-1)
    for i, settings in enumerate(config["sample"]):
        spaced = settings["num_sampling_steps"]
        steps = int(spaced.removeprefix("ddim"))
        sampling = DiffusionSampling(
            steps, settings["temperature"], "stride" if "ddim" in spaced else "even"
        )
        times = sampling.at(0, ScalePyramid(((1, 1),))).times
        case.equal(times, f"sample{i}_timestep_map")
        noise = [outputs["step_noise"][:, :, :steps], outputs["init_noise"][:, :, None]]
        noise = jnp.asarray(np.concatenate(noise, 2)).reshape(len(token_keys), steps + 1, -1)
        given = GivenNoise(network.transformer, network.head, keys=token_keys, noise=noise)
        count = settings["num_iter"]
        stages = 2 if i == 0 else 1
        decoder = GivenOrder(guidance(settings), sampling, count, stages, outputs["orders"])
        case.close(np.array(decoder.weights(length)) + 1, f"sample{i}_cfg", 1e-6)
        left = np.array(masked_after(length, count))
        rank = np.argsort(outputs["orders"], 1)
        case.equal(1 + (rank[..., None] < left).sum(-1), f"sample{i}_predicted_at")

        asked = labels if settings["labels"] else jnp.full_like(labels, config["class_num"])
        run = jax.jit(decoder, static_argnums=(0, 2))
        found = np.asarray(run(given, params, codec, {}, asked, keys).targets)
        p, n = config["patch_size"], side(config)
        found = found.reshape(len(found), n, n, -1, p, p)
        found = np.einsum("bhwcpq->bchpwq", found).reshape(outputs[f"sample{i}_latents"].shape)
        case.close(found, f"sample{i}_latents", 1e-3)


CHECKS = {"network": check_network, "iterations": check_iterations, "samples": check_samples}

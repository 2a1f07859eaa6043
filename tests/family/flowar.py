"""FlowAR: latents, flow head and its sampling. The trunk is written out here.

Source of the numbers: Qinyu-Allen-Zhao/DiSA 283fa59, folder FlowAR_DiSA.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from family.case import by_level, nhwc

from var_jax.codecs.latent import Latent
from var_jax.heads.flow import FlowHead, FlowSampling
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import rms_norm
from var_jax.transformer.rotary import angles_by_level, rotate_pairs


def pyramid_of(case):
    return ScalePyramid.from_patch_nums(case.config["scale"])


def codec_of(case):
    return Latent(pyramid_of(case), code_dim=case.outputs["latents"].shape[1])


def head_of(case):
    config = case.config
    return FlowHead(
        pyramid_of(case),
        codec_of(case).target,
        config["width"],
        net_width=config["head_width"],
        net_depth=config["head_depth"],
        cross=config["cross"],
    )


def head_params(case):
    """The parameters of the head from those of `flownet`."""
    state = {
        name.removeprefix("flownet."): value
        for name, value in case.state().items()
        if name.startswith("flownet.")
    }
    width, depth = case.config["head_width"], case.config["head_depth"]
    head_dim = 64
    heads = width // head_dim

    def linear(name, out=None):
        """{'kernel', 'bias'} with the outputs in shape `out`."""
        weight = state[f"{name}.weight"].T
        found = {"kernel": weight.reshape(-1, *out) if out else weight}
        if f"{name}.bias" in state:
            bias = state[f"{name}.bias"]
            found["bias"] = bias.reshape(out) if out else bias
        return found

    def attention(name, parts):
        found = {}
        for own, (official, first, count) in parts.items():
            weight = state[f"{name}.{official}.weight"].reshape(count, width, -1)[first]
            found[own] = {"kernel": weight.T.reshape(-1, heads, head_dim)}
        out = linear(f"{name}.proj")
        found["out"] = {**out, "kernel": out["kernel"].reshape(heads, head_dim, width)}
        return found

    def block(i):
        name = f"res_blocks.{i}"
        qkv = {"query": ("qkv", 0, 3), "key": ("qkv", 1, 3), "value": ("qkv", 2, 3)}
        found = {
            "attention": attention(f"{name}.attn", qkv),
            "mlp": {
                "gate": linear(f"{name}.mlp.fc1_g"),
                "up": linear(f"{name}.mlp.fc1_x"),
                "down": linear(f"{name}.mlp.fc2"),
            },
        }
        if not case.config["cross"]:
            return {**found, "adaln": linear(f"{name}.ada_lin", (6, width))}
        kv = {"query": ("q", 0, 1), "key": ("kv", 0, 2), "value": ("kv", 1, 2)}
        return {
            **found,
            "cross_attention": attention(f"{name}.crossattn", kv),
            "adaln_attention": linear(f"{name}.ada_lin_attn", (3, width)),
            "adaln_mlp": linear(f"{name}.ada_lin_mlp", (3, width)),
            "query_norm": state[f"{name}.norm2_1.weight"],
            "key_norm": state[f"{name}.norm2_2.weight"],
        }

    blocks = [block(i) for i in range(depth)]
    return {
        "velocity": {
            "latents": linear("input_proj"),
            "state": linear("cond_embed"),
            "time": {"up": linear("time_embed.mlp.0"), "out": linear("time_embed.mlp.2")},
            "blocks": jax.tree.map(lambda *x: np.stack(x), *blocks),
            "adaln": linear("final_layer.adaLN_modulation.1", (2, width)),
            "out": linear("final_layer.linear"),
        }
    }


def embed(case, labels, inputs):
    """The trunk's embeddings, without positions."""
    state = jax.tree.map(jnp.asarray, case.state())
    rows = inputs @ state["z_proj.weight"].T + state["z_proj.bias"]
    return jnp.concatenate([state["class_emb.weight"][labels][:, None], rows[:, 1:]], 1)


def trunk(case, labels, inputs):
    """Hidden states z [B, n, C] of the first levels, from what they read."""
    config, state = case.config, jax.tree.map(jnp.asarray, case.state())
    heads, width = config["heads"], config["width"]
    pyramid, length = pyramid_of(case), inputs.shape[1]
    level = pyramid.level_ids[:length]
    mask = level[:, None] >= level[None]
    angles = angles_by_level(pyramid, width // heads)[:length]
    condition = jax.nn.silu(state["class_emb.weight"][labels])[:, None]

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def table(name):
        return state[f"{name}_pos_embed_learned"][:, :length]

    def norm(name, x):
        return rms_norm(x) * state[f"{name}.weight"]

    def block(name, x):
        six = linear(f"{name}.ada_lin.1", condition).reshape(-1, 1, 6, width)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (six[:, :, i] for i in range(6))
        qkv = linear(f"{name}.attn.qkv", rms_norm(x) * (1 + scale1) + shift1)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, -1), 2, 0)
        q, k = rotate_pairs(q, angles), rotate_pairs(k, angles)
        logits = jnp.einsum("bqnh,bknh->bnqk", q, k) * (width // heads) ** -0.5
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
        y = jnp.einsum("bnqk,bknh->bqnh", weights, v).reshape(x.shape)
        x = x + gamma1 * linear(f"{name}.attn.proj", y)
        y = rms_norm(x) * (1 + scale2) + shift2
        gate = jax.nn.gelu(linear(f"{name}.mlp.fc1_g", y), approximate=False)
        y = linear(f"{name}.mlp.fc2", gate * linear(f"{name}.mlp.fc1_x", y))
        return x + gamma2 * y

    x = norm("z_proj_ln", embed(case, labels, inputs) + table("encoder"))
    for i in range(config["enc"]):
        x = block(f"encoder_blocks.{i}", x)
    x = linear("decoder_embed", norm("encoder_norm", x)) + table("decoder")
    for i in range(config["dec"]):
        x = block(f"decoder_blocks.{i}", x)
    return norm("decoder_norm", x) + table("diffusion")


def lesson_of(case):
    latents = jnp.asarray(nhwc(case.outputs["latents"]))
    return codec_of(case).apply({}, latents, method="lesson")


def check_inputs(case):
    lesson = lesson_of(case)
    case.close(lesson.targets, "targets")
    case.close(embed(case, case.outputs["labels"], lesson.inputs), "embedded_input")
    case.close(trunk(case, case.outputs["labels"], lesson.inputs), "z")


def check_loss(case):
    head, params, outputs = head_of(case), head_params(case), case.outputs
    pyramid, lesson = pyramid_of(case), lesson_of(case)
    noise, times = jnp.asarray(by_level(outputs, "eps")), jnp.asarray(outputs["t"])

    t = jnp.repeat(times, np.array(pyramid.sizes), axis=1)[..., None]
    noisy = (1 - t) * lesson.targets + t * noise
    case.close(noisy, "x_t")

    @jax.jit
    def run(params, hidden):
        velocity = head.apply(
            {"params": params},
            noisy,
            times,
            hidden,
            method=lambda head, *args: head.velocity(*args, pyramid),
        )
        loss = head.apply(
            {"params": params}, hidden, lesson.targets, times, noise, pyramid, method="error"
        )
        return velocity, jnp.stack([x.mean(1) for x in pyramid.split(loss)], 1), loss

    velocity, by_scale, loss = run(params, outputs["z"])
    case.close(velocity, "velocity")
    case.close(by_scale, "loss_per_scale")
    # Every token counts the same: VAR's mean but for a constant.
    case.close(loss.sum(1).mean() / pyramid.sizes[-1], "loss")
    hidden = trunk(case, outputs["train_labels"], lesson.inputs)
    case.close(run(params, hidden)[2].sum(1).mean() / pyramid.sizes[-1], "train_loss")


def sampling_of(case, steps):
    # Only 50 steps are of equal size.
    uniform = tuple(n == 50 for n in steps)
    return FlowSampling(tuple(steps), case.config["guidance"], uniform)


def check_times(case):
    pyramid = ScalePyramid.from_patch_nums((1,))
    names = [name for name in case.outputs if name.startswith("t_grid_")]
    assert names
    for name in names:
        number = int(name.removeprefix("t_grid_"))
        times = sampling_of(case, (number,)).at(0, pyramid).times
        case.close(times, name, 1e-6)
        seen = np.floor(times[:-1].astype(np.float32) * np.float32(1000)).astype(np.int32)
        case.equal(seen, f"timesteps_{number}")


def generate(case, cfg, steps):
    """(latents of each level, the features) from the case's noise."""
    codec, head, pyramid = codec_of(case), head_of(case), pyramid_of(case)
    params, labels = head_params(case), case.outputs["labels"]
    sampling = sampling_of(case, steps)
    null = np.full_like(labels, case.config["classes"])
    inputs, carry, levels = [jnp.zeros((len(labels), 1, codec.code_dim))], None, []
    think = jax.jit(functools.partial(trunk, case))

    @functools.partial(jax.jit, static_argnums=(3, 4))
    def integrate(params, noise, hiddens, weights, settings):
        return head.apply({"params": params}, noise, hiddens, weights, settings, method="integrate")

    for k in range(pyramid.num_levels):
        read = jnp.concatenate(inputs, 1)
        t = (cfg - 1) * pyramid.progress(k)
        asked, weights = ((labels, null), (1 + t, -t)) if t else ((labels,), (1.0,))
        hiddens = tuple(think(x, read)[:, pyramid.level(k)] for x in asked)
        noise = case.outputs[f"noise_{k}"]
        latents = integrate(params, noise, hiddens, weights, sampling.at(k, pyramid))
        carry, following = codec.apply({}, carry, k, latents, method="advance")
        inputs.append(following)
        levels.append(latents)
    return levels, codec.apply({}, carry, method="finish")


def check_samples(case):
    config, outputs = case.config, case.outputs
    levels, latents = generate(case, config["cfg"], outputs["sample_steps_requested"].tolist())
    for k, level in enumerate(levels):
        case.close(level, f"sample_scale_{k}")
    case.close(np.transpose(latents, (0, 3, 1, 2)), "sample_latents")
    steps = [config["lower"]] * len(levels)
    _, latents = generate(case, 1.0, steps)
    case.close(np.transpose(latents, (0, 3, 1, 2)), "sample_unguided_latents")


CHECKS = {
    "inputs": check_inputs,
    "loss": check_loss,
    "times": check_times,
    "samples": check_samples,
}

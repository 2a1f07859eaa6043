"""HMAR's next-scale stage against its public code; the masked stage is not compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from family.case import (
    by_level,
    check_grad_norms,
    check_teacher_inputs,
    close_where_kept,
    loss_and_gradient,
    nchw,
    next_scale_draws,
    pyramid,
    read_params,
    residual_codec,
)

from var_jax.context import OwnScale
from var_jax.convert import official, var
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.objectives.level_weights import LogNormalWeights
from var_jax.objectives.likelihood import Likelihood
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR


@functools.cache
def network(case):
    """The next-scale branch, its parameters, and the places of the combined model's names."""
    config = case.config
    shared = config["depth"] - config["n_layers_train"]
    width = config.get("width", 64 * config["depth"])
    transformer = VAR(
        pyramid(case),
        config["ncls"],
        config["Cvae"],
        config["depth"],
        width,
        config.get("heads", config["depth"]),
        context=OwnScale(),
        qk_norm=config["l2"],
        shared_adaln=config["saln"],
    )
    made = Network(transformer, CategoricalHead(config["V"], width))

    def plain(name):
        """A name of the combined model as a VAR alone has it; None: of the masked branch."""
        if name.startswith("mask_"):
            return None
        kind, *rest = name.split(".")
        if kind == "ns_blocks":
            kind, rest = "blocks", [str(int(rest[0]) + shared), *rest[1:]]
        if kind == "word_embed_bias":
            kind, rest = "word_embed", ["bias"]
        kind = {"base_blocks": "blocks", "ns_head": "head", "ns_head_nm": "head_nm"}.get(kind, kind)
        return ".".join([kind, *rest])

    names = {plain(name): name for name in case.state()}
    state = {plain(name): array for name, array in case.state().items() if plain(name)}
    abstract = official.abstract_network(made)
    params, slots = read_params(state, var.ROWS, abstract, var.BUFFERS)
    return made, params, {names[name]: slot for name, slot in slots.items()}


def check_logits(case):
    made, params, _ = network(case)
    first = np.zeros((case.config["B"], pyramid(case).sizes[0], case.config["Cvae"]), np.float32)
    inputs = jnp.concatenate([first, case.outputs["teacher_forcing_input"]], 1)

    @jax.jit
    def run(params, labels):
        hidden, _ = made.hidden(params, inputs, labels)
        return made.head.apply({"params": params["head"]}, hidden)

    labels = case.outputs["labels"]
    case.close(run(params, labels), "nsp_logits")
    case.close(run(params, np.full_like(labels, case.config["ncls"])), "nsp_logits_uncond")


def check_loss_weights(case):
    case.close(LogNormalWeights().weights(pyramid(case)), "loss_weight_lognorm")
    published = ScalePyramid.for_image_size(256)
    levels = published.split(LogNormalWeights().weights(published), axis=0)
    case.close([part.sum() for part in levels], "loss_weight_lognorm_official_per_scale")


def check_training(case):
    made, params, slots = network(case)
    module, codec_params = residual_codec(case)
    objective = Likelihood(made, VQVAE(module), weights=LogNormalWeights())
    frozen = {"tokenizer": {"codec": codec_params}}
    batch = {
        "tokens": jnp.asarray(by_level(case.outputs, "tokens")),
        "label": jnp.asarray(case.outputs["train_labels"]),
    }

    value, grads = loss_and_gradient(objective, params, frozen, batch)
    tokens = jax.jit(objective.per_token)(params, frozen, batch)[0]
    case.close(tokens, "nsp_token_loss")
    case.close(value, "nsp_train_loss_lognorm")
    check_grad_norms(grads, slots, case.grad_norms["nsp"])


def check_generation(case, name, **settings):
    made, params, _ = network(case)
    labels, cfg = jnp.asarray(case.outputs["labels"]), case.config["cfg"]
    tokens, features, logits = next_scale_draws(
        made, params, residual_codec(case), labels, cfg, **settings
    )
    case.equal(tokens, f"{name}_tokens")
    case.close(nchw(features), f"{name}_f_hat")
    for k, level in enumerate(logits):
        close_where_kept(case, level, f"{name}_logits_{k}_0")


def check_greedy(case):
    check_generation(case, "nsp_greedy")


def check_sampled(case):
    noise = [case.outputs[f"gumbel_{k}_0"] for k in range(pyramid(case).num_levels)]
    filters = case.config["top_k"], case.config["top_p"]
    check_generation(case, "nsp_sampled", noise=noise, filters=filters)


CHECKS = {
    "teacher_inputs": check_teacher_inputs,
    "logits": check_logits,
    "loss_weights": check_loss_weights,
    "training": check_training,
    "greedy": check_greedy,
    "sampled": check_sampled,
}

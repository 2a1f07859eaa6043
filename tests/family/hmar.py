"""HMAR against its public code: next-scale stage, masked stage, and both together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from family.case import (
    by_level,
    check_grad_norms,
    check_teacher_forced,
    check_teacher_inputs,
    close_where_kept,
    loss_and_gradient,
    nchw,
    next_scale_draws,
    pyramid,
    read_params,
    residual_codec,
)

from var_jax.codecs.own_level import own_inputs
from var_jax.context import OwnScale
from var_jax.convert import official, var
from var_jax.convert.mapping import Row
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.masked import MaskedRefinement
from var_jax.heads.categorical import CategoricalHead, CategoricalSampling
from var_jax.network import Network
from var_jax.objectives.level_weights import LogNormalWeights
from var_jax.objectives.likelihood import Likelihood
from var_jax.objectives.masked import MaskedLikelihood
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.masked_branch import MaskedBranch
from var_jax.transformer.var import VAR


def masked_row(row):
    """The masked branch's row of an end's; None: shared."""
    for ours, theirs in (
        ("transformer/blocks", "blocks"),
        ("transformer/final_adaln", "head_nm"),
        ("head/", "head"),
    ):
        if row.ours.startswith(ours):
            return Row(
                "masked/" + row.ours.removeprefix("transformer/"),
                row.theirs.replace(theirs, f"mask_{theirs}", 1),
                row.axes,
            )
    return None


ROWS = (
    *var.ROWS,
    *filter(None, map(masked_row, var.ROWS)),
    Row("masked/mask_embedding", "mask_embed.weight", "1 c -> c"),
)
BUFFERS = (*var.BUFFERS, r"mask_blocks\.\d+\.attn\.zero_k_bias")


@functools.cache
def network(case):
    """The combined model, its parameters, and the places of the names."""
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
    branch = MaskedBranch(transformer, config["n_layers_train"])
    made = Network(transformer, CategoricalHead(config["V"], width), branch)

    def plain(name):
        """A name of the combined model as a VAR alone has it, or the masked branch's own."""
        kind, *rest = name.split(".")
        if kind == "ns_blocks":
            kind, rest = "blocks", [str(int(rest[0]) + shared), *rest[1:]]
        if kind == "word_embed_bias":
            kind, rest = "word_embed", ["bias"]
        kind = {"base_blocks": "blocks", "ns_head": "head", "ns_head_nm": "head_nm"}.get(kind, kind)
        return ".".join([kind, *rest])

    names = {plain(name): name for name in case.state()}
    state = {plain(name): array for name, array in case.state().items()}
    abstract = official.abstract_network(made)
    params, slots = read_params(state, ROWS, abstract, BUFFERS)
    return made, params, {names[name]: slot for name, slot in slots.items()}


def whole(case, name):
    """Inputs of all levels but the first, whose rows are not read."""
    first = np.zeros((case.config["B"], pyramid(case).sizes[0], case.config["Cvae"]), np.float32)
    return jnp.concatenate([first, case.outputs[name]], 1)


def check_logits(case):
    check_teacher_forced(case, *network(case)[:2], "nsp_logits")


def check_loss_weights(case):
    case.close(LogNormalWeights().weights(pyramid(case)), "loss_weight_lognorm")
    published = ScalePyramid.for_image_size(256)
    levels = published.split(LogNormalWeights().weights(published), axis=0)
    case.close([part.sum() for part in levels], "loss_weight_lognorm_official_per_scale")


def check_own_inputs(case):
    module, params = residual_codec(case)
    tokens = jnp.asarray(by_level(case.outputs, "tokens"))
    own = jax.jit(lambda tokens: own_inputs(module, params, tokens, module.pyramid))(tokens)
    case.close(own[:, module.pyramid.sizes[0] :], "own_input")


def drawn_mask(case):
    """The masked positions of the case as they were drawn, and bool [L]."""
    drawn = case.outputs["mask_positions"] + pyramid(case).sizes[0]
    return drawn, np.isin(np.arange(pyramid(case).length), drawn)


def check_masked_logits(case):
    made, params, _ = network(case)
    inputs, own = whole(case, "teacher_forcing_input"), whole(case, "own_input")
    mask = drawn_mask(case)[1]

    @jax.jit
    def run(params, labels, masked):
        masked = jnp.broadcast_to(masked, inputs.shape[:2])
        hidden = made.masked.hidden(
            params["masked"], params["transformer"], inputs, own, masked, labels
        )
        return made.head.apply({"params": params["masked"]["head"]}, hidden)

    labels = case.outputs["labels"]
    case.close(run(params, labels, mask), "mp_logits")
    case.close(run(params, labels, np.ones_like(mask)), "mp_logits_all_masked")
    case.close(run(params, labels, np.zeros_like(mask)), "mp_logits_none_masked")


def train_batch(case):
    return {
        "tokens": jnp.asarray(by_level(case.outputs, "tokens")),
        "label": jnp.asarray(case.outputs["train_labels"]),
    }


def check_training(case):
    made, params, slots = network(case)
    module, codec_params = residual_codec(case)
    objective = Likelihood(made, VQVAE(module), weights=LogNormalWeights())
    frozen = {"tokenizer": {"codec": codec_params}}
    batch = train_batch(case)
    value, grads = loss_and_gradient(objective, params, frozen, batch)
    tokens = jax.jit(objective.per_token)(params, frozen, batch)[0]
    case.close(tokens, "nsp_token_loss")
    case.close(value, "nsp_train_loss_lognorm")
    ours = {name: slot for name, slot in slots.items() if not name.startswith("mask_")}
    check_grad_norms(grads, ours, case.grad_norms["nsp"])


def check_masked_training(case):
    made, params, slots = network(case)
    module, codec_params = residual_codec(case)
    (drawn, mask), frozen = drawn_mask(case), {"tokenizer": {"codec": codec_params}}

    class Given(MaskedLikelihood):
        """With the case's mask."""

        def draw_mask(self, step):
            return jnp.asarray(mask)

    objective, batch = Given(made, VQVAE(module)), train_batch(case)
    value, grads = loss_and_gradient(objective, params, frozen, batch)
    tokens = jax.jit(objective.per_token)(params, frozen, batch, mask)[0]
    case.close(tokens[:, drawn], "mp_masked_token_loss")
    case.close(value, "mp_train_loss")
    ours = {name: slot for name, slot in slots.items() if name.startswith("mask_")}
    check_grad_norms(grads, ours, case.grad_norms["mp"])
    assert not any(
        np.any(x) for name in ("transformer", "head") for x in jax.tree.leaves(grads[name])
    )


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


class Draws:
    """`GivenDraws` where levels have several passes: noise and logits in their order."""

    def __init__(self, noise=None):
        self.noise, self.seen = noise, []

    def __call__(self, logits, level, pyramid):
        noisy = logits if self.noise is None else logits + self.noise[len(self.seen)]
        self.seen.append(logits)
        return jnp.where(noisy == noisy.max(-1, keepdims=True), 0.0, -jnp.inf)


def check_refined(case, name, cfg, noise=None, filters=(0, 0.0)):
    """Tokens and features, and the logits of every pass."""
    made, params, _ = network(case)
    counts = case.config["mask_schedule"]
    passes = [f"{k}_{i}" for k, counts in enumerate(counts) for i in range(len(counts))]
    module, codec_params = residual_codec(case)

    @jax.jit
    def run(params, labels, keys):
        draws = Draws(noise and [noise[place] for place in passes])
        decoder = MaskedRefinement(
            LinearGuidance(cfg),
            CategoricalSampling(*filters, processors=(draws,)),
            tuple(map(tuple, counts)),
            filtered_confidence=True,
        )
        found = decoder(made, params, module, codec_params, labels, keys)
        return found.targets, found.features, draws.seen

    labels = jnp.asarray(case.outputs["labels"])
    keys = jax.random.split(jax.random.key(0), len(labels))
    tokens, features, logits = run(params, labels, keys)
    for place, seen in zip(passes, logits, strict=True):
        close_where_kept(case, seen, f"{name}_logits_{place}")
    case.equal(tokens, f"{name}_tokens")
    case.close(nchw(features), f"{name}_f_hat")


def check_refined_greedy(case):
    check_refined(case, "greedy", case.config["cfg"])
    check_refined(case, "greedy2", case.config["cfg2"])


def check_refined_sampled(case):
    noise = {name.removeprefix("gumbel_"): x for name, x in case.outputs.items()}
    filters = case.config["top_k"], case.config["top_p"]
    check_refined(case, "sampled", case.config["cfg"], noise, filters)


CHECKS = {
    "teacher_inputs": check_teacher_inputs,
    "logits": check_logits,
    "loss_weights": check_loss_weights,
    "own_inputs": check_own_inputs,
    "masked_logits": check_masked_logits,
    "training": check_training,
    "masked_training": check_masked_training,
    "greedy": check_greedy,
    "sampled": check_sampled,
    "refined_greedy": check_refined_greedy,
    "refined_sampled": check_refined_sampled,
}

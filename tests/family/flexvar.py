"""FlexVAR against its public code: any schedule of one set of weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from family.case import (
    GivenDraws,
    check_grad_norms,
    close_where_kept,
    loss_and_gradient,
    nchw,
    nhwc,
    read_params,
)

from var_jax.codecs.ground_truth_vq import GroundTruthVQ
from var_jax.convert import official, var
from var_jax.convert.mapping import Row
from var_jax.decoding.guidance import ConstantGuidance, TenStepGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalHead, CategoricalSampling
from var_jax.heads.unknown_sizes import GreedyAtUnknownSizes
from var_jax.network import Network
from var_jax.objectives.curriculum import TrainedLevels
from var_jax.objectives.likelihood import Likelihood
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.resized_positions import ResizedPositions, sine_map
from var_jax.transformer.var import VAR

ROWS = (
    *(row for row in var.ROWS if row.ours not in ("transformer/position", "transformer/level")),
    Row("transformer/position", "pos_1LC", "1 c h w -> h w c"),
)
CODEC_ROWS = (Row("codec/codebook", "quantize.embedding.weight", "v z -> v z"),)
#: Sides that the public code samples from; larger ones than max_pn never.
KNOWN_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32)


def schedules(case):
    """The schedules of the teacher-forced outputs, on the grid of the features, by name."""
    grid = (case.config["side"],) * 2
    named = case.config["schedules"].items()
    return {name: ScalePyramid.from_patch_nums(sides, grid) for name, sides in named}


@functools.cache
def codec(case):
    """The codec and its parameters."""
    module = GroundTruthVQ(
        next(iter(schedules(case).values())), case.config["V"], case.config["Cvae"]
    )
    init = functools.partial(module.init, method="encode")
    features = np.zeros((1, *module.source.shape), np.float32)
    abstract = {"codec": nn.unbox(jax.eval_shape(init, jax.random.key(0), features)["params"])}
    params, _ = read_params(case.state("vae_layout"), CODEC_ROWS, abstract)
    return module, params["codec"]


@functools.cache
def network(case):
    """The network, its parameters, and the places of the official names."""
    config = case.config
    width = config.get("width", 64 * config["depth"])
    side = case.state()["pos_1LC"].shape[-1]
    transformer = VAR(
        codec(case)[0].pyramid,
        config["ncls"],
        config["Cvae"],
        config["depth"],
        width,
        config.get("heads", config["depth"]),
        positions=ResizedPositions(width, side),
        qk_norm=config["l2"],
        shared_adaln=config["saln"],
    )
    made = Network(transformer, CategoricalHead(config["V"], width))
    return made, *read_params(case.state(), ROWS, official.abstract_network(made), var.BUFFERS)


def check_teacher_inputs(case):
    module, params = codec(case)
    for name, pyramid in schedules(case).items():

        @jax.jit
        def run(features, pyramid=pyramid):
            return module.apply({"params": params}, features, pyramid, method="lesson")

        lesson = run(nhwc(case.outputs["features"]))
        case.equal(lesson.targets, f"tokens_{name}")
        case.close(lesson.inputs[:, pyramid.sizes[0] :], f"teacher_forcing_input_{name}")


def check_positions(case):
    made, params, _ = network(case)
    positions = made.transformer.positions.clone()
    for name, pyramid in schedules(case).items():
        found = positions.apply(
            {"params": {"position": params["transformer"]["position"]}},
            pyramid,
            range(pyramid.num_levels),
            method="added",
        )
        case.close(found[None], f"pos_{name}")
    start = sine_map(positions.side, positions.width)
    case.close(start[None, ::8, ::8].transpose(0, 3, 1, 2), "pos_map_init_every8")


def check_logits(case):
    made, params, _ = network(case)
    labels = case.outputs["labels"]
    for name, pyramid in schedules(case).items():
        first = np.zeros((len(labels), pyramid.sizes[0], case.config["Cvae"]), np.float32)
        inputs = np.concatenate([first, case.outputs[f"teacher_forcing_input_{name}"]], 1)

        @jax.jit
        def run(params, inputs, labels, pyramid=pyramid):
            hidden, _ = made.hidden(params, inputs, labels, pyramid=pyramid)
            return made.head.apply({"params": params["head"]}, hidden)

        case.close(run(params, inputs, labels), f"logits_{name}")
        nothing = np.full_like(labels, case.config["ncls"])
        case.close(run(params, inputs, nothing), f"logits_uncond_{name}")


def check_training(case):
    made, params, slots = network(case)
    module, codec_params = codec(case)
    frozen = {"tokenizer": {"codec": codec_params}}
    batch = {
        "features": jnp.asarray(nhwc(case.outputs["features"])),
        "label": jnp.asarray(case.outputs["train_labels"]),
    }
    for name, pyramid in schedules(case).items():
        objective = Likelihood(made, VQVAE(module), trained=TrainedLevels(pyramid))
        value, grads = loss_and_gradient(objective, params, frozen, batch)
        case.close(value, f"train_loss_{name}")
        check_grad_norms(grads, slots, case.grad_norms[name])


def check_generation(case, kind):
    """One kind of generation at all schedules of the case: 'greedy', 'greedy_llamagen', ..."""
    made, params, _ = network(case)
    module, codec_params = codec(case)
    config, labels = case.config, jnp.asarray(case.outputs["labels"])
    for name, settings in config["gen"].items():
        pyramid = ScalePyramid.from_patch_nums(settings["pn"])
        if kind == "greedy_llamagen":
            guidance = ConstantGuidance(config["cfg"] - 1)
        else:
            guidance = TenStepGuidance(config["cfg"], settings["max_pn"])
        noise, processors, filters = None, (), (0, 0.0)
        if kind == "sampled":
            noise = [case.outputs[f"gumbel_{name}_{k}"] for k in range(pyramid.num_levels)]
            known = tuple(side for side in KNOWN_SIDES if side <= settings["max_pn"])
            processors, filters = (GreedyAtUnknownSizes(known),), (config["top_k"], config["top_p"])

        @jax.jit
        def run(params, keys, guidance=guidance, noise=noise, rest=(processors, filters, pyramid)):
            draws = GivenDraws(noise)
            processors, filters, pyramid = rest
            sampling = CategoricalSampling(*filters, processors=(*processors, draws))
            decoder = NextScale(guidance, sampling, pyramid=pyramid)
            found = decoder(made, params, module, codec_params, labels, keys)
            return found.targets, found.features, jnp.concatenate(draws.seen, 1)

        found = run(params, jax.random.split(jax.random.key(0), len(labels)))
        tokens, features, logits = found
        case.equal(tokens, f"{kind}_{name}_tokens")
        case.close(nchw(features), f"{kind}_{name}_latent")
        close_where_kept(case, logits, f"{kind}_{name}_logits")


CHECKS = {
    "teacher_inputs": check_teacher_inputs,
    "positions": check_positions,
    "logits": check_logits,
    "training": check_training,
    **{
        kind: functools.partial(check_generation, kind=kind)
        for kind in ("greedy", "greedy_llamagen", "sampled")
    },
}

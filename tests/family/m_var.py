"""M-VAR against its public code, whose Mamba-2 is written there as the defining recurrence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from family.case import (
    by_level,
    check_generation,
    check_teacher_forced,
    check_teacher_inputs,
    loss_and_gradient,
    pyramid,
    read_params,
    residual_codec,
)

from var_jax.context import OwnScale, key_segments
from var_jax.convert import mapping, official, var
from var_jax.convert.mapping import Row
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.objectives.likelihood import Likelihood
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.attention import Attention, Visibility
from var_jax.transformer.mamba import Mamba2
from var_jax.transformer.var import VAR

#: Beside the letters of `var.ROWS`: n heads of h channels, p of b and c, s their channels, w places
#: of the convolution. A tensor that is several of our parameters has a name for each, with ':'.
ROWS = [
    Row(f"transformer/blocks/mixer/{ours}", f"blocks.{{stack}}.mamba.{theirs}", axes)
    for ours, theirs, axes in (
        ("A_log", "A_log", "n -> n"),
        ("D", "D", "n -> n"),
        ("dt_bias", "dt_bias", "n -> n"),
        ("z/kernel", "in_proj.weight:z", "(n h) c -> c n h"),
        ("x/kernel", "in_proj.weight:x", "(n h) c -> c n h"),
        ("bc/kernel", "in_proj.weight:bc", "(p s) c -> c p s"),
        ("dt/kernel", "in_proj.weight:dt", "n c -> c n"),
        ("conv_x/kernel", "conv1d.weight:x", "(n h) 1 w -> w n h"),
        ("conv_bc/kernel", "conv1d.weight:bc", "(p s) 1 w -> w p s"),
        ("conv_x/bias", "conv1d.bias:x", "(n h) -> n h"),
        ("conv_bc/bias", "conv1d.bias:bc", "(p s) -> p s"),
        ("norm/scale", "norm.weight", "(n h) -> n h"),
        ("out/kernel", "out_proj.weight", "c (n h) -> n h c"),
    )
]


@functools.cache
def network(case):
    """The network, its parameters, and the places of the names, those of parts with ':part'."""
    config = case.config
    width = config.get("width", 64 * config["depth"])
    mixer = Mamba2(width, chunk=7)
    transformer = VAR(
        pyramid(case),
        config["ncls"],
        config["Cvae"],
        config["depth"],
        width,
        config.get("heads", config["depth"]),
        context=OwnScale(),
        mixer=mixer,
        qk_norm=config["l2"],
    )
    made = Network(transformer, CategoricalHead(config["V"], width))
    inner = mixer.num_heads * mixer.head_dim
    ends = np.cumsum([inner, inner, 2 * mixer.state_dim])
    parts = {
        "in_proj.weight": (("z", "x", "bc", "dt"), ends),
        "conv1d.weight": (("x", "bc"), ends[:1]),
        "conv1d.bias": (("x", "bc"), ends[:1]),
    }
    state = {}
    for name, tensor in case.state().items():
        names, cuts = parts.get(".".join(name.split(".")[-2:]), ((), ()))
        if names:
            cut = zip(names, np.split(tensor, cuts), strict=True)
            state |= {f"{name}:{part}": value for part, value in cut}
        else:
            state[name] = tensor
    rows = [*var.ROWS, *ROWS]
    return made, *read_params(state, rows, official.abstract_network(made), var.BUFFERS)


def block(case, index):
    """The parameters of a block."""
    return jax.tree.map(lambda x: x[index], network(case)[1]["transformer"]["blocks"])


def check_mamba(case):
    layer = network(case)[0].transformer.mixer.layer("mixer")
    run = jax.jit(lambda params, x: layer.apply({"params": params}, x))
    output, state = run(block(case, 0)["mixer"], case.outputs["mamba_input"])
    case.close(output, "mamba_output")
    # One token after the other.
    x, state, found = case.outputs["mamba_input"], None, []
    run = jax.jit(lambda params, x, state: layer.apply({"params": params}, x, state))
    for i in range(x.shape[1]):
        y, state = run(block(case, 0)["mixer"], x[:, i : i + 1], state)
        found.append(y)
    case.close(np.concatenate(found, 1), "mamba_output")


def check_attention(case):
    transformer = network(case)[0].transformer
    visibility = Visibility(key_segments(transformer.pyramid, transformer.context))
    module = Attention(transformer.block_settings())

    @jax.jit
    def run(params, x):
        return module.apply({"params": params}, x, visibility)[0]

    output = run(block(case, 0)["attention"], case.outputs["attention_0_input"])
    case.close(output, "attention_0_output")


def check_logits(case):
    check_teacher_forced(case, *network(case)[:2], "logits")


def check_training(case):
    made, params, slots = network(case)
    module, codec_params = residual_codec(case)
    batch = {
        "tokens": jnp.asarray(by_level(case.outputs, "tokens")),
        "label": jnp.asarray(case.outputs["train_labels"]),
    }
    objective = Likelihood(made, VQVAE(module))
    frozen = {"tokenizer": {"codec": codec_params}}
    value, grads = loss_and_gradient(objective, params, frozen, batch)
    case.close(value, "train_loss")

    flat, squares = mapping.flatten(jax.device_get(grads)), {}
    for name, slot in slots.items():
        whole = name.partition(":")[0]
        square = np.linalg.norm(slot.to_theirs(flat[slot.path])) ** 2
        squares[whole] = squares.get(whole, 0.0) + square
    expected = case.grad_norms["all"]
    assert expected.keys() == squares.keys()
    largest = max(expected.values())
    for name, norm in expected.items():
        assert abs(squares[name] ** 0.5 - norm) <= 1e-4 * norm + 1e-7 * largest, name


def check_draws(case, name, sampled=False):
    check_generation(case, *network(case)[:2], name, case.config["cfg"], sampled)


CHECKS = {
    "mamba": check_mamba,
    "attention": check_attention,
    "teacher_inputs": check_teacher_inputs,
    "logits": check_logits,
    "training": check_training,
    "greedy": functools.partial(check_draws, name="greedy"),
    "sampled": functools.partial(check_draws, name="sampled", sampled=True),
}

"""CoDe (czg1225/CoDe): a large model drafts, a small one refines."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from family.case import GivenDraws, lazy_state, nchw

from var_jax.convert import mapping, official, var, vqvae
from var_jax.decoding import base
from var_jax.decoding.collaborative import Collaborative
from var_jax.decoding.guidance import LinearGuidance
from var_jax.heads.categorical import CategoricalSampling
from var_jax.heads.late_temperature import LateTemperature
from var_jax.objectives.divergence import divergence

GREEDY = CategoricalSampling(top_k=1, top_p=0.0)


@functools.lru_cache(maxsize=1)
def models(case):
    """Codec and its parameters; drafter and refiner with theirs."""
    state = lazy_state(case.state("vae_layout"))
    tokenizer = official.build_tokenizer(vqvae.infer(state, case.config["pn"]))
    slots = official.tokenizer_slots(tokenizer)
    codec = mapping.read(state, slots, official.abstract_tokenizer(tokenizer))["codec"]
    found = []
    for name in ("drafter", "refiner"):
        state = lazy_state(case.state(f"{name}_layout"))
        network = official.build_network(var.infer(state, case.config["pn"]))
        slots = official.network_slots(network)
        found.append((network, mapping.read(state, slots, official.abstract_network(network))))
    return tokenizer.codec, codec, *found


def generate(case, decoder):
    codec, codec_params, (network, params), refiner = models(case)

    @jax.jit
    def run(params, codec_params, own, labels, keys):
        made = decoder(network, params, codec, codec_params, labels, keys, own_params=own)
        return made.targets, made.features

    labels = case.outputs["labels"].astype(np.int32)
    keys = jax.random.split(jax.random.key(0), len(labels))
    return run(params, codec_params, {"refiner": refiner[1]}, labels, keys)


def compare(case, made, name):
    tokens, features = made
    case.equal(tokens, f"{name}_tokens")
    case.close(nchw(features), f"{name}_f_hat")


def alone(case):
    """N = K and N = 0."""
    rule, levels = LinearGuidance(case.config["cfg"]), len(case.config["pn"])
    refiner = models(case)[3][0]
    for which, drafted in (("drafter", levels), ("refiner", 0)):
        together = Collaborative(refiner, drafted, rule, GREEDY)
        compare(case, generate(case, together), f"{which}_only")


def greedy(case):
    rule, refiner = LinearGuidance(case.config["cfg"]), models(case)[3][0]
    for n in case.config["N"]:
        compare(case, generate(case, Collaborative(refiner, n, rule, GREEDY)), f"N{n}")


def handover(case):
    """What is handed over, and the logits of the first refined level from the one pass over it."""
    codec, codec_params, _, (network, params) = models(case)
    pyramid = network.transformer.pyramid
    labels = jnp.asarray(case.outputs["labels"], jnp.int32)
    for n in case.config["N"]:
        levels = pyramid.split(jnp.asarray(case.outputs[f"N{n}_tokens"]))[:n]
        keys = jax.random.split(jax.random.key(0), len(labels))
        state = base.start(network, labels, keys, paired=True)
        for k, target in enumerate(levels):
            carry, following = codec.apply(
                {"params": codec_params}, state.carry, k, target, method="advance"
            )
            state = state.replace(
                carry=carry, inputs=(*state.inputs, following), targets=(*state.targets, target)
            )
        case.close(nchw(state.carry), f"N{n}_f_hat_draft")
        case.close(jnp.concatenate(state.inputs[1:], 1), f"N{n}_token_hub")
        if n in case.config["logits_N"]:
            t = LinearGuidance(case.config["cfg"]).weight(n, pyramid)

            @jax.jit
            def logits(params, state, t=t):
                hiddens, _ = base.hidden_states(network, params, state)
                cond, uncond = (
                    network.head.apply({"params": params["head"]}, hidden) for hidden in hiddens
                )
                return (1 + t) * cond - t * uncond

            case.close(logits(params, state), f"N{n}_handover_logits")


def sampled(case):
    given, pyramid = case.config["sampled"], models(case)[0].pyramid
    sampling = CategoricalSampling(
        tuple(given["top_k"]),
        given["top_p"],
        processors=(
            LateTemperature(tuple(given["temperature"])),
            GivenDraws(pyramid.split(case.outputs["gumbel"])),
        ),
    )
    rule = LinearGuidance(given["cfg"])
    decoder = Collaborative(models(case)[3][0], given["N"], rule, sampling)
    compare(case, generate(case, decoder), "sampled")


def distilled(case):
    """The losses of given logits, with labels and without."""
    teacher, labels = (jnp.asarray(case.outputs[f"kd_{name}"]) for name in ("teacher", "labels"))
    for i, settings in enumerate(case.config["kd"]):
        alpha, temperature = settings["alpha"], settings["T"]

        def loss(student, alpha=alpha, temperature=temperature):
            own = -jnp.take_along_axis(jax.nn.log_softmax(student), labels[:, None], -1).mean()
            return alpha * divergence(teacher, student, temperature).mean() + (1 - alpha) * own

        student = jnp.asarray(case.outputs["kd_student"])
        case.close(loss(student), f"kd{i}_loss")
        case.close(jax.grad(loss)(student), f"kd{i}_grad_student")
        case.close(loss(student, alpha=1.0), f"kd{i}_loss_no_labels")


CHECKS = {
    "alone": alone,
    "greedy": greedy,
    "handover": handover,
    "sampled": sampled,
    "distilled": distilled,
}

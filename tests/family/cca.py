"""CCA (thu-ml/CCA): the trainer's losses, for networks that answer given logits."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.heads.categorical import CategoricalHead
from var_jax.objectives.contrastive import Contrastive
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.condition import ClassLabels


class Given:
    """A network whose parameters are its logits, under each example's own and other condition."""

    def __init__(self, case):
        vocab = case.config["V"]
        labels = ClassLabels(case.config["null_label"], width=1)
        self.transformer = types.SimpleNamespace(
            pyramid=ScalePyramid.from_patch_nums(case.config["pn"]), conditioning=lambda: labels
        )
        self.head, self.identity = identity_head(vocab)
        self.asked = []

    def hidden(self, params, inputs, given):
        self.asked.append(np.asarray(given))
        pairs = jnp.stack([params["own"], params["other"]], 1)
        return pairs.reshape(-1, *pairs.shape[2:]), None

    def loss(self, params, *args):
        return self.head.apply({"params": self.identity}, *args, method="loss")


def identity_head(vocab, smoothing=0.0):
    """A head whose logits are what it reads."""
    head = CategoricalHead(vocab, vocab, label_smoothing=smoothing)
    params = {"projection": {"kernel": np.eye(vocab, dtype="f4"), "bias": np.zeros(vocab, "f4")}}
    return head, params


def keys_that_drop(uniform, rate):
    """Keys of which those examples ask for nothing whose number is below the rate."""

    def drops(key):
        return jax.random.uniform(jax.random.split(key)[1]) < rate

    seeds = np.asarray(jax.jit(jax.vmap(drops))(jax.vmap(jax.random.key)(jnp.arange(1000))))
    wanted = np.asarray(uniform) < rate
    return jax.vmap(jax.random.key)(jnp.array([np.flatnonzero(seeds == w)[0] for w in wanted]))


def logits(case, which, rate):
    suffix = "" if rate > 0 else "_nodrop"
    names = {"own": f"{which}_logits{suffix}", "other": f"{which}_logits_rolled{suffix}"}
    return {name: jnp.asarray(case.outputs[key]) for name, key in names.items()}


def losses(case):
    pyramid = ScalePyramid.from_patch_nums(case.config["pn"])
    codec = ResidualVQ(pyramid, case.config["V"], 1, phi_ratio=0.0)
    tokenizer = types.SimpleNamespace(codec=codec)
    frozen = {"tokenizer": {"codec": {"codebook": np.zeros((case.config["V"], 1), "f4")}}}
    batch = {
        name: jnp.asarray(case.outputs[key], jnp.int32)
        for name, key in (("label", "labels"), ("tokens", "tokens"))
    }
    for name, given in case.config["cases"].items():
        rate, network = given["uncond_ratio"], Given(case)
        objective = Contrastive(
            network,
            tokenizer,
            form=given["loss_type"].lower(),
            beta=given["beta"],
            negative_weight=given["lambda_"],
            null_rate=rate,
        )
        keys = keys_that_drop(case.outputs["drop_uniform"], rate)
        frozen["reference"] = logits(case, "ref", rate)
        (value, aux), grads = jax.value_and_grad(objective.loss, has_aux=True)(
            logits(case, "policy", rate), frozen, (), batch, keys, 0
        )
        prefix = f"case_{name}"
        case.equal(network.asked[0][::2], f"{prefix}_labels_seen")
        case.equal(network.asked[0][1::2], f"{prefix}_labels_rolled_seen")
        np.testing.assert_array_equal(network.asked[0], network.asked[1])
        case.close(value, f"{prefix}_loss")
        case.close(grads["own"], f"{prefix}_grad_policy_logits", 1e-3)
        case.close(grads["other"], f"{prefix}_grad_policy_logits_rolled", 1e-3)
        gaps = [case.outputs[f"{prefix}_gap{which}"].mean() for which in ("", "_rolled")]
        found = [float(aux.metrics[which]) for which in ("gap", "gap_negative")]
        assert found == pytest.approx(gaps, rel=1e-4)
        if rate > 0:
            case.close(aux.metrics["gap"], f"{prefix}_chosen_reward")
            case.close(aux.metrics["gap_negative"], f"{prefix}_rejected_reward")
        if rate > 0 and not case.config["label_smooth"]:
            case.close(aux.metrics["loss_mean"], f"{prefix}_sftloss")


def smoothed_cross_entropy(case):
    target = jnp.asarray(case.outputs["tokens"], jnp.int32)
    found = [name for name in case.outputs if name.startswith("ce_smooth") and "_loss" in name]
    for name in found:
        smoothing = float(name.removeprefix("ce_smooth").removesuffix("_loss"))
        head, params = identity_head(case.config["V"], smoothing)

        def loss(x, head=head, params=params):
            return head.apply({"params": params}, x, target, method="loss")[0].mean()

        value, grad = jax.value_and_grad(loss)(jnp.asarray(case.outputs["policy_logits"]))
        case.close(value, name)
        case.close(grad, name.replace("_loss", "_grad"), 1e-3)


CHECKS = {"losses": losses, "smoothed_cross_entropy": smoothed_cross_entropy}

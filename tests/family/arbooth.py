"""ARBooth (jiwoogit/ARBooth): the losses of given logits."""

import jax
import jax.numpy as jnp

from var_jax.fields import Field
from var_jax.heads.bitwise import BitwiseHead
from var_jax.objectives.divergence import divergence
from var_jax.objectives.level_weights import LeadingWeights
from var_jax.pyramid import ScalePyramid


def instance(case):
    """Two logits of a bit lie beside each other."""
    pyramid = ScalePyramid.from_patch_nums(case.config["sides"])
    weights = LeadingWeights().weights(pyramid)
    case.close(weights * pyramid.length, "scale_weight")
    bits, target = case.config["bits"], Field("bits", (case.config["bits"],), "uint8", 2)
    head = BitwiseHead(target, 2 * bits)
    kernel = jnp.eye(2 * bits).reshape(2 * bits, bits, 2).swapaxes(1, 2)
    params = {"projection": {"kernel": kernel, "bias": jnp.zeros((2, bits))}}
    wanted = jnp.asarray(case.outputs["bits"]).astype(jnp.uint8)

    @jax.value_and_grad
    def loss(logits):
        found = head.apply({"params": params}, logits, wanted, method="loss")[0]
        return (found * weights).sum(1).mean()

    value, grad = loss(jnp.asarray(case.outputs["logits"]))
    case.close(value, "instance_loss")
    case.close(grad, "instance_grad")


def prior(case):
    """The softmax is over all logits of a token, as if they were those of codes."""

    @jax.value_and_grad
    def loss(logits):
        return case.config["reg_lambda"] * divergence(case.outputs["teacher_logits"], logits).mean()

    value, grad = loss(jnp.asarray(case.outputs["student_logits"]))
    case.close(value, "prior_loss")
    case.close(grad, "prior_grad_student")


CHECKS = {"instance": instance, "prior": prior}

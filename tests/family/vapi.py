"""VA-pi (Lil-Shake/VA-Pi): advantages of given rewards, and the losses of given logits."""

import jax
import jax.numpy as jnp

from var_jax.objectives.pixel_policy import advantages, policy_loss


def log_prob(logits, tokens):
    log_probs = jax.nn.log_softmax(jnp.asarray(logits))
    return jnp.take_along_axis(log_probs, jnp.asarray(tokens)[..., None], -1)[..., 0]


def losses(case):
    config, outputs = case.config, case.outputs
    temperature, clip = config["temperature"], config["adv_clip_max"]
    rewards = jnp.asarray(outputs["rewards"]).reshape(-1, config["num_generations"])
    found = advantages(rewards).reshape(-1)
    case.close(found, "advantages")
    advantage = config["adv_scale"] * jnp.clip(found, -clip, clip)
    before = log_prob(outputs["old_logits"] / temperature, outputs["tokens"])
    case.close(before, "old_token_log_probs")
    reference = log_prob(outputs["base_logits"] / temperature, outputs["tokens"])

    @jax.value_and_grad
    def loss(logits, reference, weight):
        policy = policy_loss(
            log_prob(logits / temperature, outputs["tokens"]),
            *(before, advantage),
            *(reference, config["kl_coef"], config["clip_range"]),
        )
        # The picture's own tokens are scored without a temperature.
        own = log_prob(logits, outputs["gt_tokens"]).mean()
        return (policy - weight * own) / config["gradient_accumulation_steps"]

    for name, *settings in (
        ("policy", None, 0.0),
        ("policy_kl", reference, 0.0),
        ("policy_kl_ce", reference, config["aux_ce_weight"]),
    ):
        value, grad = loss(jnp.asarray(outputs["new_logits"]), *settings)
        case.close(value, f"{name}_loss")
        case.close(grad, f"{name}_grad_new_logits")


CHECKS = {"losses": losses}

"""TTS-VAR (ali-vilab/TTS-VAR): what goes on in a search over a batch."""

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.decoding import selection


def rates(case):
    """exp(scale potential), and the probabilities that they are drawn with."""
    score, record = case.outputs["score"], case.outputs["scores_record"]
    for name in case.config["cal_types"]:
        kind, _, k = name.partition("_")
        for key in case.outputs:
            if not (key.startswith(f"{name}_at") and key.endswith("_rate")):
                continue
            level = int(key.removeprefix(f"{name}_at").removesuffix("_rate"))
            rewards = [*jnp.asarray(record.T[:level]), jnp.asarray(score)]
            worth = selection.potential(rewards, kind, int(k or 0))
            rate = np.exp(case.config["lam"] * np.asarray(worth))
            case.close(rate, key)
            case.close(rate / rate.sum(), key.replace("_rate", "_probs"))


def draws(case):
    uniform = case.outputs["uniform"][None]
    found = selection.resampled(case.outputs["score"][None], case.config["lam"], uniform)
    case.equal(found[0], "ids_by_inverse_cdf")


def clusters(case):
    features, count = case.outputs["patch_features"], case.config["target_num"]
    found = selection.representatives(selection.pooled(features), count)
    case.equal(found, "representatives_sorted")
    scores = jax.jit(selection.principal_scores)(features)
    case.close(scores, "pca_scores_sign_free")


CHECKS = {"rates": rates, "draws": draws, "clusters": clusters}

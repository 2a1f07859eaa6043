"""ScaleKV (StargazerX0/ScaleKV): which keys stay after each level, and what is attended to."""

import math

import jax.numpy as jnp
import numpy as np

from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import KeysValues
from var_jax.transformer.scale_kv import ScaleKV


def policy(case, budgets):
    config = case.config
    assert config["pooling"] == "maxpool"
    pyramid = ScalePyramid.from_patch_nums(config["sides"])
    return ScaleKV(
        pyramid,
        drafters=(0,),
        large=tuple(budget or 0 for budget in budgets),
        small=pyramid.length,
        base_capacity=config["base_capacity"],
        window=config["window_size"],
        neighbourhood=config["kernel_size"],
    )


def ours(x):
    """[B, heads, L, d] -> [1, B, L, heads, d]."""
    return jnp.asarray(np.swapaxes(x, 1, 2)[None])


def selection(case):
    out = case.outputs
    for name, budgets in case.config["budgets"].items():
        rule = policy(case, budgets)
        pyramid = rule.pyramid
        keys, values, queries = (ours(out[k]) for k in ("k", "v", f"q_score_{name}"))
        heads = keys.shape[3]

        def by_head(levels, kind, heads=heads):
            whole = jnp.concatenate([getattr(entry, kind) for entry in levels], 2)
            return whole.reshape(*whole.shape[:3], heads, -1)

        # A key's position comes along behind its value.
        position = jnp.arange(pyramid.length, dtype=jnp.float32)[:, None, None]
        position = jnp.broadcast_to(position, (*values.shape[:-1], 1))
        values, levels = jnp.concatenate([values, position], -1), ()
        for k in range(pyramid.num_levels):
            rows = pyramid.level(k)
            flat = (
                x[:, :, rows].reshape(*x.shape[:2], -1, heads * x.shape[4]) for x in (keys, values)
            )
            levels = (*levels, KeysValues(*flat, queries[:, :, rows]))
            seen = [by_head(levels, kind)[0] for kind in ("keys", "values")]
            q = ours(out["q_attention"])[0][:, rows]
            logits = jnp.einsum("bqhd,bkhd->bhqk", q, seen[0]) / math.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights = weights / weights.sum(-1, keepdims=True)
            attended = jnp.einsum("bhqk,bkhd->bhqd", weights, seen[1][..., :-1])
            case.close(attended, f"{name}_attention_scale{k}")
            levels = rule.compress(levels, 0, k)
            kept = by_head(levels, "values")[0, ..., -1]
            case.equal(jnp.swapaxes(kept, 1, 2).astype(jnp.int32), f"{name}_kept_scale{k}")
            assert kept.shape[1] == out[f"{name}_cache_lengths"][k]


def window(case):
    rule = policy(case, [case.config["window_size"]] * len(case.config["sides"]))
    for level, side in enumerate(case.config["sides"]):
        if f"window_side{side}" in case.outputs:
            case.equal(rule.observed(level), f"window_side{side}")


CHECKS = {"selection": selection, "window": window}

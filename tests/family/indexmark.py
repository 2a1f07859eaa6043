"""IndexMark (maifoundations/IndexMark): red codes give way to their green partners."""

import numpy as np

from var_jax.heads.index_mark import leaving, log_ratios, partners
from var_jax.quantizers.pairing import greedy_pairs, improved_pairs, similarities


def replaced(case):
    pairs, tokens = case.outputs["red_to_green"], case.outputs["tokens"]
    logits, vocab_size = case.outputs["logits"], case.config["V"]
    partner = partners(pairs, vocab_size)

    def of_tokens(x):
        return np.take_along_axis(np.asarray(x), tokens[..., None], -1)[..., 0]

    ratios = of_tokens(log_ratios(logits, partner))
    case.close(ratios, "log_ratio")
    green = np.zeros(vocab_size, bool)
    green[pairs[:, 1]] = True
    for q in case.config["percentiles"]:
        threshold = np.percentile(ratios, q)
        case.close(threshold, f"p{q}_threshold")
        moved = of_tokens(leaving(logits, pairs, threshold))
        case.equal(np.where(moved, partner[tokens], tokens), f"p{q}_tokens")
        case.equal(moved.sum(), f"p{q}_replaced")
        case.close(green[np.where(moved, partner[tokens], tokens)].mean(1), f"p{q}_green_rate")


def pairs(case):
    codebook = case.outputs["codebook"]
    greedy = greedy_pairs(codebook)
    case.equal(greedy, "greedy_pairs")
    cosine = similarities(codebook)
    total, best = (
        cosine[x[:, 0], x[:, 1]].sum()
        for x in (improved_pairs(codebook, greedy), case.outputs["max_weight_pairs"])
    )
    assert cosine[greedy[:, 0], greedy[:, 1]].sum() <= total <= best + 1e-5
    assert total >= 0.95 * best


CHECKS = {"replaced": replaced, "pairs": pairs}

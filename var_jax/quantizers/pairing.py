"""Pairs of codes that look alike, for watermarks that draw the one in place of the other."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def similarities(codebook: Float[np.ndarray, "V C"]) -> Float[np.ndarray, "V V"]:
    """Cosines of all codes with each other; -inf with themselves."""
    unit = codebook / np.maximum(np.linalg.norm(codebook, axis=1, keepdims=True), 1e-12)
    found = unit @ unit.T
    np.fill_diagonal(found, -np.inf)
    return found


def greedy_pairs(codebook: Float[np.ndarray, "V C"]) -> Int[np.ndarray, "P 2"]:
    """The most similar two codes, then the most similar two of the others, and so on (the public
    code of IndexMark). An odd number of codes leaves one alone.

    Returns:
      The smaller code of each pair first.
    """
    cosine = similarities(codebook)
    first, second = np.triu_indices(len(codebook), 1)
    order = np.argsort(-cosine[first, second], kind="stable")
    free, pairs = np.ones(len(codebook), bool), []
    for a, b in zip(first[order], second[order], strict=True):
        if free[a] and free[b]:
            free[a] = free[b] = False
            pairs.append((a, b))
            if 2 * len(pairs) >= len(codebook) - 1:
                break
    return np.array(pairs, np.int32).reshape(-1, 2)


def improved_pairs(
    codebook: Float[np.ndarray, "V C"], pairs: Int[np.ndarray, "P 2"]
) -> Int[np.ndarray, "P 2"]:
    """Pairs whose cosines add up to more: any two pairs swap partners while that helps.

    It comes near the matching of maximum weight, which the paper computes exactly.

    Args:
      codebook: of the codes.
      pairs: to begin with.
    """
    cosine, pairs = similarities(codebook), pairs.copy()
    while len(pairs) > 1:
        a, b = pairs.T
        own = cosine[a, b]
        straight = cosine[np.ix_(a, a)] + cosine[np.ix_(b, b)]
        crossed = cosine[np.ix_(a, b)] + cosine[np.ix_(b, a)]
        gain = np.triu(np.maximum(straight, crossed) - own[:, None] - own[None], 1)
        i, j = np.nonzero(gain > 1e-6)
        if not len(i):
            break
        order = np.argsort(-gain[i, j], kind="stable")
        free = np.ones(len(pairs), bool)
        for m, n in zip(i[order], j[order], strict=True):
            if free[m] and free[n]:
                free[m] = free[n] = False
                if straight[m, n] >= crossed[m, n]:
                    pairs[m], pairs[n] = (a[m], a[n]), (b[m], b[n])
                else:
                    pairs[m], pairs[n] = (a[m], b[n]), (b[m], a[n])
    pairs = np.sort(pairs, axis=1)
    return pairs[np.argsort(pairs[:, 0])]

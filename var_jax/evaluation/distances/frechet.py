"""Frechet distance and inception score from streamed features.

Means and covariances are accumulated in float64 around the running mean, so that they do not
depend on the order or the size of the batches beyond rounding.

Sources: Heusel et al. 2017 (arXiv 1706.08500); Salimans et al. 2016 (arXiv 1606.03498).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from flax import struct
from jaxtyping import Float

_ROWS = 512  # rows that one update of the covariance takes


@struct.dataclass
class GaussianStatistics:
    """Mean and covariance of features.

    Attributes:
      count: samples; 0 where a reference file does not say.
      mean: in float64.
      covariance: in float64, with the divisor count - 1.
    """

    count: int = struct.field(pytree_node=False)
    mean: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]


class GaussianAccumulator:
    """Mean and scatter matrix of a stream of features [n, D]."""

    def __init__(self, size: int):
        self.count = 0
        self.mean = np.zeros(size)
        self.scatter = np.zeros((size, size))
        self._pending: list[np.ndarray] = []

    def update(self, features: Float[np.ndarray, "n D"]) -> None:
        """Adds features."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"Features of shape {features.shape} are not [n, {len(self.mean)}].")
        self._pending.append(features)
        if sum(map(len, self._pending)) >= _ROWS:
            self._flush()

    def statistics(self) -> GaussianStatistics:
        """Mean and covariance of everything so far.

        Raises:
          ValueError: fewer than two samples.
        """
        self._flush()
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 samples, and there are {self.count}.")
        return GaussianStatistics(self.count, self.mean.copy(), self.scatter / (self.count - 1))

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = np.concatenate(self._pending).astype(np.float64)
        self._pending = []
        for start in range(0, len(rows), 2 * _ROWS):
            part = rows[start : start + 2 * _ROWS]
            mean = part.mean(0)
            centred = part - mean
            self._combine(len(part), mean, centred.T @ centred)

    def _combine(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Chan, Golub and LeVeque 1979, equation 2.1."""
        total = self.count + count
        if count == 0:
            return
        delta = mean - self.mean
        self.scatter += scatter
        if self.count:
            self.scatter += np.outer(delta, delta * (self.count * count / total))
        self.mean = self.mean + delta * (count / total)
        self.count = total


def statistics(features: Float[np.ndarray, "n D"]) -> GaussianStatistics:
    """Mean and covariance of features that are at hand."""
    accumulator = GaussianAccumulator(features.shape[1])
    accumulator.update(features)
    return accumulator.statistics()


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Squared Frechet (Wasserstein-2) distance of two Gaussians.

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)). With A = F F^T and B = G G^T the trace of the root
    is the sum of the singular values of F^T G: no root of a matrix that is not symmetric, no
    imaginary parts, and sound where covariances are singular (fewer samples than features).

    Raises:
      ValueError: different numbers of features, or numbers that are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"Statistics of {a.mean.shape[0]} and of {b.mean.shape[0]} features cannot be compared."
        )
    for values in (a.mean, a.covariance, b.mean, b.covariance):
        if not np.isfinite(values).all():
            raise ValueError("The statistics hold numbers that are not finite.")
    difference = a.mean.astype(np.float64) - b.mean.astype(np.float64)
    covariance_a = a.covariance.astype(np.float64)
    covariance_b = b.covariance.astype(np.float64)
    mixed = _factor(covariance_a).T @ _factor(covariance_b)
    if mixed.shape[0] > mixed.shape[1]:
        mixed = mixed.T
    eigenvalues = np.linalg.eigvalsh(mixed @ mixed.T)
    trace_root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    trace = np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace_root
    return float(difference @ difference + trace)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [D, rank] with F F^T = covariance: Cholesky's with pivoting, which reveals the rank."""
    size = len(covariance)
    lower, pivots, rank, info = scipy.linalg.lapack.dpstrf((covariance + covariance.T) / 2, lower=1)
    if info < 0:
        raise ValueError("A covariance could not be factored.")
    factor = np.empty((size, rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


class InceptionScoreAccumulator:
    """Inception score of a stream of logits, in float64 and without keeping them.

    Two numbers come out. The score of all samples does not depend on their order. ADM's
    evaluator averages the scores of consecutive chunks of 5,000 samples, which is the convention
    of published tables; from class-sorted samples that number is far too low.
    """

    def __init__(self, classes: int, chunk_size: int = 5000):
        self.chunk_size = chunk_size
        self._counts: list[int] = []
        self._entropies: list[float] = []  # sum over samples and classes of p log p
        self._sums: list[np.ndarray] = []  # sum over samples of p
        self._classes = classes

    def update(self, logits: Float[np.ndarray, "n classes"]) -> None:
        """Adds logits."""
        if logits.ndim != 2 or logits.shape[1] != self._classes:
            raise ValueError(f"Logits of shape {logits.shape} are not [n, {self._classes}].")
        start = 0
        while start < len(logits):
            if not self._counts or self._counts[-1] == self.chunk_size:
                self._counts.append(0)
                self._entropies.append(0.0)
                self._sums.append(np.zeros(self._classes))
            part = logits[start : start + self.chunk_size - self._counts[-1]]
            log_p = log_softmax(part)
            p = np.exp(log_p)
            self._counts[-1] += len(part)
            self._entropies[-1] += float((p * log_p).sum())
            self._sums[-1] += p.sum(0)
            start += len(part)

    @property
    def chunks(self) -> int:
        """Chunks begun."""
        return len(self._counts)

    def score(self) -> float:
        """Score of all samples together."""
        if not self._counts:
            raise ValueError("An inception score needs at least one sample.")
        return _score(sum(self._counts), sum(self._entropies), np.sum(self._sums, 0))

    def chunk_scores(self) -> Float[np.ndarray, " chunks"]:
        """Scores of consecutive chunks in float64; the last may have fewer samples."""
        chunks = zip(self._counts, self._entropies, self._sums, strict=True)
        return np.array([_score(*chunk) for chunk in chunks])

    def chunked(self) -> tuple[float, float]:
        """Mean and standard deviation of the chunks' scores."""
        scores = self.chunk_scores()
        return float(scores.mean()), float(scores.std())


def inception_score(logits: Float[np.ndarray, "n classes"], splits: int = 1) -> tuple[float, float]:
    """Mean and standard deviation of the inception score over equal consecutive splits.

    Args:
      logits: in the order given.
      splits: split i takes samples i N / splits to (i + 1) N / splits.
    """
    scores = []
    for i in range(splits):
        part = logits[i * len(logits) // splits : (i + 1) * len(logits) // splits]
        accumulator = InceptionScoreAccumulator(logits.shape[1], chunk_size=max(len(part), 1))
        accumulator.update(part)
        scores.append(accumulator.score())
    return float(np.mean(scores)), float(np.std(scores))


def log_softmax(logits: Float[np.ndarray, "*n classes"]) -> Float[np.ndarray, "*n classes"]:
    """Logarithm of the softmax over the last axis, float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _score(count: int, entropy: float, total: np.ndarray) -> float:
    """exp of the mean KL divergence of p(class | image) from the mean p(class)."""
    mean = total / count
    present = mean > 0
    return float(np.exp(entropy / count - (mean[present] * np.log(mean[present])).sum()))

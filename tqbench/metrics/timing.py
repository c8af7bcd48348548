"""Statistics of timed samples. Intervals are 95 % for what this machine did in this run, not for what the next run may do, and there is
none where samples are too few to give one.

Medians and quantiles lie between two ordered samples, as in a sign test: exact for independent samples of any distribution. Means and rates
have Student's interval, on the log scale, where tokens per second and seconds per token are the same thing upside down. Nothing is drawn
again: draws from few samples spread too little, and never reach beyond the longest one seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, sqrt
from statistics import median

import numpy as np
from numpy.typing import NDArray

from tqbench.core.record import Estimate
from tqbench.metrics.paired import BEYOND, ERROR, student

ENOUGH = 6  # rounds or repetitions: of fewer, not even the least and the most hold the median at 95 %
CONFIDENCE = 1 - ERROR

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Samples in short. `spread` is the middle half of them relative to the median."""

    median: float
    least: float
    p90: float
    spread: float


def spread(samples: Sequence[float]) -> Spread:
    """The summary of at least one sample."""
    middle, (quarter, three, nine) = median(samples), np.quantile(samples, (0.25, 0.75, 0.9))
    return Spread(middle, min(samples), float(nine), float(three - quarter) / middle)


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios with its interval, and the chance that this interval covers: below 95 % where there are few pairs."""

    median: float
    low: float
    high: float
    confidence: float
    pairs: int

    @property
    def estimate(self) -> Estimate:
        """As a metric, whose interval is one of 95 % or none."""
        return Estimate(self.median, self.low, self.high) if self.pairs >= ENOUGH else Estimate(self.median)


def ratio(tops: Sequence[float] | Array, bottoms: Sequence[float] | Array) -> Ratio:
    """Of top / bottom, pair by pair, so that what slows both down changes nothing."""
    ratios = sorted(float(top / bottom) for top, bottom in zip(tops, bottoms, strict=True))
    n = len(ratios)
    covers = np.maximum(0, 1 - 2 * np.cumsum(_chances(n, 0.5))[: (n + 1) // 2])  # between number k from either end
    cut = max(int((covers >= CONFIDENCE).sum()) - 1, 0)
    return Ratio(median(ratios), ratios[cut], ratios[n - 1 - cut], float(covers[cut]), n)


def quantile(samples: Array, q: float, scale: float = 1.0) -> Estimate:
    """A quantile of single samples. Without so many of them beyond it there is no interval."""
    value = scale * float(np.quantile(samples, q))
    if len(samples) < needed(q):
        return Estimate(value)
    ordered = scale * np.sort(samples)
    below = np.cumsum(_chances(len(samples), q))  # that at most so many samples lie below the true quantile
    low = max(0, int(np.searchsorted(below, ERROR / 2, side="right")) - 1)
    high = min(len(samples) - 1, int(np.searchsorted(below, 1 - ERROR / 2)))
    return Estimate(value, float(ordered[low]), float(ordered[high]))


def needed(q: float) -> int:
    """How many samples have enough of them beyond a quantile."""
    return round(BEYOND / (1 - q))


def _chances(n: int, q: float) -> Array:
    """Of 0 to n of n samples below the quantile."""
    k, ways = np.arange(n + 1), np.array([lgamma(i + 1) for i in range(n + 1)])
    return np.asarray(np.exp(ways[n] - ways - ways[::-1] + k * log(q) + (n - k) * log(1 - q)))


def rate(tokens: Array, seconds: Array) -> Estimate:
    """Tokens per second over all rounds together, hiccups included."""
    n, found = len(seconds), float(tokens.sum() / seconds.sum())
    if n < ENOUGH:
        return Estimate(found)
    error = float(np.sqrt(((tokens - found * seconds) ** 2).sum() * n / (n - 1)) / tokens.sum())
    reach = exp(student(1 - ERROR / 2, n - 1) * error)
    return Estimate(found, found / reach, found * reach)


def rate_again(tokens: Array, seconds: Array) -> Estimate:
    """The same of [repetitions, rounds] whose rounds do the same work in every repetition: only what differs between repetitions is
    chance, and that one round has more to do than another is not."""
    (repetitions, rounds), found = seconds.shape, float(tokens.sum() / seconds.sum())
    if repetitions < 2 or repetitions * rounds < ENOUGH:
        return rate(tokens.ravel(), seconds.ravel())
    error = sqrt(max(_alike(tokens, seconds), _in_proportion(tokens, seconds)))
    reach = exp(student(1 - ERROR / 2, rounds * (repetitions - 1)) * error)
    return Estimate(found, found / reach, found * reach)


def _alike(tokens: Array, seconds: Array) -> float:
    """The variance of a rate's logarithm where rounds stray by as many seconds each: others that take a moment now and then."""
    repetitions, total = len(seconds), float(tokens.sum())
    wrong = tokens - total / seconds.sum() * seconds
    wrong = wrong - wrong.mean(axis=0)
    return float((wrong**2).sum() * repetitions / (repetitions - 1)) / total**2


def _in_proportion(tokens: Array, seconds: Array) -> float:
    """The same where they stray by as large a share each, so that a round that does most of the work is most of the chance. What strays
    together in tokens and seconds, which are seconds too where the rate is a ratio, counts by how unevenly it weighs in the two."""
    repetitions, rounds = seconds.shape
    both = np.stack([tokens, seconds])
    typical = both.mean(axis=1, keepdims=True)
    apart, weights = both / typical - 1, typical[:, 0] / typical.sum(axis=2)
    noise = np.einsum("irk,jrk->ij", apart, apart) / (rounds * (repetitions - 1)) / repetitions
    weights = weights * np.array([[1.0], [-1.0]])
    return float(np.einsum("ik,ij,jk", weights, noise, weights))


def mean(values: Array) -> Estimate:
    """The mean over repetitions."""
    return rate(values, np.ones(len(values)))

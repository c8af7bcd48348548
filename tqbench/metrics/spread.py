"""Timings as figures: pure functions on a handful of samples, without any assumption on how they are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Samples in short. `spread` is the middle half of them relative to the median."""

    median: float
    least: float
    p90: float
    spread: float


def spread(samples: Sequence[float]) -> Spread:
    """The summary of at least one sample."""
    middle = median(samples)
    return Spread(middle, min(samples), quantile(samples, 0.9), (quantile(samples, 0.75) - quantile(samples, 0.25)) / middle)


def quantile(samples: Sequence[float], share: float) -> float:
    """Between the two nearest samples, linearly."""
    return float(np.quantile(samples, share))


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios with its interval, and the chance that this interval covers: below 95 % where there are few pairs."""

    median: float
    low: float
    high: float
    confidence: float
    pairs: int


def ratio(tops: Sequence[float], bottoms: Sequence[float]) -> Ratio:
    """Of top / bottom, pair by pair; the interval is between two ordered ratios, as in a sign test."""
    ratios = sorted(top / bottom for top, bottom in zip(tops, bottoms, strict=True))
    n = len(ratios)
    cut = max((k for k in range((n + 1) // 2) if _covers(n, k) >= CONFIDENCE), default=0)
    return Ratio(median(ratios), ratios[cut], ratios[n - 1 - cut], _covers(n, cut), n)


def _covers(n: int, cut: int) -> float:
    """The chance that the true median lies between the ordered values number `cut` and n − 1 − `cut`."""
    return max(0.0, 1 - sum(comb(n, i) for i in range(cut + 1)) / 2.0 ** (n - 1))

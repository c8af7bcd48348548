"""Statistics of timed rounds. Intervals are 95 % of a seeded bootstrap over rounds: what this machine did in this run, not what the
next one may do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tqbench.core.record import Estimate

ENOUGH = 6  # rounds: from fewer there is no interval
DRAWS = 1000

Array = NDArray[np.float64]


def rate(tokens: Array, seconds: Array) -> Estimate:
    """Tokens per second over all rounds together, hiccups included."""
    return _drawn(lambda i: tokens[i].sum(-1) / seconds[i].sum(-1), len(seconds))


def ratio(own: Array, seconds: Array) -> Estimate:
    """How many times as fast as the model's own cache: the median over rounds, each paired with the own one beside it."""
    return _drawn(lambda i: np.median((own / seconds)[i], axis=-1), len(seconds))


def quantile(seconds: Array, q: float, scale: float = 1.0) -> Estimate:
    """A quantile of single steps. Beyond the last few samples there is no interval."""
    found = _drawn(lambda i: scale * np.quantile(seconds[i], q, axis=-1), len(seconds))
    return found if len(seconds) * (1 - q) >= 1 else Estimate(found.value)


def mean(values: Array) -> Estimate:
    """The mean over repetitions."""
    return _drawn(lambda i: values[i].mean(-1), len(values))


def _drawn(statistic: Callable[[NDArray[np.int64]], Array], count: int) -> Estimate:
    """The statistic of all samples, with the percentile interval of resampled ones; `statistic` takes indices [draws, samples]."""
    value = float(statistic(np.arange(count)[None])[0])
    if count < ENOUGH:
        return Estimate(value)
    low, high = np.percentile(statistic(np.random.default_rng(0).integers(0, count, (DRAWS, count))), [2.5, 97.5])
    return Estimate(value, float(low), float(high))

"""Paired statistics with a block bootstrap: tokens of a window are not independent, so whole blocks of them are drawn.

A block is a window. Where there are fewer than `ENOUGH` windows, each is cut into equal pieces, as few as make `ENOUGH` blocks, and the
interval is rough: what the tokens of a window share is then not drawn. The same blocks are drawn for the scheme and its baseline.

Means of n blocks drawn from n blocks spread too little: their variance lacks the factor n / (n − 1), and their ends are a normal's where
Student's are due. So the ends are taken further out, at the percentiles where a normal sample would have its t interval (Hesterberg 2015).

What is never below 0 and seldom large, such as a KLD, needs more: windows that happen to lack the rare bad ones never show them, and both
the mean and its error come out too small. So such a mean is drawn in units of its own error, on the log scale (bootstrap-t); its upper
end lies where only half as many draws end as it may err by: simulated on a real model's scores, that holds. The share of tokens beyond a
value is such a mean, and quantiles have their interval from it (Woodruff 1952).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tqbench.core.record import Estimate
from tqbench.core.session import TokenScores

ENOUGH = 30  # windows: with fewer an interval is rough
ERROR = 0.05  # of an interval: how often it may miss
BEYOND = 10  # tokens: a quantile needs this many beyond it
DRAWS = 2000

Array = NDArray[np.float64]


def student(p: float, freedom: int) -> float:
    """A quantile of Student's t, by its expansion around the normal one: to a thousandth from 29 degrees of freedom on."""
    z = NormalDist().inv_cdf(p)
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum((term / freedom**k for k, term in enumerate(terms, 1)), 0.0)


def blocks(windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The block of each scored token, from the window of each scored token."""
    _, window, counts = np.unique(windows, return_inverse=True, return_counts=True)
    pieces = -(-ENOUGH // len(counts))
    offsets = np.arange(len(windows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(window * pieces + offsets * pieces // counts[window])


class Bootstrap:
    """Seeded resampling of blocks. Statistics are functions of means, so only per-block sums are drawn."""

    def __init__(self, block: NDArray[np.int64], seed: int = 0):
        _, self.block = np.unique(block, return_inverse=True)  # a short window may not fill all of its pieces
        self.count = int(self.block.max()) + 1 if len(block) else 0
        self.sizes = np.bincount(self.block, minlength=self.count).astype(np.float64)
        self.rng = np.random.default_rng(seed)
        enough = max(self.count, ENOUGH)
        tail = 100 * NormalDist().cdf(student(ERROR / 2, enough - 1) * (enough / (enough - 1)) ** 0.5)
        self.percentiles = tail, 100 - tail
        self.draws = self.rng.integers(0, self.count, (DRAWS, self.count)) if self.count else np.empty((0, 0), np.int64)

    def means(self, values: Array) -> tuple[float, Array]:
        """The mean, and the mean of each draw."""
        sums = np.bincount(self.block, weights=values, minlength=self.count)
        return float(values.mean()), sums[self.draws].sum(1) / self.sizes[self.draws].sum(1)

    def estimate(self, *values: Array, of: Callable[..., Array | float] = lambda mean: mean) -> Estimate:
        """A function of means, with its percentile interval."""
        pairs = [self.means(v) for v in values]
        drawn = np.asarray(of(*(draws for _, draws in pairs)))
        return Estimate(float(of(*(mean for mean, _ in pairs))), *self.ends(drawn))

    def positive(self, values: Array, of: Callable[..., Array | float] = lambda mean: mean) -> Estimate:
        """A rising function of the mean of values that are never below 0 and seldom large, with its bootstrap-t interval; with the
        other one where rounding leaves blocks below 0, or draws have no logarithm or no error."""
        sums = np.asarray(np.bincount(self.block, weights=values, minlength=self.count), np.float64)
        if not (sums >= 0).all():
            return self.estimate(values, of=of)
        mean, drawn = self.means(values)
        with np.errstate(divide="ignore", invalid="ignore"):  # draws of one block again and again
            units = np.log(drawn / mean) / self._error(sums, self.draws, drawn)
        if not np.isfinite(units).all():
            return self.estimate(values, of=of)
        low, high = np.percentile(units, [100 * ERROR / 4, 100 * (1 - ERROR / 2)])
        error = float(self._error(sums, np.arange(self.count)[None], np.array([mean]))[0])
        return Estimate(*(float(of(mean * np.exp(-unit * error))) for unit in (0.0, high, low)))

    def _error(self, sums: Array, draws: NDArray[np.int64], means: Array) -> Array:
        """The standard error of each draw's mean relative to it, from how its blocks differ."""
        squares, products, sizes = ((x * y)[draws].sum(1) for x, y in ((sums, sums), (sums, self.sizes), (self.sizes, self.sizes)))
        spread = np.maximum(0, squares - 2 * means * products + means**2 * sizes) * self.count / max(1, self.count - 1)
        return np.asarray(np.sqrt(spread) / sums[draws].sum(1))

    def quantile(self, values: Array, q: float) -> Estimate:
        """A quantile. If truly more tokens lie beyond its value than here, the true quantile has as many fewer beyond it here."""
        value = float(np.quantile(values, q))
        beyond = self.positive((values > value).astype(np.float64))
        if not beyond.value or not all(beyond.ends):
            return Estimate(value, value, float(values.max()))
        low, high = np.quantile(values, np.clip([1 - (1 - q) * beyond.value / end for end in beyond.ends], 0, 1))
        return Estimate(value, float(low), float(high))

    def ends(self, drawn: Array) -> tuple[float, float]:
        """The interval, from what each draw gave."""
        low, high = np.percentile(drawn, self.percentiles)
        return float(low), float(high)


def quality(scores: TokenScores, windows: NDArray[np.int64], seed: int = 0) -> dict[str, Estimate]:
    """Everything that is reported about a scheme against its baseline."""
    boot = Bootstrap(blocks(windows), seed)
    nll, base, kld = scores.nll, scores.base_nll, scores.kld
    exp = np.exp
    found = {
        "ppl": boot.estimate(nll, of=exp),
        "base_ppl": boot.estimate(base, of=exp),
        "dppl": boot.estimate(nll, base, of=lambda a, b: exp(a) - exp(b)),
        "ln_ratio": boot.estimate(nll - base),
        "kld": boot.positive(kld),
        "kld_max": Estimate(float(kld.max())),
        "rms_dp": boot.positive((exp(-nll) - exp(-base)) ** 2, of=np.sqrt),
        "top1": boot.estimate((scores.rank == 0).astype(np.float64)),
        "top5": boot.estimate((scores.rank < 5).astype(np.float64)),
    }
    quantiles = {"kld_median": 0.5, "kld_p90": 0.9, "kld_p99": 0.99, "kld_p999": 0.999}
    return found | {name: boot.quantile(kld, q) for name, q in quantiles.items() if len(kld) * (1 - q) >= BEYOND}


def baseline(nll: Array, windows: NDArray[np.int64], seed: int = 0) -> dict[str, Estimate]:
    """What is reported about the baseline itself."""
    return {"ppl": Bootstrap(blocks(windows), seed).estimate(nll, of=np.exp)}


def recut(first: Array, second: Array, windows: NDArray[np.int64], seed: int = 0) -> Estimate:
    """The same measurement twice, cut differently: the mean difference in nats per token, which would be 0 in exact arithmetic."""
    return Bootstrap(blocks(windows), seed).estimate(second - first)


def floor(nll: Array, gap: Estimate) -> float:
    """How far apart in ppl the two cuts may be, at 95 %: a difference below that means nothing."""
    reach = max(abs(gap.value), abs(gap.low or 0.0), abs(gap.high or 0.0))
    return float(np.exp(nll.mean()) * np.expm1(reach))


def worst_decile(values: Array, windows: NDArray[np.int64], positions: NDArray[np.int64], seed: int = 0) -> Estimate:
    """The mean over that tenth of the positions in a window where it is largest: what breaks late in the context shows here when the mean
    hides it. The interval is that of the tenth that was found, which errs upward if another is as bad; none where windows are few."""
    first, last = int(positions.min()), int(positions.max())
    decile = (positions - first) * 10 // (last - first + 1)
    sums, sizes = np.bincount(decile, weights=values, minlength=10), np.bincount(decile, minlength=10)
    worst = int(np.argmax(sums / np.maximum(1, sizes)))
    here = decile == worst
    found = Bootstrap(windows[here], seed).positive(values[here])
    return found if len(np.unique(windows)) >= ENOUGH else Estimate(found.value)


def by_position(scores: TokenScores, positions: NDArray[np.int64]) -> list[dict[str, float]]:
    """Mean ΔNLL and KLD in octaves of the position inside the window."""
    octave = np.floor(np.log2(np.maximum(positions, 1))).astype(np.int64)
    rows = []
    for o in np.unique(octave):
        here = octave == o
        rows.append(
            {
                "from": int(positions[here].min()),
                "to": int(positions[here].max()),
                "tokens": int(here.sum()),
                "dnll": float((scores.nll - scores.base_nll)[here].mean()),
                "kld": float(scores.kld[here].mean()),
            }
        )
    return rows

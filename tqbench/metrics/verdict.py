"""From an interval to a verdict: pass or fail only if the whole interval lies on one side of the limit.

Looking more than once, or judging more than one scheme, is more than one chance to err. So intervals are widened to a share of the 5 %:
a run's judgements by Holm's procedure (`judge` in `report/gate.py`), the looks of one cell by shares that add up to one, whatever the
looks have in common. The last look, after twice the windows of the one before, has half of it, the one before a quarter, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from tqbench.core.gate import Gate
from tqbench.core.record import Estimate, Record
from tqbench.metrics.paired import ENOUGH, ERROR, student

Decision = Literal["pass", "fail"]
# Metrics that are never below 0 and seldom large: the arms of their intervals grow by factors, the upper one faster than the lower.
SKEWED = {"kld", "kld_median", "kld_p90", "kld_p99", "kld_p999", "kld_worst_decile", "rms_dp"}
QUANTILES = {"kld_median", "kld_p90", "kld_p99", "kld_p999"}  # what lies beyond an arm is uneven: it grows twice
TAILS = {"kld_p99": 100, "kld_worst_decile": 100}  # windows: what a few tokens decide needs more of them before its interval holds


def least(metric: str) -> int:
    """How many windows a verdict on this metric needs."""
    return TAILS.get(metric, ENOUGH)


def looks(windows: int) -> list[int]:
    """After how many windows to look when up to so many may be scored: with `ENOUGH` of them for the first time, then at every doubling."""
    found = [windows]
    while found[0] >= 2 * ENOUGH:
        found.insert(0, -(-found[0] // 2))
    return found


def shares(count: int) -> list[float]:
    """What each of so many looks may spend of the error; together all of it."""
    return [2.0 ** -max(1, count - 1), *(2.0 ** (k - count) for k in range(1, count))] if count > 1 else [1.0]


def widened(estimate: Estimate, share: float, blocks: int, metric: str = "") -> Estimate:
    """An interval of 95 % over so many blocks, widened to one that errs with only a share of 5 %. Both arms grow alike."""
    if share >= 1 or estimate.low is None or estimate.high is None:
        return estimate
    freedom, value = max(blocks, ENOUGH) - 1, estimate.value
    factor = student(1 - share * ERROR / 2, freedom) / student(1 - ERROR / 2, freedom)
    factor **= 2 if metric in QUANTILES else 1
    if metric in SKEWED and estimate.low > 0:
        return Estimate(value, *(value * (end / value) ** factor for end in (estimate.low, estimate.high)))
    return Estimate(value, *(value + factor * (end - value) for end in (estimate.low, estimate.high)))


def paid(record: Record, metric: str, estimate: Estimate, others: int = 1) -> Estimate:
    """The interval as it may be shown, or judged beside so many open ones: of a cell that was looked at while it grew, what its look may
    spend. Who stops at a lucky moment has an interval of 95 % only then."""
    share = record.text.get("look", {}).get("share", 1.0) / others
    return widened(estimate, share, record.text.get("windows", ENOUGH), metric)


def allowed(gate: Gate) -> tuple[float, float]:
    """The values that a gate accepts."""
    if gate.better == "high":
        return gate.limit, math.inf
    return (-gate.limit if gate.sided == "two" and gate.better is None else -math.inf), gate.limit


def decide(gate: Gate, estimate: Estimate) -> Decision | None:
    """Whether all of the interval keeps the limit, or all of it breaks it; None while neither is so."""
    (least, most), (low, high) = allowed(gate), estimate.ends
    if least <= low and high <= most:
        return "pass"
    return "fail" if low > most or high < least else None


def factor(gate: Gate, estimate: Estimate) -> float | None:
    """How many times the tokens bring the interval to one side of the limits; its half-width shrinks as 1/√n. None: no number does."""
    needs = list(_needs(gate, estimate))
    if any(reach > 1e4 * room for reach, room in needs):  # 10⁸ times the tokens: on the limit for all that anyone will see
        return None
    return max((reach / room) ** 2 for reach, room in needs if room)


def _needs(gate: Gate, estimate: Estimate) -> Iterator[tuple[float, float]]:
    """How far an arm of the interval reaches, and how far it may."""
    value, (least, most), (low, high) = estimate.value, allowed(gate), estimate.ends
    if least <= value <= most:
        yield max(0.0, high - value), most - value
        yield max(0.0, value - low), value - least
    elif value > most:
        yield max(0.0, value - low), value - most
    else:
        yield max(0.0, high - value), least - value

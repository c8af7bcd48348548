"""Shares of a few prompts with Wilson intervals, and how many prompts still agree after so many tokens (Kaplan and Meier).

A share of few has no symmetric interval: 20 of 20 is not certainty. Wilson's stays inside 0 and 1 and says how little 20 are. Where
trajectories end before anything could differ, survival has Greenwood's variance; its interval is Wilson's for as many prompts as would give
that variance if all had gone on, which is the plain one where all do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from tqbench.core.record import Estimate
from tqbench.metrics.paired import ERROR

Z = NormalDist().inv_cdf(1 - ERROR / 2)


def share(hits: float, of: float) -> Estimate:
    """So many of so many, with Wilson's interval."""
    p, reach = hits / of, Z * Z / of
    middle = (p + reach / 2) / (1 + reach)
    half = Z / (1 + reach) * (p * (1 - p) / of + reach / (4 * of)) ** 0.5
    return Estimate(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)))


@dataclass(frozen=True)
class Step:
    """After so many tokens: the prompts that were still compared at the last of them, and the share that agrees up to there."""

    after: int
    at_risk: int
    share: Estimate


def survival(agreed: Sequence[int], ended: Sequence[bool]) -> list[Step]:
    """The curve, from how many tokens each prompt agreed; `ended`: it went as far as there was anything to compare, without differing."""
    steps, left, spread = [Step(0, len(agreed), share(len(agreed), len(agreed)))], 1.0, 0.0
    for token in range(max(agreed, default=0) + 1):
        risk = sum(n > token if over else n >= token for n, over in zip(agreed, ended, strict=True))
        lost = sum(n == token and not over for n, over in zip(agreed, ended, strict=True))
        if not risk:
            break
        left *= 1 - lost / risk
        spread += lost / (risk * (risk - lost)) if risk > lost else 0.0
        steps.append(Step(token + 1, risk, _share(left, spread, risk, len(agreed))))
    return steps


def _share(left: float, spread: float, risk: int, all_of_them: int) -> Estimate:
    """Wilson's interval for the number of prompts that Greenwood's variance stands for."""
    if left in (0.0, 1.0):
        return share(left * risk, risk) if left else share(0, all_of_them)
    return share(left * (count := (1 - left) / (left * spread)), count)


def half_life(steps: Sequence[Step]) -> Estimate | None:
    """After how many tokens half of the prompts or fewer still agree; None if more do to the end. Its interval (Brookmeyer and Crowley)
    is where the curve's own holds one half; there is none where that does not end."""
    value, low, high = (
        _first(steps, shares)
        for shares in ([step.share.value for step in steps], [step.share.ends[0] for step in steps], [step.share.ends[1] for step in steps])
    )
    if value is None:
        return None
    return Estimate(value, low, high) if low is not None and high is not None else Estimate(value)


def _first(steps: Sequence[Step], shares: Sequence[float]) -> float | None:
    return next((float(step.after) for step, one in zip(steps, shares, strict=True) if one <= 0.5), None)


def share_change(gained: int, lost: int, of: int) -> Estimate:
    """By how much a share of paired answers changed, where so many became right and so many wrong. The interval joins Wilson's of both,
    which cannot both happen to one answer (Newcombe's method with their correlation)."""
    up, down = share(gained, of), share(lost, of)
    both = (up.value * down.value / max(1e-12, (1 - up.value) * (1 - down.value))) ** 0.5
    change = up.value - down.value
    low = _reach(up.value - up.ends[0], down.ends[1] - down.value, both)
    high = _reach(up.ends[1] - up.value, down.value - down.ends[0], both)
    return Estimate(change, max(-1.0, change - low), min(1.0, change + high))


def _reach(one: float, other: float, both: float) -> float:
    return float((one**2 + other**2 + 2 * both * one * other) ** 0.5)


ABLE = 0.5  # a baseline that answers fewer of its questions has too little that a scheme could lose


def able(base: Estimate) -> bool:
    """Whether the model itself can do what is asked."""
    return base.value >= ABLE

"""Whether there are grounds to judge at all. An estimate needs an interval, windows enough for it to hold, and, if it is a time, a machine
that was left alone; what is counted is a point and needs none of that."""

from __future__ import annotations

import math

from tqbench.core.gate import POINTS, RATIOS
from tqbench.core.record import Estimate, Record
from tqbench.metrics import timing
from tqbench.metrics.paired import ENOUGH
from tqbench.metrics.shares import able
from tqbench.metrics.verdict import least
from tqbench.report.text import exact, interval

BY_ROUNDS = ("decode_tps", "decode_ratio", "captured_tps", "captured_ratio", "prefill_ratio")  # a sample is a round
CAPTURED = ("captured_tps", "captured_ratio", "base_captured_tps")
DISTURBED = "was timed while other processes used the machine: time it again on a quiet one, or judge a ratio to the own cache"


def lacking(record: Record, metric: str, estimate: Estimate) -> tuple[str, int | None] | None:
    """Why this figure decides nothing, and how many scored tokens would make it; None if it may be judged."""
    needed = least(metric)
    windows = record.text.get("windows", needed)
    if windows < needed and not exact(estimate):
        tokens = round_up(record.text.get("scored", 0) * needed / max(windows, 1))
        rests = f"rests on {windows} window{'s' if windows != 1 else ''}"
        return (
            f"{rests}, an interval {'' if needed == ENOUGH else 'of it '}needs {needed}: score {tokens:,} tokens",
            tokens,
        )
    if metric in POINTS or exact(estimate):
        return None
    if estimate.low is None or estimate.high is None:
        return _no_interval(record, metric), None
    return (DISTURBED, None) if disturbed(record, metric) and metric not in RATIOS else None


def disturbed(record: Record, metric: str) -> bool:
    """Whether others used the machine while this was timed: captured steps are timed apart from all others."""
    timed = record.device.get("captured", {}) if metric in CAPTURED else record.timing
    return bool(timed.get("disturbed"))


def failing(record: Record) -> str | None:
    """Why nothing can be judged by what was asked: the model itself cannot do it."""
    base = record.metrics.get("needle_base")
    if base is None or able(base):
        return None
    return (
        f"the baseline itself answers {interval(base, 'needle_base')} of these questions, so there is too little that a scheme could lose: "
        "ask at a shorter context, or a model that can"
    )


def _no_interval(record: Record, metric: str) -> str:
    repetitions = record.timing.get("repetitions")
    if not repetitions:
        return "has no interval"
    more = math.ceil(_samples(metric) * repetitions / _seen(record, metric))
    return f"has no interval from {repetitions} repetition{'s' if repetitions > 1 else ''}; {more} or more give one"


def _samples(metric: str) -> int:
    """How many samples give it an interval."""
    _, mark, percent = metric.partition("_ms_p")
    return timing.needed(int(percent) / 100) if mark else timing.ENOUGH


def _seen(record: Record, metric: str) -> int:
    """From how many samples it comes: a quantile from single steps, some from rounds, the others from whole repetitions."""
    repetitions = int(record.timing["repetitions"])
    if "_ms_p" in metric:
        return repetitions * int(record.cell.params.get("new", 1))
    return int(record.timing.get("rounds", repetitions)) if metric in BY_ROUNDS else repetitions


def round_up(tokens: float) -> int:
    """Two digits are more than an estimate of an estimate deserves."""
    step: int = 10 ** max(0, math.floor(math.log10(max(tokens, 1))) - 1)
    return math.ceil(tokens / step) * step

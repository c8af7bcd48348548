"""When a cell that is scored until its gates are decided will be: what the intervals of an earlier cell say about the looks to come.

The arms of an interval shrink as 1/√n, and its middle is taken to stay where it is. It will not, so this is a first estimate, good enough
to know whether to wait for coffee or for tomorrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt

from tqbench.core.gate import POINTS, Gate
from tqbench.core.record import Cell, Estimate
from tqbench.corpora import recipes
from tqbench.metrics.paired import ENOUGH
from tqbench.metrics.verdict import decide, factor, least, looks, shares, widened


@dataclass(frozen=True)
class Earlier:
    """What a cell measured that has been."""

    cell: Cell
    metrics: Mapping[str, Estimate]
    scored: int


@dataclass(frozen=True)
class Expected:
    """The look that decides. `share`: of all windows that the cell may run; above 1 none of its looks does, and None is never."""

    share: float | None
    tokens: int | None
    earlier: Earlier


def expected(cell: Cell, seen: list[Earlier]) -> Expected | None:
    """By the earlier cell of the same scheme that scored the most, of the same text if there is one."""
    judging = cell.params.get("judging")
    if judging is None:
        return None
    gates = [Gate.of(gate) for gate in judging["gates"]]
    alike = [one for one in seen if _alike(one.cell, cell) and all(_tells(one, gate.metric) for gate in gates)]
    if not alike:
        return None
    earlier = max(alike, key=lambda one: (one.cell.corpus == cell.corpus, one.scored))
    spans = recipes.spans(cell.params)
    scored = list(accumulate(span.last - span.first for span in spans))
    ends = looks(len(spans))
    for end, share in zip(ends, shares(len(ends)), strict=True):
        mine = share / max(1, judging["beside"])
        at = [widened(_after(earlier, gate, scored[end - 1]), mine, end, gate.metric) for gate in gates]
        if all(end >= least(gate.metric) and decide(gate, estimate) for gate, estimate in zip(gates, at, strict=True)):
            return Expected(end / len(spans), spans[end - 1].end, earlier)
    more = [factor(gate, estimate) for gate, estimate in zip(gates, at, strict=True)]
    most = None if any(one is None for one in more) else max(one or 0.0 for one in more)
    return Expected(most, None if most is None else int(most * spans[-1].end), earlier)


def _alike(a: Cell, b: Cell) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in ("model", "backend", "dtype", "task", "scheme"))


def _tells(one: Earlier, metric: str) -> bool:
    """Whether it has an interval that may shrink: no tokens, or too few to be cut into blocks, leave none."""
    found = one.metrics.get(metric)
    return found is not None and one.scored >= ENOUGH and (found.low is not None or metric in POINTS)


def _after(earlier: Earlier, gate: Gate, scored: int) -> Estimate:
    """Its interval if so many tokens had been scored."""
    found, shrink = earlier.metrics[gate.metric], sqrt(earlier.scored / scored)
    low, high = (found.value + shrink * (end - found.value) for end in found.ends)
    return Estimate(found.value, low, high)

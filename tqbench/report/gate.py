"""The gate: limits to verdicts, verdicts to an exit code. A gate passes or fails only if the whole interval does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tqbench.core.record import Cell, Estimate, Record
from tqbench.metrics.paired import FEW_BLOCKS
from tqbench.report.run import Gate, Run, ends
from tqbench.report.text import interval, title

Status = Literal["pass", "fail", "inconclusive", "skipped"]
HIGH_IS_GOOD = ("top1", "top5")  # their limit is a lower bound
LOWEST_PPL = 1.5  # below this a baseline has seen the text, or nothing was scored
EXIT = {
    0: "passed",
    1: "a gate failed",
    3: "a required cell did not complete",
    4: "an audit failed: a scheme did not do what it declares",
    5: "inconclusive, or nothing was measured",
}


@dataclass(frozen=True)
class Verdict:
    """What a gate says about a cell; `cell` is None if no cell matches. `tokens`: about how many scored tokens would decide."""

    gate: Gate
    cell: Cell | None
    status: Status
    reason: str
    estimate: Estimate | None = None
    tokens: int | None = None


def judge(run: Run) -> list[Verdict]:
    """Every gate on every cell that it matches."""
    return [verdict for gate in run.gates for verdict in _verdicts(run, gate)]


def exit_code(run: Run, verdicts: list[Verdict]) -> int:
    """The worst of what happened: 4, then 3, 1, 5, 0."""
    needed = [v.cell for v in verdicts if v.cell and v.gate.required]
    if any(r.outcome == "inactive" or r.audits for r in run.records):
        return 4
    if any(run.outcome(cell) not in ("ok", "unsupported") or (run.outcome(cell) != "ok" and cell in needed) for cell in run.cells):
        return 3
    if any(v.status == "fail" for v in verdicts):
        return 1
    measured = any(r.outcome == "ok" and r.cell.scheme is not None for r in run.records)
    return 5 if any(v.status == "inconclusive" for v in verdicts) or not measured else 0


def _verdicts(run: Run, gate: Gate) -> list[Verdict]:
    cells = [cell for cell in run.cells if gate.matches(cell)]
    if not cells:
        return [Verdict(gate, None, _absent(gate), f"no scheme of this run matches {' or '.join(gate.schemes)}")]
    return [_verdict(run, gate, cell) for cell in cells]


def _absent(gate: Gate) -> Status:
    return "fail" if gate.required else "skipped"


def _verdict(run: Run, gate: Gate, cell: Cell) -> Verdict:
    record = run.record(cell)
    if record is None or record.outcome != "ok":
        why = f": {record.reason}" if record and record.reason else ""
        return Verdict(gate, cell, _absent(gate), f"there is no result ({run.outcome(cell)}){why}")
    estimate = record.metrics.get(gate.metric)
    if estimate is None:
        return Verdict(gate, cell, "fail", f"the record has no metric {gate.metric!r}")
    if problem := _insane(run, record) or _not_finite(estimate):
        return Verdict(gate, cell, "fail", problem, estimate)
    return _expected(_measured(gate, record, estimate))


def _insane(run: Run, record: Record) -> str | None:
    """Why the baseline that this cell is compared with cannot be trusted."""
    base = run.baseline(record.cell)
    beside = (record.metrics.get("base_ppl"), base.metrics.get("ppl") if base else None)
    found = [estimate.value for estimate in beside if estimate]
    highest = record.model.get("vocab", math.inf) / 10
    if not found:
        return "there is no baseline perplexity to compare with"
    for ppl in found:
        if not LOWEST_PPL < ppl < highest:  # also true of NaN
            return f"the baseline's ppl {ppl:.4g} is not a working model's: it must lie between {LOWEST_PPL} and {highest:.4g}, a tenth of the vocabulary"
    return None


def _not_finite(estimate: Estimate) -> str | None:
    return None if all(map(math.isfinite, (estimate.value, *ends(estimate)))) else "the measured value is not a finite number"


def allowed(gate: Gate) -> tuple[float, float]:
    """The values that a gate accepts."""
    if gate.metric in HIGH_IS_GOOD:
        return gate.limit, math.inf
    return (-gate.limit if gate.sided == "two" else -math.inf), gate.limit


def _measured(gate: Gate, record: Record, estimate: Estimate) -> Verdict:
    (least, most), (low, high) = allowed(gate), ends(estimate)
    shown = f"{title(gate.metric)} {interval(estimate, gate.metric)}"
    exact = low == high == estimate.value == 0
    blocks, scored = record.text.get("blocks"), record.text.get("scored", 0)
    if blocks is not None and blocks < FEW_BLOCKS and not exact:
        tokens = _round_up(scored * max(FEW_BLOCKS / blocks, _factor(estimate, least, most) or 1))
        return Verdict(gate, record.cell, "inconclusive", f"{shown} rests on {blocks} blocks of tokens, an interval needs {FEW_BLOCKS}; about {tokens:,} scored tokens would decide", estimate, tokens)  # fmt: skip
    if least <= low and high <= most:
        return Verdict(gate, record.cell, "pass", f"{shown} is within {_spell(gate)}", estimate)
    if low > most or high < least:
        return Verdict(gate, record.cell, "fail", f"{shown} is outside {_spell(gate)}", estimate)
    factor = _factor(estimate, least, most)
    tokens = _round_up(scored * factor) if factor and scored else None
    decides = f"about {tokens:,} scored tokens would decide" if tokens else "the value lies on the limit, so no number of tokens would decide"
    return Verdict(gate, record.cell, "inconclusive", f"{shown} reaches across {_spell(gate)}; {decides}", estimate, tokens)


def _factor(estimate: Estimate, least: float, most: float) -> float | None:
    """How many times the tokens bring the interval to one side of the limits; its half-width shrinks as 1/√n. None: no number does."""
    value, (low, high) = estimate.value, ends(estimate)
    up, down = max(0.0, high - value), max(0.0, value - low)
    if least <= value <= most:
        needs = [(up, most - value), (down, value - least)]
    else:
        needs = [(down, value - most)] if value > most else [(up, least - value)]
    if any(reach > 1e4 * room for reach, room in needs):  # 10⁸ times the tokens: on the limit for all that anyone will see
        return None
    return max((reach / room) ** 2 for reach, room in needs if room)


def _round_up(tokens: float) -> int:
    """Two digits are more than an estimate of an estimate deserves."""
    step = 10 ** max(0, math.floor(math.log10(max(tokens, 1))) - 1)
    return math.ceil(tokens / step) * step


def _spell(gate: Gate) -> str:
    if gate.metric in HIGH_IS_GOOD:
        return f"≥ {gate.limit:g}"
    return f"±{gate.limit:g}" if gate.sided == "two" else f"≤ {gate.limit:g}"


def _expected(verdict: Verdict) -> Verdict:
    """A control must fail: if it passes, the instrument sees nothing."""
    if verdict.gate.expect == "pass" or verdict.status == "inconclusive":
        return verdict
    if verdict.status == "fail":
        return Verdict(verdict.gate, verdict.cell, "pass", f"{verdict.reason}, as this control must be", verdict.estimate)
    return Verdict(verdict.gate, verdict.cell, "fail", f"{verdict.reason}, but this control must fail: the instrument is blind", verdict.estimate)

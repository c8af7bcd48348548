"""The gate: limits to verdicts, verdicts to an exit code. A gate passes or fails only if the whole interval does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tqbench.core.errors import worst
from tqbench.core.gate import RATIOS, Gate
from tqbench.core.record import VOID, Cell, Estimate, Record
from tqbench.metrics.verdict import SKEWED, allowed, decide, factor, paid
from tqbench.report.grounds import CAPTURED, disturbed, failing, lacking, round_up
from tqbench.report.run import Run
from tqbench.report.text import bare, exact, interval, number, title

Status = Literal["pass", "fail", "inconclusive", "skipped"]
LOWEST_PPL = 1.5  # below this a baseline has seen the text, or nothing was scored
FELL = "this limit holds to both sides"
AMID = "timed while other processes used the machine"
SIZES = {"ppl", "kld_max", *SKEWED}  # never below 0
CHANGES = ("dppl", "ln_ratio")  # what may come from cutting the text differently, so that floors bound it
TIMED = "more repetitions on a quiet machine"
MORE = {"needle": "more samples", "generation": "more prompts", "lm_eval": "more documents"}
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
    against: str | None = None  # the run that it is compared with, if not with its own baseline

    @property
    def who(self) -> str:
        """The scheme it is about, or the patterns that found none."""
        if self.cell is None:
            return " ".join(self.gate.schemes)
        return self.cell.label if self.cell.kernel == "auto" else f"{self.cell.label} ({self.cell.kernel})"


def judge(run: Run, more: Sequence[Gate] = (), beside: Sequence[Verdict | Open] = (), among: int = 0) -> list[Verdict]:
    """Every gate of the suite, and some more, on every cell that it matches. What rests on intervals is judged together, also with what
    is judged beside: all of it holds at 95 %, as each may err with an equal share of the 5 % among those that are still open (Holm), and
    `among` so many more that cells yet to be measured will ask for: what is measured first must not be judged more gently."""
    found = [*(verdict for gate in (*run.gates, *more) for verdict in _verdicts(run, gate)), *beside]
    waiting = {i: judgement for i, judgement in enumerate(found) if isinstance(judgement, Open)}
    settled = {i: verdict for i, verdict in enumerate(found) if isinstance(verdict, Verdict)}
    while clear := {i: one.verdict(len(waiting) + among) for i, one in waiting.items() if one.decided(len(waiting) + among)}:
        settled |= clear
        waiting = {i: judgement for i, judgement in waiting.items() if i not in clear}
    settled |= {i: judgement.verdict(len(waiting) + among) for i, judgement in waiting.items()}
    return [settled[i] for i in range(len(found))]


def exit_code(run: Run, verdicts: list[Verdict]) -> int:
    """The worst of what happened."""
    return worst(_codes(run, verdicts))


def _codes(run: Run, verdicts: list[Verdict]) -> Iterator[int]:
    needed = {v.cell.key for v in verdicts if v.cell and v.gate.required}
    spared = {v.cell.key for v in verdicts if v.cell} - needed  # every gate on it does without
    if any(r.outcome in VOID or r.audits for r in run.records):
        yield 4
    missed = {cell.key for cell in run.cells if run.outcome(cell) not in ("ok", *VOID)} - spared
    if any(run.outcome(cell) != "unsupported" or cell.key in needed for cell in run.cells if cell.key in missed):
        yield 3
    yield from ({"fail": 1, "inconclusive": 5}.get(v.status, 0) for v in verdicts)
    if not any(r.outcome == "ok" and r.cell.scheme is not None for r in run.records):
        yield 5


def _verdicts(run: Run, gate: Gate) -> list[Verdict | Open]:
    cells = judged(run, gate)
    if not cells:
        known = any(cell.scheme is not None and gate.covers(cell.label) for cell in run.cells)
        why = f"no cell of this run measures {gate.metric}" if known else f"no scheme of this run matches {' or '.join(gate.schemes)}"
        return [Verdict(gate, None, absent(gate), why)]
    return [_verdict(run, gate, cell) for cell in cells]


def judged(run: Run, gate: Gate) -> list[Cell]:
    """The cells that a gate is about."""
    return [cell for cell in run.cells if cell.scheme is not None and gate.covers(cell.label) and gate.measured_by(cell.task)]


def absent(gate: Gate) -> Status:
    """What a gate says where there is nothing to judge."""
    return "fail" if gate.required else "skipped"


def _verdict(run: Run, gate: Gate, cell: Cell) -> Verdict | Open:
    record = run.record(cell)
    if record is None or record.outcome != "ok":
        why = f": {record.reason}" if record and record.reason else ""
        return Verdict(gate, cell, absent(gate), f"there is no result ({run.outcome(cell)}){why}")
    if says := failing(record):
        return Verdict(gate, cell, "inconclusive", says)
    estimate = record.metrics.get(gate.metric)
    why = record.device.get("captured", {}).get("missing")
    if estimate is None and gate.metric in CAPTURED and why:
        return Verdict(gate, cell, absent(gate), f"was not measured, because its steps are not in graphs: {why}")
    if estimate is None:
        return Verdict(gate, cell, "fail", f"the record has no metric {gate.metric!r}")
    if problem := (_insane(run, record) if cell.task == "perplexity" else None) or _not_finite(estimate):
        return Verdict(gate, cell, "fail", problem, estimate)
    return judgement(Open(gate, record, estimate, floor=run.floor(record)))


def judgement(one: Open) -> Verdict | Open:
    """Without grounds there is no decision; a figure that is a point is judged as it is, alone; the rest stays open."""
    if problem := lacking(one.record, one.gate.metric, one.estimate):
        says, tokens = problem
        return one.say("inconclusive", one.estimate, says, tokens)
    low, high = one.estimate.ends
    return one.verdict(1) if low == high else one


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
            return (
                f"the baseline's ppl is {ppl:.4g}; a working model's lies between {LOWEST_PPL} and {highest:.4g}, a tenth of the vocabulary"
            )
    return None


def _not_finite(estimate: Estimate) -> str | None:
    return None if all(map(math.isfinite, (estimate.value, *estimate.ends))) else "the measured value is not a finite number"


@dataclass(frozen=True)
class Open:
    """A judgement that rests on an interval, before it is known how many others there are. `what` is estimated, if not the metric itself;
    `advice` is for who gets no decision. `floor`: the ppl that another cutting of the text may change."""

    gate: Gate
    record: Record
    estimate: Estimate
    what: str = ""
    against: str | None = None
    advice: str = ""
    floor: float | None = None

    def interval(self, others: int) -> Estimate:
        """The interval that so many open judgements leave it."""
        return paid(self.record, self.gate.metric, self.estimate, others)

    def decided(self, others: int) -> bool:
        """Whether it is clear."""
        return decide(self.gate, self.interval(others)) is not None

    def verdict(self, others: int) -> Verdict:
        """What it comes to."""
        estimate = self.interval(others)
        kept, broken = _spell(self.gate)
        found = decide(self.gate, estimate)
        beside = f", judged beside {others - 1} other{'s' if others > 2 else ''}" if others > 1 else ""
        if found is None:
            return self._undecided(estimate, f"{kept}{beside}")
        floor = self._floor()
        if found == "fail" and abs(estimate.value) < floor:
            blurred = f"is {broken}{beside}, but the text cut differently may change as much: the floor is {number(floor, 2)}"
            return self.say("inconclusive", estimate, blurred)
        seen = f"; the floor, {number(floor, 2)}, is wider than this limit" if found == "pass" and floor > self.gate.limit else ""
        fell = f": it is lower, and {FELL}" if found == "fail" and estimate.value < allowed(self.gate)[0] and two_sided(self.gate) else ""
        return _expected(self.say(found, estimate, f"is {kept if found == 'pass' else broken}{beside}{seen}{fell}"))

    def _floor(self) -> float:
        """Below what a change of perplexity is none of the scheme's, in the metric's own unit; 0 where nothing is known of that."""
        ppl = self.record.metrics.get("ppl")
        if self.floor is None or ppl is None or self.gate.metric not in CHANGES or exact(self.estimate):
            return 0.0
        return self.floor if self.gate.metric == "dppl" else math.log1p(self.floor / ppl.value)

    def _undecided(self, estimate: Estimate, kept: str) -> Verdict:
        scored = self.record.text.get("scored", 0)
        if (task := self.record.cell.task) != "perplexity":
            return self.say("inconclusive", estimate, f"may or may not be {kept}; {MORE.get(task, TIMED)} may decide")
        more = factor(self.gate, estimate)
        if more is None or not scored:
            return self.say("inconclusive", estimate, "lies on the limit: no number of tokens would decide")
        tokens = round_up(scored * more)
        return self.say("inconclusive", estimate, f"may or may not be {kept}; about {tokens:,} scored tokens would decide", tokens)

    def say(self, status: Status, estimate: Estimate, says: str, tokens: int | None = None) -> Verdict:
        """The verdict in words."""
        advice = self.advice if status == "inconclusive" else ""
        amid = f", {AMID}," if self.gate.metric in RATIOS and disturbed(self.record, self.gate.metric) else ""
        text = f"{self.what or title(self.gate.metric)} {interval(estimate, self.gate.metric)}{amid} {says}{advice}"
        return Verdict(self.gate, self.record.cell, status, text, estimate, tokens, self.against)


def _spell(gate: Gate) -> tuple[str, str]:
    """The limit, kept and broken."""
    limit = bare(gate.limit, gate.metric)
    if gate.better == "high":
        return f"at least {limit}", f"below {limit}"
    return (f"within ±{limit}", f"outside ±{limit}") if two_sided(gate) else (f"at most {limit}", f"above {limit}")


def two_sided(gate: Gate) -> bool:
    """Whether what falls by more than the limit fails, too. What is never below 0 cannot."""
    return gate.sided == "two" and gate.better is None and gate.metric not in SIZES


def _expected(verdict: Verdict) -> Verdict:
    """A control must fail: if it passes, the instrument sees nothing."""
    if verdict.gate.expect == "pass" or verdict.status == "inconclusive":
        return verdict
    if verdict.status == "fail":
        return replace(verdict, status="pass", reason=f"{verdict.reason}, as this control must be")
    return replace(verdict, status="fail", reason=f"{verdict.reason}, but this control must fail: the instrument is blind")

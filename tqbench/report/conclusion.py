"""What a run came to: its verdicts, one exit code and one sentence. Found once, and told alike by the terminal, pages, JUnit, GitHub and
the process, so that nobody reads `passed` where the code says otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tqbench.core.errors import worst
from tqbench.core.gate import Gate
from tqbench.core.record import VOID, Cell
from tqbench.report.gate import EXIT, Open, Verdict, exit_code, judge, judged
from tqbench.report.run import Run

NOTHING_JUDGED = 5
AUDIT = 4
ALTERED = "an audit failed: a record is not what was measured"
UNASKED = "not asked for"


@dataclass(frozen=True)
class Conclusion:
    """Verdicts, and what they and the outcomes of cells amount to. `aside`: cells that it does not speak of, by key, and why."""

    verdicts: list[Verdict]
    code: int
    says: str
    aside: Mapping[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """What it amounts to, with the code to exit with."""
        return f"{self.says} (exit code {self.code})"

    @property
    def reported(self) -> str:
        """The same where a run is only shown, which itself ends with 0 whatever it shows."""
        return f"{self.says} (tqbench run ends with exit code {self.code} here)"


Judged = tuple[Run, Conclusion]


def conclude(
    run: Run,
    more: Sequence[Gate] = (),
    beside: Sequence[Verdict | Open] = (),
    *,
    asked: Collection[Cell] | None = None,
    gated: bool = False,
) -> Conclusion:
    """Judge a whole run, and say what the cells that were `asked` for came to, which are all by default. What limits left out counts by the
    record that it has from an earlier run; without one it is not known. `gated`: a run that has no gates is not green."""
    keys = None if asked is None else {cell.key for cell in asked}
    unasked = {cell.key: UNASKED for cell in run.cells if keys is not None and cell.key not in keys}
    left = {cell.key: f"left out: {run.dropped[cell.key]}" for cell in run.cells if cell.key in run.dropped and run.record(cell) is None}
    found = judge(run, more, beside, _unmeasured(run, more, beside))
    verdicts = [_open(verdict, left) for verdict in found if verdict.cell is None or verdict.cell.key not in unasked]
    aside = left | unasked
    part = run.only(cell for cell in run.cells if cell.key not in aside)
    code = exit_code(part, verdicts)
    silent = all(verdict.status == "skipped" for verdict in verdicts)
    unjudged = f"nothing was judged, {'every gate was skipped' if verdicts else 'there are no gates'}"
    says = _meaning(part, code) if code or not silent else unjudged
    code = worst([code, *([NOTHING_JUDGED] if silent and (gated or verdicts) else [])])
    asking = f"; {len(run.cells) - len(unasked)} of {len(run.cells)} cells were asked for" if unasked else ""
    return Conclusion(verdicts, code, f"{says}{asking}", aside)


def _meaning(run: Run, code: int) -> str:
    """What a code says of this run: an audit finds schemes that did not run, or records that are not what was measured."""
    void = {record.outcome for record in run.records} & {*VOID}
    if code != AUDIT or "altered" not in void:
        return EXIT[code]
    return ALTERED if void == {"altered"} else f"{EXIT[code]}, and a record is not what was measured"


def _unmeasured(run: Run, more: Sequence[Gate], beside: Sequence[Verdict | Open]) -> int:
    """How many judgements there will be once the whole plan is measured. A scheme that the model cannot have never asks for one."""
    cells = [cell for gate in (*run.gates, *more) for cell in judged(run, gate)]
    cells += [one.cell for one in beside if isinstance(one, Verdict) and one.cell]
    return sum(run.outcome(cell) not in ("ok", "unsupported") for cell in cells)


def _open(verdict: Verdict, left: Mapping[str, str]) -> Verdict:
    """What was left out on purpose has not failed; a gate that needs it is open."""
    if verdict.cell is None or verdict.cell.key not in left:
        return verdict
    return replace(verdict, status="inconclusive" if verdict.gate.required else "skipped", reason=left[verdict.cell.key])

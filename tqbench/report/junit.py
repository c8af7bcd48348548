"""`junit.xml`: cells and verdicts as test cases, for the systems that read nothing else."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from tqbench.core.record import VOID, Cell
from tqbench.report.conclusion import Conclusion
from tqbench.report.gate import Verdict
from tqbench.report.run import Run
from tqbench.report.table import heading
from tqbench.report.text import plain

# Any other outcome did not complete: an error.
OUTCOMES: dict[str, str | None] = {"ok": None, "unsupported": "skipped", **dict.fromkeys(VOID, "failure")}
STATUSES = {"pass": None, "fail": "failure", "inconclusive": "error", "skipped": "skipped"}


def render(run: Run, found: Conclusion) -> str:
    """One suite of all cells, one of all verdicts. A cell that the conclusion does not speak of is no error."""
    root = ET.Element("testsuites", name=plain(run.suite))
    _suite(root, "cells", [_cell(run, cell, found.aside.get(cell.key)) for cell in run.cells])
    _suite(root, "gates", [_verdict(verdict) for verdict in found.verdicts])
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _suite(root: ET.Element, name: str, cases: list[ET.Element]) -> None:
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    counts = {plural: str(sum(case.find(kind) is not None for case in cases)) for plural, kind in kinds.items()}
    ET.SubElement(root, "testsuite", {"name": name, "tests": str(len(cases)), **counts}).extend(cases)


def _cell(run: Run, cell: Cell, aside: str | None) -> ET.Element:
    record, outcome = run.record(cell), run.outcome(cell)
    seconds = record.seconds if record and record.seconds is not None else 0.0
    case = ET.Element("testcase", classname=heading(cell), name=plain(f"{cell.label} ({cell.kernel})"), time=f"{seconds:.3f}")
    kind = "skipped" if aside and outcome != "ok" else OUTCOMES.get(outcome, "error")
    _end(case, kind, outcome, (record.reason if record else aside) or "")
    return case


def _verdict(verdict: Verdict) -> ET.Element:
    where = heading(verdict.cell) if verdict.cell else "gates"
    against = f" against {verdict.against}" if verdict.against else ""
    case = ET.Element("testcase", classname=where, name=plain(f"{verdict.who}: {verdict.gate.metric}{against}"))
    _end(case, STATUSES[verdict.status], verdict.status, verdict.reason)
    return case


def _end(case: ET.Element, kind: str | None, what: str, reason: str) -> None:
    if kind:
        ET.SubElement(case, kind, type=what, message=plain(f"{what}: {reason}" if reason else what))

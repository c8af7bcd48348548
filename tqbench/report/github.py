"""What GitHub reads: annotations at the suite's lines, a step summary, and figures for github-action-benchmark."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqbench.core.files import write_atomic
from tqbench.core.record import Cell, Estimate
from tqbench.report import junit, markdown
from tqbench.report.conclusion import Conclusion
from tqbench.report.gate import Verdict
from tqbench.report.run import Run
from tqbench.report.table import heading
from tqbench.report.text import number, plain, title

LARGEST = 1 << 20  # bytes of a summary; GitHub drops a larger one whole
LEVELS = {"fail": "error", "inconclusive": "warning", "skipped": "notice"}
LOST = {"unsupported": "warning"}  # any other outcome without numbers is an error
SMALLER_IS_BETTER = {
    **dict.fromkeys(("ppl", "kld", "kld_p99", "rms_dp"), ""),
    **dict.fromkeys(("decode_ms_p50", "decode_ms_p99", "ttft_ms"), "ms"),
    "kv_bytes_per_token": "B",
}
UNITS = {"ppl": "ppl", "kld": "nats", "kld_p99": "nats", "rms_dp": "probability"}


def notices(run: Run, found: Conclusion) -> list[str]:
    """Workflow commands, errors first because GitHub shows ten of a kind: each gate that does not pass, at its line of the suite, and each
    cell without a result that was asked for and no gate speaks of."""
    told = {verdict.cell.key for verdict in found.verdicts if verdict.cell and verdict.status != "pass"} | found.aside.keys()
    lines = [(LEVELS[v.status], _of_gate(run, v), plain(f"{v.who}: {v.reason}")) for v in found.verdicts if v.status in LEVELS]
    for cell in run.cells:
        outcome, record = run.outcome(cell), run.record(cell)
        if outcome != "ok" and cell.key not in told:
            reason = f": {record.reason}" if record and record.reason else ""
            where = _place(run, None, f"{cell.label}: {outcome}")
            lines.append((LOST.get(outcome, "error"), where, plain(f"{cell.label}, {heading(cell)}: {outcome}{reason}")))
    lines.sort(key=lambda one: ("error", "warning", "notice").index(one[0]))
    return [f"::{level} {place}::{_data(text)}" for level, place, text in lines]


def summary(run: Run, found: Conclusion) -> str:
    """The verdicts and the tables as Markdown; the verdicts alone if GitHub would not take the whole."""
    verdicts = f"\n{markdown.verdicts(run, found)}\n" if found.verdicts else ""
    head = f"## {markdown.escape(run.suite)}: {found.sentence}\n{verdicts}"
    tables = f"\n<details><summary>Tables</summary>\n\n{markdown.brief(run)}\n\n</details>\n\n"
    if len((head + tables).encode()) <= LARGEST:
        return head + tables
    return f"{head}\nThe tables are too long for this page; they are in the report.\n\n"


def benchmark(run: Run) -> str:
    """Figures of which smaller is better, as github-action-benchmark's `customSmallerIsBetter` takes them."""
    return json.dumps(list(_figures(run)), indent=1, ensure_ascii=False) + "\n"


def write(run: Run, found: Conclusion, folder: Path) -> None:
    """`junit.xml` and `benchmark.json`: what other programs read of the verdicts and the figures."""
    write_atomic(folder / "junit.xml", junit.render(run, found).encode())
    write_atomic(folder / "benchmark.json", benchmark(run).encode())


def _figures(run: Run) -> Iterator[dict[str, Any]]:
    for cell in run.cells:
        record = run.record(cell)
        if record is None or record.outcome != "ok" or cell.scheme is None:
            continue
        for metric, unit in SMALLER_IS_BETTER.items():
            if estimate := record.metrics.get(metric):
                yield {
                    "name": f"{_name(cell)}: {title(metric)}",
                    "unit": unit or UNITS[metric],
                    "value": estimate.value,
                    **_range(estimate),
                    "extra": f"run {plain(run.name)}, cell {cell.key}",
                }


def _name(cell: Cell) -> str:
    kernel = "" if cell.kernel == "auto" else f" ({cell.kernel})"
    return plain(f"{heading(cell)} · {cell.label}{kernel}")


def _range(estimate: Estimate) -> dict[str, str]:
    low, high = estimate.ends
    return {"range": f"± {number((high - low) / 2, 2)}".replace("−", "-")} if low < high else {}


def _of_gate(run: Run, verdict: Verdict) -> str:
    against = f" against {verdict.against}" if verdict.against else ""
    return _place(run, run.lines.get(verdict.gate), f"{verdict.status}: {verdict.who} {title(verdict.gate.metric)}{against}")


def _place(run: Run, line: int | None, what: str) -> str:
    """The suite's file, where it is known, from the root of the checkout; GitHub shows the annotation there."""
    file = [f"file={_property(_from_root(run.source))}"] if run.source else []
    return ",".join([*file, *([f"line={line}"] if file and line else []), f"title={_property(plain(what))}"])


def _from_root(source: str) -> str:
    root = os.environ.get("GITHUB_WORKSPACE")
    if root and Path.cwd().is_relative_to(root):
        return (Path.cwd().relative_to(root) / source).as_posix()
    return source


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

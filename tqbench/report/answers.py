"""Behind the figures of what models were asked: needles by depth and context, agreement token by token, and every score of lm-eval."""

from __future__ import annotations

from collections.abc import Iterable

from tqbench.core.record import Cell, Record
from tqbench.metrics.shares import able, share
from tqbench.report import asked, survived, tiles
from tqbench.report.chart import Chart
from tqbench.report.column import Figure
from tqbench.report.details import Grid
from tqbench.report.draw import CROWD
from tqbench.report.points import codecs, measured
from tqbench.report.run import Run
from tqbench.report.table import heading
from tqbench.report.text import NONE

NEEDLES = (
    "questions answered to the last digit, of those asked at that depth (0 is the beginning of the text), with Wilson's 95 % interval; "
    f"{asked.FAILS} the baseline itself answers fewer than half, so nothing follows for a scheme."
)


def grids(run: Run, cells: list[Cell]) -> list[Grid]:
    """The tables of a setting."""
    found = [(name, record) for name, record in measured(run, cells) if record.prompts or record.harness]
    if not found:
        return []
    return {"needle": _depths, "generation": _survival, "lm_eval": _scores}[cells[0].task](found)


def _depths(found: list[tuple[str, Record]]) -> list[Grid]:
    depths = found[0][1].cell.params["depth"]
    rows = [
        (name, tuple(asked.tile(own[depth]) if depth in own else Figure(NONE) for depth in depths))
        for name, record in found
        for own in [asked.by_depth(record)]
    ]
    return [Grid("Needles by depth", NEEDLES, "scheme", tuple(f"{depth:g}" for depth in depths), tuple(rows))]


def _survival(found: list[tuple[str, Record]]) -> list[Grid]:
    most = found[0][1].cell.params["new"]
    shown = [*(n for n in asked.SHOWN_AFTER if n < most), most]
    schemes = [(name, record) for name, record in found if record.cell.scheme]
    rows = []
    for name, record in schemes:
        steps = asked.curve(record)
        elsewhere = asked.led_elsewhere(record)
        rows.append((name, (*(asked.after(steps, n) for n in shown), Figure(f"{elsewhere} of {len(record.prompts)}", order=elsewhere))))
    caption = (
        "free-running: the share of prompts that agree with the baseline up to the n-th token, as Kaplan and Meier have it, with its 95 % "
        "interval. Elsewhere: prompts whose first difference lies elsewhere when they are led along the baseline's tokens, which only "
        "rounding explains under protocol strict."
    )
    head = (*(f"{n:,}" for n in shown), "elsewhere")
    return [Grid("Agreement after n tokens", caption, "scheme", head, tuple(rows))] if rows else []


def _scores(found: list[tuple[str, Record]]) -> list[Grid]:
    head = list(dict.fromkeys((task, name) for _, record in found for task, name, _ in asked.scores(record)))
    rows = []
    for label, record in found:
        own = {(task, name): figure for task, name, figure in asked.scores(record)}
        rows.append((label, tuple(own.get(key, Figure(NONE)) for key in head)))
    hashes = ", ".join(f"{task} {str(text)[:12]}" for task, text in found[0][1].harness.get("task_hashes", {}).items())
    caption = f"as lm-eval reports it, with its own standard error{f'; hashes of what was asked: {hashes}' if hashes else ''}."
    several = len({task for task, _ in head}) > 1
    return [Grid("Scores", caption, "scheme", tuple(f"{task}: {name}" if several else name for task, name in head), tuple(rows))]


def charts(run: Run, cells: list[Cell], index: int) -> Iterable[Chart]:
    """The survival curves of a setting."""
    found = [(name, record) for name, record in measured(run, cells) if record.cell.task == "generation" and record.cell.scheme]
    if not found:
        return
    shown = found[:CROWD]
    lines = {name: (asked.curve(record), codecs(record.cell.scheme)) for name, record in shown}
    caption = (
        "Agreement: the share of prompts whose greedy tokens all agree with the baseline's up to the n-th one. One close decision is "
        "enough to part; how far apart the distributions are is the KLD in the table."
    )
    data = tuple(
        {"scheme": name, "tokens": step.after, "at_risk": step.at_risk, "share": step.share.value, "low": step.share.ends[0]}
        | {"high": step.share.ends[1]}
        for name, (steps, _) in lines.items()
        for step in steps
    )
    yield Chart(f"survival-{index}", cells[0].setting, caption, survived.curves(lines, heading(cells[0])), data)


def maps(run: Run) -> Iterable[Chart]:
    """Depth against context, a panel per scheme, for each form of needles."""
    families: dict[tuple[str, ...], list[Cell]] = {}
    for cell in run.cells:
        if cell.task == "needle":
            families.setdefault((*cell.group, str(cell.corpus), cell.params["form"]), []).append(cell)
    for index, cells in enumerate(families.values(), 1):
        found = measured(run, cells)
        if found:
            yield _map(found, index)


def _map(found: list[tuple[str, Record]], index: int) -> Chart:
    contexts = sorted({record.cell.params["context"] for _, record in found})
    depths = sorted({depth for _, record in found for depth in record.cell.params["depth"]})
    by_name: dict[str, dict[tuple[int, int], tiles.Tile]] = {}
    data = []
    for name, record in found:
        for depth, own in asked.by_depth(record).items():
            context, (count, hits, base, nll) = record.cell.params["context"], own
            fails = not able(share(base, count))
            says = f"{hits} of {count} at {context:,}, depth {depth:g}; the baseline {base}"
            place = (depths.index(depth), contexts.index(context))
            by_name.setdefault(name, {})[place] = tiles.Tile(hits / count, f"{hits}/{count}", says, fails)
            low, high = share(hits, count).ends
            row = {"scheme": name, "context": context, "depth": depth, "asked": count, "hits": hits, "base_hits": base}
            data.append(row | {"share": hits / count, "low": low, "high": high, "nll": nll})
    panels = list(by_name.items())[:CROWD]
    form = found[0][1].cell.params["form"]
    what = "one number in each text" if form == "passkey" else "a number at every depth of each text"
    drawing = tiles.panels(
        panels,
        [f"{depth:g}" for depth in depths],
        [f"{context:,}" for context in contexts],
        ("depth", "context, tokens"),
        (f"Needles found, {form}", heading(found[0][1].cell).rpartition(" · ")[0]),
    )
    caption = (
        f"Needles: {what}; questions answered of those asked, by depth and context. Hatched: the baseline itself answers fewer than half."
    )
    return Chart(f"needle-{form}-{index}", None, caption, drawing, tuple(data))

"""All that a run has measured at several contexts, a small table for each metric: quality, speed and memory on one page."""

from __future__ import annotations

from tqbench.core.record import Cell
from tqbench.report.column import Column, Figure, Line
from tqbench.report.details import Grid
from tqbench.report.run import Run
from tqbench.report.table import BY_TASK, label
from tqbench.report.text import NONE, plain

SHOWN = {  # task: the columns that are worth a table of their own
    "perplexity": ("Δppl", "KLD"),
    "prefill": ("tok/s",),
    "decode": ("tok/s", "× own"),
    "memory": ("B/token",),
    "storage": ("× f16", "× anew"),
}
NAMES = {("prefill", "tok/s"): "Prefill, tok/s", ("decode", "tok/s"): "Decode, tok/s", ("decode", "× own"): "Decode, × own cache"}
NAMES |= {("storage", "× f16"): "Stored, × f16", ("storage", "× anew"): "First token from a file, × anew"}


def grids(run: Run) -> list[Grid]:
    """One table per model, text and metric, with a column per context."""
    families: dict[tuple[str, ...], list[Cell]] = {}
    for cell in run.cells:
        families.setdefault((*cell.group, str(cell.corpus), cell.task, kind(cell)), []).append(cell)
    several = len({key[:5] for key in families}) > 1
    found = []
    for cells in families.values():
        contexts = sorted({cell.params["context"] for cell in cells if "context" in cell.params})
        columns = [column for column in BY_TASK[cells[0].task] if column.title in SHOWN[cells[0].task]]
        where = f"{cells[0].model} · {cells[0].backend} · {cells[0].device} · {cells[0].dtype}: " if several else ""
        found += [_grid(run, cells, contexts, column, where) for column in columns if len(contexts) > 1]
    return found


def kind(cell: Cell) -> str:
    """What else tells cells of a task apart that differ in more than the context."""
    return str([cell.params.get(name) for name in ("recipe", "entropy", "level")])


def _grid(run: Run, cells: list[Cell], contexts: list[int], column: Column, where: str) -> Grid:
    rows: dict[str, dict[int, Figure]] = {}
    for cell in cells:
        record = run.record(cell)
        shown = column.show(Line(record, run.floor(record))) if record and record.outcome == "ok" else Figure(run.outcome(cell))
        rows.setdefault(label(run, cell), {}).setdefault(cell.params["context"], shown)
    title = NAMES.get((cells[0].task, column.title), column.title)
    lines = tuple((name, tuple(figures.get(context, Figure(NONE)) for context in contexts)) for name, figures in rows.items())
    return Grid(title, plain(f"{where}{column.meaning}."), "scheme", tuple(f"{context:,}" for context in contexts), lines)

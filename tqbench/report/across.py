"""All that a run has measured at several contexts, a small table for each metric: quality, speed and memory on one page."""

from __future__ import annotations

from tqbench.core.record import Cell
from tqbench.report.column import BITS, Column, Figure, Line
from tqbench.report.details import Grid
from tqbench.report.run import Run
from tqbench.report.table import BY_TASK, label, tells
from tqbench.report.text import NONE, plain

SHOWN = {  # task: the columns that are worth a table of their own
    "perplexity": ("Δppl", "KLD"),
    "prefill": ("tok/s",),
    "decode": ("tok/s", "× own", "graph × own"),
    "memory": ("B/token",),
    "storage": ("× f16", "× anew"),
    "needle": ("found %", "NLL"),
    "generation": ("agree %", "KLD"),
    "lm_eval": ("score %",),
}
OVERVIEW = {  # task: what one row of everything needs
    "perplexity": ("bits", "Δppl", "KLD"),
    "prefill": ("× own",),
    "decode": ("tok/s", "× own"),
    "memory": ("B/token", "tokens/GiB"),
    "storage": ("× f16", "× anew"),
    "needle": ("found %",),
    "generation": ("agree %", "KLD"),
    "lm_eval": ("score %",),
}
KINDS = ("recipe", "entropy", "level", "form", "task")
SHORT = {("storage", "× f16"): "stored × f16", ("storage", "× anew"): "from a file × anew"}
SHORT |= {("needle", "found %"): "needles found %", ("generation", "agree %"): "tokens agree %", ("generation", "KLD"): "KLD, led"}
SHORT |= {("decode", "tok/s"): "decode tok/s", ("decode", "× own"): "decode × own", ("prefill", "× own"): "prefill × own"}
NAMES = {("prefill", "tok/s"): "Prefill, tok/s", ("decode", "tok/s"): "Decode, tok/s", ("decode", "× own"): "Decode, × own cache"}
NAMES |= {("decode", "graph × own"): "Decode in graphs, × own cache in place"}
NAMES |= {("needle", "found %"): "Needles found, %", ("needle", "NLL"): "Needles, NLL", ("generation", "agree %"): "Tokens agree, %"}
NAMES |= {("generation", "KLD"): "Led, KLD", ("lm_eval", "score %"): "lm-eval, %"}
NAMES |= {("storage", "× f16"): "Stored, × f16", ("storage", "× anew"): "First token from a file, × anew"}


def overview(run: Run) -> list[Grid]:
    """A scheme's figures in one row, at the greatest context of each task; a table per model and text, none for a single setting."""
    if len(run.settings()) < 2:
        return []
    families: dict[tuple[str, ...], list[Cell]] = {}
    for cell in run.cells:
        families.setdefault((*cell.group, str(cell.corpus)), []).append(cell)
    return [_overview(run, cells, len(families) > 1) for cells in families.values()]


def _overview(run: Run, cells: list[Cell], several: bool) -> Grid:
    deepest: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        same = deepest.setdefault((cell.task, kind(cell)), [])
        if same and cell.params.get("context", 0) > same[0].params.get("context", 0):
            same.clear()
        if not same or cell.setting == same[0].setting:
            same.append(cell)
    head: list[str] = []
    rows: dict[str, list[Figure]] = {label(run, cell): [] for cell in cells}
    for (task, _), own in deepest.items():
        for column in (column for column in BY_TASK[task] if column.title in OVERVIEW.get(task, ())):
            title, where = SHORT.get((task, column.title), column.title), f"{own[0].params.get('context', 0):,}"
            kinds = [own[0].params.get(name) for name in KINDS] if sum(other == task for other, _ in deepest) > 1 else []
            head.append(title if column is BITS else " ".join((title, "@", where, *(str(part) for part in kinds if part is not None))))
            shown = {label(run, cell): _show(run, cell, column) for cell in own}
            for name, figures in rows.items():
                figures.append(shown.get(name, Figure(NONE)))
    where = f"{' · '.join(cells[0].group)} · {cells[0].corpus.get('name')}: " if several else ""
    caption = plain(f"{where}each task at its greatest context; bits are those of what is packed.")
    return Grid("All schemes", caption, "scheme", tuple(head), tuple((name, tuple(figures)) for name, figures in rows.items()))


def grids(run: Run) -> list[Grid]:
    """One table per model, text and metric, with a column per context."""
    families: dict[tuple[str, ...], list[Cell]] = {}
    for cell in run.cells:
        families.setdefault((*cell.group, str(cell.corpus), cell.task, kind(cell)), []).append(cell)
    several = len({key[:5] for key in families}) > 1
    found = []
    for cells in families.values():
        contexts = sorted({cell.params["context"] for cell in cells if "context" in cell.params})
        wanted = [column for column in BY_TASK[cells[0].task] if column.title in SHOWN.get(cells[0].task, ())]
        columns = [column for column in wanted if not column.optional or tells(run, cells, column)]
        where = f"{cells[0].model} · {cells[0].backend} · {cells[0].device} · {cells[0].dtype}: " if several else ""
        found += [_grid(run, cells, contexts, column, where) for column in columns if len(contexts) > 1]
    return found


def kind(cell: Cell) -> str:
    """What else tells cells of a task apart that differ in more than the context."""
    return str([cell.params.get(name) for name in KINDS])


def _show(run: Run, cell: Cell, column: Column) -> Figure:
    record = run.record(cell)
    return column.show(Line(record, run.floor(record))) if record and record.outcome == "ok" else Figure(run.outcome(cell))


def _grid(run: Run, cells: list[Cell], contexts: list[int], column: Column, where: str) -> Grid:
    rows: dict[str, dict[int, Figure]] = {}
    for cell in cells:
        rows.setdefault(label(run, cell), {}).setdefault(cell.params["context"], _show(run, cell, column))
    title = NAMES.get((cells[0].task, column.title), column.title)
    lines = tuple((name, tuple(figures.get(context, Figure(NONE)) for context in contexts)) for name, figures in rows.items())
    return Grid(title, plain(f"{where}{column.meaning}."), "scheme", tuple(f"{context:,}" for context in contexts), lines)

"""The result tables as data: which columns there are, what they mean, and what stands in them. Renderers only lay them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqbench.core.record import Cell
from tqbench.metrics.paired import ENOUGH
from tqbench.metrics.verdict import paid
from tqbench.report import asked, speed
from tqbench.report.column import BELOW, BITS, COVERAGE, KERNELS, Column, Figure, Line, metric
from tqbench.report.run import NOT_RUN, Run
from tqbench.report.text import NONE, bounds, exact, half, inside, number, plain, title, value

WAITING = f"{NOT_RUN}: in the plan, without a record: not asked for, or not reached yet"


@dataclass(frozen=True)
class Row:
    """A cell of the plan. Without `ok` there are no figures, only the outcome and its reason."""

    cell: Cell
    label: str
    outcome: str
    reason: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Table:
    """The cells of one setting."""

    heading: str
    facts: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def marks(self) -> list[str]:
        """What the marks in this table mean."""
        used = {mark for row in self.rows for figure in row.figures for mark in MARKS if mark in figure.text}
        below = [(column, f.detail) for row in self.rows for column, f in zip(self.columns, row.figures, strict=False)]
        words = [meaning for of, word, meaning in BELOW if any(column is of and word in detail for column, detail in below)]
        return [*(f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in used), *words]

    def notes(self) -> list[str]:
        """Why cells have no figures."""
        waiting = any(row.outcome == NOT_RUN and not row.reason for row in self.rows)
        return [*(f"{row.label}: {row.outcome}: {row.reason}" for row in self.rows if row.reason), *([WAITING] if waiting else [])]


MARKS = {
    "*": "of K or of V less than half of what was attended was packed, so the figures say little about the scheme",
    "≈": "indistinguishable from the baseline: the 95 % interval holds 0",
    "≤ floor": "with all of its interval smaller than what changes when only the cutting of the text changes",
    "(exact)": "every token's score equals the baseline's",
    asked.FAILS: "the model itself answers fewer than half, so there is too little that a scheme could lose: no verdict",
    "!": "disturbed: other processes used the machine while this was timed; the ratio, which pairs neighbours, suffers least",
}


def tables(run: Run) -> list[Table]:
    """One table per setting, in the order of the plan."""
    return [_table(run, cells) for cells in run.settings().values()]


def _table(run: Run, cells: list[Cell]) -> Table:
    columns = tuple(column for column in BY_TASK[cells[0].task] if not column.optional or tells(run, cells, column))
    return Table(heading(cells[0]), _facts(run, cells), columns, tuple(_row(run, cell, columns) for cell in cells))


def tells(run: Run, cells: list[Cell], column: Column) -> bool:
    """Whether a column shows anything of these cells."""
    found = [record for cell in cells if (record := run.record(cell)) and record.outcome == "ok"]
    return any(figure.text != NONE or figure.detail for record in found for figure in [column.show(Line(record, None))])


def heading(cell: Cell) -> str:
    """The setting in words."""
    context = f"context {cell.params['context']}" if "context" in cell.params else None
    scored = {"perplexity": (cell.params.get("recipe"), context), "sensitivity": ("sensitivity", cell.params.get("recipe"), context)}
    what = scored.get(cell.task) or (speed.heading(cell),)
    parts = (cell.model, cell.backend, cell.device, cell.dtype, cell.corpus.get("name"), *what)
    return plain(" · ".join(str(part) for part in parts if part))


def short_headings(run: Run) -> dict[str, str]:
    """Per setting, only what tells it from the others of the run."""
    parts = {setting: _parts(cells[0]) for setting, cells in run.settings().items()}
    common = set.intersection(*map(set, parts.values())) if parts else set()
    return {setting: plain(" · ".join(part for part in own if part not in common)) for setting, own in parts.items()}


def _parts(cell: Cell) -> tuple[str, ...]:
    return (*cell.group, cell.task, *(f"{key} {value}" for key, value in (cell.corpus | cell.params).items()))


def _facts(run: Run, cells: list[Cell]) -> tuple[str, ...]:
    found = [record for cell in cells if (record := run.record(cell)) and record.outcome == "ok"]
    if not found:
        return ()
    record = found[0]
    text, model, params = record.text, record.model, record.cell.params
    base = run.baseline(record.cell)
    floor = base.floors.get("instrument") if base else None
    return tuple(
        fact
        for fact in (
            _scored(run, cells),
            "too few windows for more than rough intervals" if text.get("windows", ENOUGH) < ENOUGH else "",
            f"{text['protocol']} protocol" if "protocol" in text else "",
            f"windows advance by {params['stride']}" if "stride" in params else "",
            f"warm-up {params['warmup']}" if params.get("warmup") else "",
            f"chunks of {params['chunk']}" if "chunk" in params else "",
            *speed.facts(found),
            f"{_layers(model)} of {model['kv_heads']} KV heads, head_dim {model['head_dim']}" if "head_dim" in model else "",
            f"instrument floor {number(floor, 2)} ppl{_sample(text)}" if floor is not None else "",
        )
        if fact
    )


def _scored(run: Run, cells: list[Cell]) -> str:
    """How much was scored: as much of it as each scheme needs, where that is the question."""
    texts = [r.text for cell in cells if (r := run.record(cell)) and r.outcome == "ok" and "windows" in r.text]
    tokens, windows = (sorted({text[key] for text in texts}) for key in ("scored", "windows"))
    if not texts:
        return ""
    if len(windows) == 1:
        return f"{tokens[0]:,} tokens scored in {windows[0]:,} window{'s' if windows[0] != 1 else ''}"
    return f"{tokens[0]:,} to {tokens[-1]:,} tokens scored in {windows[0]:,} to {windows[-1]:,} windows, each scheme until it was decided"


def _sample(text: dict[str, Any]) -> str:
    """The second cut, which floors come from, may run fewer windows."""
    again = text.get("recut_windows", text.get("windows"))
    return f", floors from {again} windows" if again and again < text["windows"] else ""


def _layers(model: dict[str, Any]) -> str:
    """In a hybrid model only some layers keep keys and values."""
    every = model["kv_layers"] == model["layers"]
    return f"{model['kv_layers']} layers" if every else f"only {model['kv_layers']} of {model['layers']} layers keep K and V:"


def _row(run: Run, cell: Cell, columns: tuple[Column, ...]) -> Row:
    record = run.record(cell)
    if record is None or record.outcome != "ok":
        return Row(cell, label(run, cell), run.outcome(cell), plain((record.reason if record else run.dropped.get(cell.key)) or ""), ())
    line = Line(record, run.floor(record))
    return Row(cell, label(run, cell), "ok", "", tuple(column.show(line) for column in columns))


def label(run: Run, cell: Cell) -> str:
    """The scheme, with its kernel where only that tells the cell from another of its setting."""
    twins = [other for other in run.cells if other.label == cell.label and other.setting == cell.setting]
    return plain(f"{cell.label} ({cell.kernel})" if len(twins) > 1 else cell.label)


def _ppl(line: Line) -> Figure:
    estimate = line.record.metrics.get("ppl")
    return Figure(number(estimate.value, 6), order=estimate.value) if estimate else Figure(NONE)


def _dppl(line: Line) -> Figure:
    estimate = line.record.metrics.get("dppl")
    if estimate is None:
        return Figure(NONE)
    if exact(estimate):
        return Figure("0 (exact)", order=0.0)
    estimate = paid(line.record, "dppl", estimate)
    low, high = estimate.ends
    mark = " ≈" if low <= 0 <= high else ""
    floor = f"(floor {number(line.floor, 2)})" if line.floor is not None and abs(estimate.value) < line.floor else ""
    if inside(estimate, line.floor):
        return Figure(f"≤ floor{mark}", floor, abs(estimate.value), floor.replace("floor ", ""))
    return Figure(value(estimate, "dppl") + mark, f"{bounds(estimate, 'dppl')} {floor}".strip(), estimate.value, half(estimate, "dppl"))


def _top1(line: Line) -> Figure:
    estimate = line.record.metrics.get("top1")
    return Figure(value(estimate, "top1"), order=estimate.value) if estimate else Figure(NONE)


def _worst(line: Line) -> Figure:
    if line.record.cell.scheme is None or not line.record.layers:
        return Figure(NONE)
    worst = max(line.record.layers, key=lambda row: row["kld"])
    return Figure(f"{worst['layer']} {worst['side'].upper()}", f"{100 * worst['first']:.3g} %", worst["layer"])


def _summed(side: str) -> Callable[[Line], Figure]:
    shown = metric(f"kld_{side}")

    def show(line: Line) -> Figure:
        figure, whole = shown(line), line.record.metrics.get(f"kld_sum_{side}")
        return Figure(figure.text, f"Σ {value(whole, 'kld')}" if whole else "", figure.order)

    return show


def _half(line: Line) -> Figure:
    """The fewest sides of layers that together cost half."""
    if line.record.cell.scheme is None or not line.record.layers:
        return Figure(NONE)
    costs = sorted((max(0.0, row["kld"]) for row in line.record.layers), reverse=True)
    if not sum(costs):
        return Figure(NONE)
    count = next(n for n in range(1, len(costs) + 1) if 2 * sum(costs[:n]) >= sum(costs))
    return Figure(f"{count} of {len(costs)}", order=count)


COLUMNS = (
    BITS,
    COVERAGE,
    Column("ppl", "perplexity of the scored tokens through this cache", _ppl),
    Column("Δppl", "perplexity minus the baseline's on the same tokens, with its paired 95 % interval", _dppl),
    Column("KLD", "mean divergence from the baseline's own distribution, nats per token, with its 95 % interval", metric("kld")),
    Column(title("kld_p99"), "the divergence that one token in a hundred exceeds, with its 95 % interval", metric("kld_p99")),
    Column("top-1 %", "the share of tokens whose most likely next token is the baseline's", _top1),
    KERNELS,
)
PROBES = (
    BITS,
    COVERAGE,
    Column("worst", "the side of the layer that costs most when it alone is packed; below it in how many of the draws it is", _worst),
    Column("its KLD", "the divergence when it alone is packed, nats per token, with its 95 % interval", metric("kld_worst")),
    Column("KLD K", "the divergence when the keys of all layers are packed; below it the sum over layers packed one by one", _summed("k")),
    Column("KLD V", "the same of the values", _summed("v")),
    Column("KLD", "the divergence when all is packed, nats per token, with its 95 % interval", metric("kld")),
    Column("half in", "how many of all sides of layers make up half of that damage", _half),
    KERNELS,
)
BY_TASK: dict[str, tuple[Column, ...]] = {"perplexity": COLUMNS, "sensitivity": PROBES, **speed.COLUMNS, **asked.COLUMNS}

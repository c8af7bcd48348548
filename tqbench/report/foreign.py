"""What other tools measured, in tables of its own: beside ours on a page, never among them, and no gate sees it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqbench.importers import row as rows
from tqbench.importers.folder import Imports
from tqbench.importers.row import Fact, Row
from tqbench.report.column import Figure
from tqbench.report.details import Grid
from tqbench.report.text import NONE, STYLES, plain

TITLE = "Measured by other tools"
INTRODUCTION = (
    "Read from files of other tools, as they say it; nothing of it was measured, repeated or audited here. It is not comparable with any "
    "other table of this report: other tokens were scored in other ways, and no token's score is shared. No gate judges it."
)
TITLES = {
    "tps": "tok/s",
    "repetitions": "repetitions",
    "score": "score",
    "refract": "REFRACT",
    "refract_gtm": "A, tokens",
    "refract_kld": "B, KLD",
    "refract_rniah": "C, R-NIAH",
    "refract_plad": "D, PLAD",
}
NAMES = {"cache_k": "cache K", "cache_v": "cache V", "bos": "BOS"}
APART = ("model", "context", "chunks", "stride", "bos")  # rows that differ in these have tables of their own
VARIED = ("lm-eval",)  # a row is a task there, and each has its own text


@dataclass(frozen=True)
class Foreign:
    """A table of one tool's rows that share a recipe, what holds for all of them, and what their files do not say."""

    title: str
    recipe: str
    caveat: str
    facts: tuple[tuple[str, str], ...]
    unknown: tuple[tuple[str, str], ...]  # and why
    grid: Grid

    @property
    def said(self) -> str:
        """The recipe, and what else holds for every row."""
        return plain(" · ".join((self.recipe, *(f"{name} {text}" for name, text in self.facts))))


def tables(imports: Sequence[Imports]) -> list[Foreign]:
    """The tables, in the order of their first rows."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in (row for one in imports for row in one.rows):
        apart = (*APART, *(() if row.tool in VARIED else ("corpus",)))
        groups.setdefault((row.tool, row.recipe, *(row.facts.get(key) for key in apart)), []).append(row)
    return [_table(number, group) for number, group in enumerate(groups.values(), 1)]


def _table(number: int, group: list[Row]) -> Foreign:
    first = group[0]
    every = list(dict.fromkeys(key for row in group for key in row.facts))
    varied = [key for key in every if len({row.facts.get(key) for row in group}) > 1]
    keys = list(dict.fromkeys(key for row in group for key in row.figures))
    head = (*(_title(key) for key in keys), *(_name(key) for key in varied), "from")
    body = [
        (row.label, (*(_figure(row, key) for key in keys), *(Figure(_said(row.facts.get(key))) for key in varied), Figure(row.source)))
        for row in group
    ]
    reasons = {(_name(key), why): None for row in group for key, why in row.unknown.items()}
    reasons |= {(_title(key), why): None for row in group for key, figure in row.figures.items() if (why := figure.why)}
    return Foreign(
        plain(f"{number}. {first.tool} · {first.facts.get('model', 'a model that the file does not name')}"),
        first.recipe,
        first.caveat,
        tuple((_name(key), _said(first.facts[key])) for key in every if key not in varied),
        tuple(reasons),
        Grid(plain(first.tool), "gives this, ± the error that it computes itself; – is what it does not give.", "what", head, tuple(body)),
    )


def _title(key: str) -> str:
    """A figure's title, with the unit that it is written in."""
    style = STYLES.get(key)
    return TITLES.get(key) or (plain(f"{style.title}{style.unit}") if style else plain(key))


def _name(key: str) -> str:
    return NAMES.get(key, plain(key))


def _said(fact: Fact | None) -> str:
    if fact is None:
        return NONE
    return ("yes" if fact else "no") if isinstance(fact, bool) else plain(_number(fact)) if isinstance(fact, float) else plain(str(fact))


def _figure(row: Row, key: str) -> Figure:
    """As the tool gives it, to six digits, and its own error."""
    found = row.figures.get(key)
    if found is None or found.value is None:
        return Figure(NONE)
    scale = STYLES[key].scale if key in STYLES else 1.0
    error = f"± {_number(scale * found.error)}" if found.error is not None else ""
    return Figure(_number(scale * found.value), error, scale * found.value)


def _number(x: float) -> str:
    return f"{x:.6g}".replace("-", "−")


def render_csv(imports: Iterable[Imports]) -> str:
    """A line for each figure: a long form, because tools share no columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("tool", "label", *rows.FACTS, "metric", "value", "error", "why", "source"))
    for row in (row for one in imports for row in one.rows):
        known = [plain(str(row.facts.get(key, ""))) for key in rows.FACTS]
        for key, figure in row.figures.items():
            why = plain(figure.why or "")
            writer.writerow((row.tool, plain(row.label), *known, plain(key), figure.value, figure.error, why, plain(row.source)))
    return text.getvalue()

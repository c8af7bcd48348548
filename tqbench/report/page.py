"""The report as one HTML file that needs nothing else: no network, no fonts, no second file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from tqbench.core.quantity import size
from tqbench.core.record import Cell
from tqbench.report import across, details, draw
from tqbench.report.figures import Chart
from tqbench.report.gate import EXIT, Verdict, exit_code
from tqbench.report.run import Run
from tqbench.report.table import MARKS, Table, short_headings, tables
from tqbench.report.text import plain


@dataclass(frozen=True)
class Section:
    """One setting: its result table, its figures, and what lies behind them."""

    table: Table
    figures: list[Chart]
    grids: list[details.Grid]
    evidence: list[details.Evidence]


def render(run: Run, verdicts: list[Verdict], charts: list[Chart]) -> str:
    """The page."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files("tqbench.report") / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else plain(value),
    )
    environment.filters["inline"] = lambda chart: Markup(inline(chart))  # noqa: S704 - matplotlib escapes the names in it
    code = exit_code(run, verdicts)
    return environment.get_template("page.html.j2").render(
        run=run,
        code=code,
        says=f"{EXIT[code][0].upper()}{EXIT[code][1:]}",
        tone={0: "good", 5: "open"}.get(code, "bad"),
        verdicts=verdicts,
        short=short_headings(run),
        columns=list({(column.title, column.meaning): column for table in tables(run) for column in table.columns}.values()),
        marks=MARKS,
        sections=_sections(run, charts),
        grids=across.grids(run),
        across=[chart for chart in charts if chart.setting is None],
        machine=_machine(run),
        texts=_texts(run),
    )


def inline(chart: Chart) -> str:
    """A figure as part of the page: its colours for ink and paper become the page's, its ids its own."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", chart.svg[chart.svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _as_own(tag.group(), chart.name), svg)
    return re.sub(r'width="[^"]*" height="[^"]*"|height="[^"]*"(?= viewBox)', 'role="img"', svg, count=1)


def _as_own(tag: str, name: str) -> str:
    tag = tag.replace(draw.INK, "currentColor").replace(draw.PAPER, "none")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)


def _sections(run: Run, charts: list[Chart]) -> list[Section]:
    return [
        Section(
            table,
            [chart for chart in charts if chart.setting == setting],
            [
                *(grid for grid in (details.ledger(run, cells), details.positions(run, cells)) if grid),
                *details.stored(run, cells),
                *details.stages(run, cells),
            ],
            details.evidence(run, cells),
        )
        for table, (setting, cells) in zip(tables(run), run.settings().items(), strict=True)
    ]


def _machine(run: Run) -> list[tuple[str, str]]:
    """The environment as name and text."""
    return [
        (name.removesuffix("_bytes").replace("_", " "), _spell(name, value)) for name, value in run.environment.items() if name != "schema"
    ]


def _spell(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {'not installed' if item is None else item}" for key, item in value.items()) or "none"
    return size(value) if name.endswith("_bytes") else str(value)


def _texts(run: Run) -> list[tuple[str, str]]:
    """What was scored, by hash: the same hashes are the same tokens."""
    return list(dict.fromkeys(_text(run)))


def _text(run: Run) -> Iterator[tuple[str, str]]:
    short = short_headings(run)
    for setting, cells in run.settings().items():
        for cell in cells:
            yield from _hashes(run, cell, short[setting])


def _hashes(run: Run, cell: Cell, where: str) -> Iterator[tuple[str, str]]:
    record = run.record(cell)
    if record is None or record.outcome != "ok":
        return
    text = record.text
    yield "tqbench", record.tqbench or "unknown version"
    yield "model", f"{record.model.get('name', cell.model)}: {record.model.get('weights', 'weights not described')}"
    if "sha256" in text:
        yield f"corpus {text.get('corpus', '')}", f"{text.get('origin', '')}, SHA-256 {text['sha256']}"
    if "ids_sha256" in text:
        yield f"token ids {where}".strip(), f"SHA-256 {text['ids_sha256']}"

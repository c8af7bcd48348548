"""The result tables as LaTeX, for papers: booktabs, one table per setting, nothing but text that is escaped."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from tqbench.report.column import Figure
from tqbench.report.foreign import Foreign
from tqbench.report.markdown import BRIEF
from tqbench.report.run import Run
from tqbench.report.table import Row, Table, tables
from tqbench.report.text import plain

SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": "{-}",
    "[": "{[}",
    "]": "{]}",
    "Δ": r"$\Delta$",
    "×": r"$\times$",
    "−": "$-$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "–": "--",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "Σ": r"$\Sigma$",
    "σ": r"$\sigma$",
    "μ": r"$\mu$",
    "⁻": r"$^{-}$",
}
HEAD = "% \\usepackage{booktabs,textcomp}"


def render(run: Run) -> str:
    """Every table of a run."""
    return "\n\n".join([HEAD, *(_table(table) for table in tables(run))]) + "\n"


def measured_elsewhere(others: Sequence[Foreign]) -> str:
    """What other tools measured, a table for each of their recipes."""
    return "\n\n".join([HEAD, *(_foreign(one) for one in others)]) + "\n"


def escape(text: str) -> str:
    """Text that LaTeX sets as it is. Letters that its usual fonts lack are named by their number."""
    return "".join(SPECIAL.get(character) or _letter(character) for character in plain(text))


def _letter(character: str) -> str:
    return character if ord(character) < 0x180 and unicodedata.category(character) != "Cc" else f"{{[}}U+{ord(character):04X}{{]}}"


def _foreign(one: Foreign) -> str:
    rows = [rf"{' & '.join([escape(label), *map(_figure, figures)])} \\" for label, figures in one.grid.rows]
    caption = f"{one.title}: {one.said}. Not comparable with tables of tqbench: {one.caveat}."
    return _tabular(escape(caption), [one.grid.corner, *one.grid.head], rows)


def _table(table: Table) -> str:
    keep = [i for i, column in enumerate(table.columns) if column.title in BRIEF]
    notes = [escape(line) for line in (*table.facts, *table.marks(), *table.notes())]
    head = ["scheme", *(table.columns[i].title for i in keep)]
    return _tabular(f"{escape(table.heading)}. {'; '.join(notes)}.", head, [_row(row, keep) for row in table.rows])


def _tabular(caption: str, head: list[str], rows: list[str]) -> str:
    """A table; its caption and rows are LaTeX already."""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            rf"{' & '.join(map(escape, head))} \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _row(row: Row, keep: list[int]) -> str:
    if not row.figures:
        return rf"{escape(row.label)} & \multicolumn{{{len(keep)}}}{{l}}{{\emph{{{escape(row.outcome)}}}}} \\"
    return rf"{' & '.join([escape(row.label), *(_figure(row.figures[i]) for i in keep)])} \\"


def _figure(figure: Figure) -> str:
    return escape(figure.text) + (rf" {{\scriptsize {escape(figure.detail)}}}" if figure.detail else "")

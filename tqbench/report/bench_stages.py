"""A benchmark of stages as a figure: where the time of each form goes, what loops take on the little that they can do, and how time grows
with the components that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqbench.bench.result import Bench, Row
from tqbench.report.bars import COLOURS
from tqbench.report.draw import INK
from tqbench.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INVERSE = ("unproject", "dequantize", "unpack", "uncenter")  # in the legend under the name of what they undo
BARE, LINES = "#7d8791", ("#0072B2", "#D55E00", "#009E73")
WIDTH, BAR, ROOM = 8.6, 0.21, 1.5  # inches: of all, of one bar, and of the axis and title of a panel
CURVE = 3.4  # inches of the curves' panel


def draw(bench: Bench, figure: Figure) -> None:
    """All panels that there is something for."""
    staged = [row for row in bench.rows if row.timing and row.stages]
    looped = {row.scheme for row in staged if row.role == "baseline" and row.components is None}
    whole = [row for row in staged if row.components is None and row.scheme not in looped]
    few = [row for row in staged if row.components is None and row.scheme in looped]
    curves = [row for row in staged if row.components is not None]
    panels = [(_stacked, whole), (_plain, few), (_curves, curves)]
    panels = [(paint, rows) for paint, rows in panels if rows]
    heights = [CURVE if paint is _curves else len(rows) * BAR + ROOM for paint, rows in panels]
    figure.set_size_inches(WIDTH, sum(heights) + 1.2)
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, (paint, rows) in zip(grid.flat, panels, strict=True):
        paint(axes, rows)


def _stacked(axes: Axes, rows: Sequence[Row]) -> None:
    """The stages of one more call with marks, scaled to the median without."""
    for stage in dict.fromkeys(name for row in rows for name in row.stages or {}):
        starts, widths = [], []
        for row in rows:
            stages, scale = row.stages or {}, _median(row) / sum((row.stages or {}).values())
            before = list(stages)[: list(stages).index(stage)] if stage in stages else []
            starts.append(scale * sum(stages[name] for name in before))
            widths.append(scale * stages.get(stage, 0.0))
        axes.barh(range(len(rows)), widths, left=starts, color=COLOURS[stage], label=f"_{stage}" if stage in INVERSE else stage)
    axes.legend(loc="lower right", fontsize=7.5)
    _bars(axes, rows, "stages of all layers and heads")
    axes.set_xlim(right=1.25 * max(_median(row) for row in rows))  # room for the legend


def _plain(axes: Axes, rows: Sequence[Row]) -> None:
    axes.barh(
        range(len(rows)), [_median(row) for row in rows], color=[BARE if row.role == "baseline" else COLOURS["project"] for row in rows]
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    _bars(axes, rows, "the same work for a few layers and heads, loops included")


def _bars(axes: Axes, rows: Sequence[Row], title: str) -> None:
    axes.set_yticks(range(len(rows)), [f"{row.name} · {row.tokens:,}" for row in rows], fontsize=7.5)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    for i, row in enumerate(rows):
        axes.annotate(number(_median(row)), (_median(row), i), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.margins(x=0.08)
    axes.set_xlabel("milliseconds, median")
    axes.set_title(title, size=10, weight="bold", loc="left")


def _curves(axes: Axes, rows: Sequence[Row]) -> None:
    lines: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        lines.setdefault(((row.scheme or "").split()[-1], row.form, row.tokens), []).append(row)
    for i, ((direction, form, tokens), some) in enumerate(lines.items()):
        reference = some[0].role == "baseline" and direction == "compress"
        axes.plot(
            [row.components or 0 for row in some],
            [_median(row) for row in some],
            label=f"{direction}, form {form}, {tokens:,} tokens",
            color=BARE if reference else LINES[i % len(LINES)],
            linestyle="--" if reference else "-",
            marker="D",
            markersize=4,
        )
    ticks = sorted({row.components for row in rows if row.components})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("components that are kept, r")
    axes.set_ylabel("milliseconds, median")
    axes.set_title("kvtc_paper: keys and values of all layers, against r", size=10, weight="bold", loc="left", color=INK)
    axes.legend(fontsize=7.5)


def _median(row: Row) -> float:
    return row.timing.spread.median if row.timing else 0.0

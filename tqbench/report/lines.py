"""Figures against tokens: context, depth and position in the window, a line per scheme. Imported only when something is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqbench.report.draw import DASHES, INK, Drawing, Point, Tips, above_zero, colour, label_ends, y_ticks
from tqbench.report.scatter import codec_colours, legend, mark
from tqbench.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = dict[str, dict[int, Point]]


def by_context(lines: Lines, title: str, axis: str, subtitle: str) -> Drawing:
    """One line per scheme, labelled at its end."""

    def draw(axes: Axes) -> Tips:
        contexts = _axes(axes, lines, axis)
        axes.set_xlabel("context, tokens")
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
        tips: Tips = {}
        for index, line in enumerate(lines.values()):
            _line(axes, line, index)
            for x, point in sorted(line.items()):
                tips[f"tip-{len(tips)}"] = f"{point.label} at {x:,}: {number(point.y.value)}"
                mark(axes, x, point, f"tip-{len(tips) - 1}", codec_colours(point))
        _ends(axes, list(lines.values()))
        return tips

    return Drawing(title, subtitle, draw)


def by_position(lines: Lines, named: set[str], subtitle: str) -> Drawing:
    """KLD by position in the window; of many schemes those in `named` stand out, the others are grey."""

    def draw(axes: Axes) -> Tips:
        _axes(axes, lines, "mean KLD, nats per token")
        axes.set_xlabel("position in the window, tokens")
        ticks = [tick for tick in (2**i for i in range(0, 24, 2)) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        shown = [line for name, line in lines.items() if name in named]
        for name, line in lines.items():
            if name not in named:
                axes.plot(*_xy(line), color=INK, alpha=0.15, linewidth=0.8, zorder=1)
        for index, line in enumerate(shown):
            _line(axes, line, index, marker=".")
        _ends(axes, shown)
        return {}

    return Drawing("KLD by position", subtitle, draw)


def _axes(axes: Axes, lines: Lines, axis: str) -> list[int]:
    """Both axes logarithmic; where the points are."""
    points = [point for line in lines.values() for point in line.values()]
    xs = sorted({x for line in lines.values() for x in line})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(xs[0] / 1.15, xs[-1])
    axes.set_ylim(min(above_zero(point.y) for point in points) / 1.7, max(point.y.ends[1] for point in points) * 1.7)
    axes.minorticks_off()
    y_ticks(axes, "{:g}")
    axes.set_ylabel(axis)
    return xs


def _xy(line: dict[int, Point]) -> tuple[list[int], list[float]]:
    xs = sorted(line)
    return xs, [line[x].y.value for x in xs]


def _line(axes: Axes, line: dict[int, Point], index: int, marker: str = "") -> None:
    codec = next(iter(line.values())).codecs[0]
    axes.plot(*_xy(line), color=colour(codec), linestyle=DASHES[index % len(DASHES)], linewidth=1.2, marker=marker, markersize=5, zorder=2)


def _ends(axes: Axes, lines: list[dict[int, Point]]) -> None:
    label_ends(axes, [(max(line), line[max(line)]) for line in lines])
    legend(axes, [point for line in lines for point in line.values()])

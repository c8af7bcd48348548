"""Where the time of a step goes, drawn: a bar per scheme, its stages one after another. Imported only when something is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqbench.report.draw import INK, LABEL_SIZE, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "model": "#B8C4CE",
    "append": "#E69F00",
    "encode": "#D55E00",
    "gather": "#F7C59F",
    "entropy": "#5B2A86",
    "write": "#3B3B3B",
    "read": "#3B3B3B",
    "restore": "#F7C59F",
    "decode": "#CC79A7",
    "attend": "#0072B2",
    "settle": "#7F7F7F",
    "choose": "#009E73",
    "unexplained": "#F0E442",
}


def stages(bars: list[tuple[str, dict[str, float]]], names: list[str], subtitle: str) -> str:
    """Milliseconds by stage; the first bar on top."""

    def draw(axes: Axes) -> None:
        axes.set_position((0.2, 0.115, 0.75, 0.68))
        heights = list(range(len(bars) - 1, -1, -1))
        starts = [0.0] * len(bars)
        for name in names:
            widths = [max(0.0, spent.get(name, 0.0)) for _, spent in bars]
            style: dict[str, Any] = {"color": COLOURS.get(name, INK), "edgecolor": INK, "linewidth": 0.4, "height": 0.62}
            axes.barh(heights, widths, left=starts, label=name, **style)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        for height, end in zip(heights, starts, strict=True):
            axes.annotate(f"{end:,.3g}", (end, height), (4, 0), textcoords="offset points", va="center", size=LABEL_SIZE)
        axes.set_yticks(heights, [label if len(label) <= 18 else f"{label[:17]}…" for label, _ in bars])
        axes.set_xlim(0, 1.12 * max(starts))
        axes.set_xlabel("milliseconds")
        axes.grid(axis="y", visible=False)
        axes.legend(ncols=len(names), loc="lower left", bbox_to_anchor=(-0.27, 1.0), fontsize=7.5, columnspacing=1, handlelength=1)

    return figure(draw, "Where the time goes", subtitle)

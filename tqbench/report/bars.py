"""Stacked bars, one per scheme: where the time of a step goes, and what the bytes of a cache are. Imported only when something is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqbench.report.draw import INK, LABEL_SIZE, MARGINS, PAPER, Drawing, Tips, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "model": "#B8C4CE",
    "append": "#E69F00",
    "encode": "#D55E00",
    **dict.fromkeys(("center", "uncenter"), "#56B4E9"),
    **dict.fromkeys(("project", "unproject"), "#0072B2"),
    **dict.fromkeys(("quantize", "dequantize"), "#882255"),
    **dict.fromkeys(("pack", "unpack"), "#009E73"),
    "gather": "#F7C59F",
    "entropy": "#5B2A86",
    "write": "#3B3B3B",
    "read": "#3B3B3B",
    "restore": "#F7C59F",
    "decode": "#CC79A7",
    "attend": "#0072B2",
    "settle": "#7F7F7F",
    "choose": "#009E73",
    "embed": "#999933",
    "norm": "#88CCEE",
    "qkv": "#CC6677",
    "rope": "#882255",
    "out": "#AA4499",
    "residual": "#BBBBBB",
    "ffn": "#332288",
    "activation": "#44AA99",
    "lm_head": "#661100",
    "unexplained": "#F0E442",
    "payload": "#0072B2",
    "metadata": "#56B4E9",
    "protected": "#CC79A7",
    "window": "#E69F00",
    "sinks": "#D55E00",
    "tables": "#009E73",
    "slack": PAPER,
}
LEFT, BAR, AROUND = 1.3, 0.3, 1.55  # inches: names, a bar with its gap, all above and below
ROW = 9  # names that fit beside each other; more take two rows
Bars = list[tuple[str, dict[str, float], str]]  # name, its parts, what stands at the end


def stages(bars: Bars, names: list[str], subtitle: str) -> Drawing:
    """Milliseconds by stage; the first bar on top."""
    return _stacked(bars, names, {}, "Where the time goes", "milliseconds", subtitle)


def ledger(bars: Bars, names: list[str], lines: dict[str, float], subtitle: str) -> Drawing:
    """Bytes by part, and `lines` to hold them against."""
    return _stacked(bars, names, lines, "What the cache holds", "bytes per token", subtitle)


def _stacked(bars: Bars, names: list[str], lines: dict[str, float], title: str, axis: str, subtitle: str) -> Drawing:
    width, height = 6.4, max(2.4, AROUND + BAR * len(bars))

    def draw(axes: Axes) -> Tips:
        axes.set_position((LEFT / width, MARGINS[1] / height, 1 - (LEFT + 0.3) / width, 1 - 1.37 / height))
        tips = _parts(axes, bars, names)
        at, totals = list(range(len(bars) - 1, -1, -1)), [sum(parts.values()) for _, parts, _ in bars]
        for y, end, (_, _, says) in zip(at, totals, bars, strict=True):
            axes.annotate(says, (end, y), (4, 0), textcoords="offset points", va="center", size=LABEL_SIZE)
        axes.set_yticks(at, [shorten(name, 19) for name, _, _ in bars])
        axes.set_ylim(-0.6, len(bars) - 0.4)
        axes.set_xlim(0, 1.25 * max(*totals, *lines.values(), 0.0))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.set_xlabel(axis)
        axes.grid(axis="y", visible=False)
        for name, x in lines.items():
            axes.axvline(x, color=INK, linewidth=0.9, linestyle=":", zorder=1)
            axes.annotate(name, (x, len(bars) - 0.4), (3, 0), textcoords="offset points", va="bottom", ha="right", size=7.5)
        axes.figure.legend(
            *axes.get_legend_handles_labels(),
            ncols=len(names) if len(names) <= ROW else -(-len(names) // 2),
            loc="upper left",
            bbox_to_anchor=(0, 1 - 0.44 / height),
            fontsize=7.5,
            columnspacing=1,
            handlelength=1,
        )
        return tips

    return Drawing(title, subtitle, draw, (width, height))


def _parts(axes: Axes, bars: Bars, names: list[str]) -> Tips:
    """The bars, part after part; each says what it is."""
    tips: Tips = {}
    starts = [0.0] * len(bars)
    for name in names:
        widths = [max(0.0, parts.get(name, 0.0)) for _, parts, _ in bars]
        style: dict[str, Any] = {"color": COLOURS.get(name, INK), "edgecolor": INK, "linewidth": 0.4, "height": 0.62}
        if name == "slack":
            style |= {"linestyle": "--"}
        drawn = axes.barh(range(len(bars) - 1, -1, -1), widths, left=starts, label=name, **style)
        for patch, width, (who, _, _) in zip(drawn, widths, bars, strict=True):
            tips[f"tip-{len(tips)}"] = f"{who}: {name} {width:,.4g}"
            patch.set_gid(f"tip-{len(tips) - 1}")
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    return tips

"""Drawing with matplotlib, to SVG with text as text. Imported only when something is drawn."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from tqbench.core.record import Estimate
from tqbench.report.labels import AROUND, RIGHT, Box, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

INK, PAPER = "#1f2933", "#ffffff"  # a page replaces them by its own
COLOURS = {
    "block": "#0072B2",
    "codebook": "#D55E00",
    "affine": "#009E73",
    "cast": "#7F7F7F",
    "own": "#56606b",
}  # of Okabe and Ito: told apart by most eyes
SPARE = ("#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")
BIT_TICKS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 24, 32)
LABEL_SIZE = 8
MOST_TICKS = 10
CROWD = 24  # points: of more only those are named that no other beats
BESIDE_TITLE = 6  # marks of the legend
MARK: dict[str, Any] = {"marker": "o", "markersize": 7, "markeredgecolor": INK, "markeredgewidth": 0.5}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tqbench",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Point:
    """A scheme in a figure: its name, the codecs of K and V, bits per value, the quality, and the floor in ppl."""

    label: str
    codecs: tuple[str, str]
    bits: float
    y: Estimate
    floor: float | None = None


def kld_by_bits(points: list[Point], subtitle: str) -> str:
    """Mean KLD on a logarithmic axis, with the frontier."""

    def draw(axes: Axes) -> None:
        low = min(_above_zero(point.y) for point in points)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.7, max(point.y.ends[1] for point in points) * 1.7)
        _y_ticks(axes, "{:g}")
        best = frontier([(point.bits, point.y.value) for point in points])
        axes.plot(*zip(*best, strict=True), color=INK, alpha=0.35, linewidth=1, linestyle="--", zorder=1)
        _scatter(axes, points)
        axes.set_ylabel("mean KLD, nats per token")

    return figure(draw, "KLD against bits", subtitle)


def dppl_by_bits(points: list[Point], subtitle: str) -> str:
    """Δppl, linear around zero and logarithmic beyond, so that better than the baseline can be seen too; each scheme's floor in grey."""

    def draw(axes: Axes) -> None:
        floors = [point.floor for point in points if point.floor]
        most = max(*(point.y.ends[1] for point in points), *floors, 0.0)
        least = min(*(point.y.ends[0] for point in points), *(-floor for floor in floors), 0.0)
        smallest = min((abs(point.y.value) for point in points if point.y.value), default=1.0)
        linear = max(min(floors, default=smallest), 1e-4 * max(most, -least))
        axes.set_yscale("symlog", linthresh=linear)
        axes.set_ylim(1.4 * min(least, -linear), 1.7 * max(most, linear))
        _y_ticks(axes, "{:+g}", linear)
        axes.axhline(0, color=INK, linewidth=0.8, alpha=0.6, zorder=1)
        for point in points:
            if point.floor:
                axes.fill_between((point.bits / 1.04, point.bits * 1.04), -point.floor, point.floor, color=INK, alpha=0.13, linewidth=0)
        _scatter(axes, points)
        axes.set_ylabel("Δppl")

    return figure(draw, "Δppl against bits", subtitle)


def by_context(lines: dict[str, dict[int, Point]], title: str, axis: str, subtitle: str) -> str:
    """One line per scheme, labelled at its end."""

    def draw(axes: Axes) -> None:
        points = [point for line in lines.values() for point in line.values()]
        contexts = sorted({context for line in lines.values() for context in line})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlim(contexts[0] / 1.15, contexts[-1] * (contexts[-1] / contexts[0]) ** 0.3)  # room for labels
        axes.set_ylim(min(_above_zero(point.y) for point in points) / 1.7, max(point.y.ends[1] for point in points) * 1.7)
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
        axes.minorticks_off()
        _y_ticks(axes, "{:g}")
        for index, line in enumerate(lines.values()):
            xs, shown = sorted(line), [line[context] for context in sorted(line)]
            colour = _colour(shown[0].codecs[0])
            axes.plot(xs, [p.y.value for p in shown], color=colour, linestyle=DASHES[index % len(DASHES)], linewidth=1.2, zorder=2)
            for x, point in zip(xs, shown, strict=True):
                _mark(axes, x, point)
        _label(axes, [(max(line), line[max(line)]) for line in lines.values()], RIGHT, [])
        axes.set_xlabel("context, tokens")
        axes.set_ylabel(axis)
        _legend(axes, points)

    return figure(draw, title, subtitle)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both, from few bits to many."""
    best: list[tuple[float, float]] = []
    for bits, cost in sorted(points):
        if not best or cost < best[-1][1]:
            best.append((bits, cost))
    return best


def _scatter(axes: Axes, points: list[Point]) -> None:
    bits = [point.bits for point in points]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(bits) / 1.2, max(bits) * 1.25)
    axes.set_xticks([tick for tick in BIT_TICKS if min(bits) / 1.2 <= tick <= max(bits) * 1.25])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("bits kept per value at this context (scales included, exact tokens at 16)")
    for point in points:
        _mark(axes, point.bits, point)
    named = points
    if len(points) > CROWD:
        best = set(frontier([(point.bits, point.y.value) for point in points]))
        named = [point for point in points if (point.bits, point.y.value) in best]
    _label(axes, [(point.bits, point) for point in named], AROUND, [_bar(axes, point) for point in points])
    _legend(axes, points)


def _mark(axes: Axes, x: float, point: Point) -> None:
    low, high = point.y.ends
    k, v = map(_colour, point.codecs)
    reach = [[max(0.0, point.y.value - low)], [max(0.0, high - point.y.value)]]
    axes.errorbar([x], [point.y.value], reach, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2, alpha=0.7, zorder=3)
    axes.plot([x], [point.y.value], color=k, markerfacecoloralt=v, fillstyle=_halves(k, v), zorder=4, **MARK)


def _bar(axes: Axes, point: Point) -> Box:
    """Where its error bar is on the page."""
    (x, bottom), (_, top) = (axes.transData.transform((point.bits, max(end, axes.get_ylim()[0]))) for end in point.y.ends)
    return Box(x - 2, bottom, 4, top - bottom)


def _label(axes: Axes, points: list[tuple[float, Point]], ways: tuple[tuple[int, int], ...], taken: list[Box]) -> None:
    at = [tuple(axes.transData.transform((x, point.y.value))) for x, point in points]
    (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)])
    texts = [point.label if len(point.label) <= 28 else f"{point.label[:27]}…" for _, point in points]
    boxes = place(at, texts, Box(left, bottom, right - left, top - bottom), LABEL_SIZE, ways, taken)
    for (x, y), text, box in zip(at, texts, boxes, strict=True):
        side = "left" if box.x > x else "right" if box.x + box.width < x else "center"
        anchor = {"left": box.x, "right": box.x + box.width, "center": box.x + box.width / 2}[side]
        middle = box.y + box.height / 2
        far = math.dist((x, y), (anchor, middle)) > 18
        thread = {"arrowstyle": "-", "color": INK, "alpha": 0.4, "linewidth": 0.6, "shrinkB": 4} if far else None
        axes.annotate(
            text, (x, y), (anchor, middle), "figure pixels", "figure pixels", thread, ha=side, va="center", size=LABEL_SIZE, zorder=5
        )


def _legend(axes: Axes, points: list[Point]) -> None:
    names = sorted({codec for point in points for codec in point.codecs})
    marks = [_handle(_colour(name), _colour(name), name) for name in names]
    if any(k != v for k, v in (point.codecs for point in points)):
        marks.append(_handle(INK, PAPER, "left half K, right half V"))
    style: dict[str, Any] = {"fontsize": 7.5, "columnspacing": 1, "handletextpad": 0}
    if len(marks) > BESIDE_TITLE:  # few bits and a small error: that corner is empty
        axes.legend(handles=marks, ncols=3, loc="lower left", **style)
    else:
        axes.figure.legend(handles=marks, ncols=len(marks), loc="upper right", bbox_to_anchor=(0.995, 0.995), **style)


def _handle(k: str, v: str, label: str) -> Line2D:
    """A mark and what it means."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, linestyle="", color=k, markerfacecoloralt=v, fillstyle=_halves(k, v), **MARK)


def _halves(k: str, v: str) -> Literal["full", "left"]:
    return "full" if k == v else "left"


def _colour(codec: str) -> str:
    return COLOURS.get(codec) or SPARE[sum(map(ord, codec)) % len(SPARE)]


def _above_zero(estimate: Estimate) -> float:
    """The lower end, where a logarithm can show it."""
    low = estimate.ends[0]
    return low if low > 0 else estimate.value


def _y_ticks(axes: Axes, spelled: str, linear: float = 0.0) -> None:
    """Ticks at 1, 2 and 5, or at powers of ten where those would be too many; none but 0 where the axis is linear."""
    bottom, top = axes.get_ylim()
    least = linear or bottom
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(max(top, -bottom))) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1,)):
        sizes = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = sorted(tick for size in sizes for tick in (-size, size) if bottom <= tick <= top and size >= least)
        if len(ticks) <= MOST_TICKS:
            break
    ticks = sorted([*ticks, *([0.0] if bottom < 0 else [])])
    axes.set_yticks(ticks, [spelled.format(tick).replace("-", "−") if tick else "0" for tick in ticks])
    axes.minorticks_off()


def figure(draw: Callable[[Axes], None], title: str, subtitle: str) -> str:
    """One axes with its title, as SVG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    with mpl.rc_context(cast("Any", STYLE)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names may have letters that the font for measuring lacks; the reader's fonts have them
        page = Figure(figsize=(6.4, 4.4), dpi=72)
        FigureCanvasSVG(page)
        axes = page.add_axes((0.13, 0.115, 0.85, 0.75))
        page.text(0.01, 0.955, title, size=12, weight="bold")
        page.text(0.01, 0.91, subtitle if len(subtitle) <= 100 else f"{subtitle[:99]}…", size=7.5, alpha=0.75)
        draw(axes)
        page.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    return text.getvalue()

"""Quality against bits, drawn: what a scheme costs against what it keeps. Imported only when something is drawn.

K and V may differ: the left half of a mark has the colour of K's codec, the right half that of V's.
Where speed was measured, it is the colour.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from tqbench.report.draw import CROWD, INK, PAPER, Drawing, Point, Tips, above_zero, colour, label, y_ticks
from tqbench.report.labels import Box
from tqbench.report.text import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

BIT_TICKS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 24, 32)
BESIDE_TITLE = 6  # marks of the legend
MARK: dict[str, Any] = {"marker": "o", "markeredgecolor": INK, "markeredgewidth": 0.5}
SPEEDS, DARKEST = "viridis", 0.25  # even to the eye, told apart by most, and seen on dark pages


def kld_by_bits(points: list[Point], subtitle: str, speed: str = "") -> Drawing:
    """Mean KLD on a logarithmic axis, with the frontier. `speed`: what the colours mean, if they do not mean codecs."""

    def draw(axes: Axes) -> Tips:
        low = min(above_zero(point.y) for point in points)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.7, max(point.y.ends[1] for point in points) * 1.7)
        y_ticks(axes, "{:g}")
        axes.set_ylabel("mean KLD, nats per token")
        axes.plot(*zip(*_best(points), strict=True), color=INK, alpha=0.35, linewidth=1, linestyle="--", zorder=1)
        return _scatter(axes, points, "kld", speed)

    return Drawing("KLD against bits", subtitle, draw, _size(points))


def dppl_by_bits(points: list[Point], subtitle: str, speed: str = "") -> Drawing:
    """Δppl, linear around zero and logarithmic beyond, so that better than the baseline can be seen too. Hollow: below its floor."""

    def draw(axes: Axes) -> Tips:
        floors = [point.floor for point in points if point.floor and len(points) <= CROWD]
        most = max(*(point.y.ends[1] for point in points), *floors, 0.0)
        least = min(*(point.y.ends[0] for point in points), *(-floor for floor in floors), 0.0)
        smallest = min((abs(point.y.value) for point in points if point.y.value), default=1.0)
        linear = max(min(floors, default=smallest), 1e-4 * max(most, -least))
        axes.set_yscale("symlog", linthresh=linear)
        axes.set_ylim(1.4 * min(least, -linear), 1.7 * max(most, linear))
        y_ticks(axes, "{:+g}", linear)
        axes.set_ylabel("Δppl")
        axes.axhline(0, color=INK, linewidth=0.8, alpha=0.6, zorder=1)
        for point in points:
            if point.floor and floors:
                axes.fill_between((point.bits / 1.04, point.bits * 1.04), -point.floor, point.floor, color=INK, alpha=0.13, linewidth=0)
        return _scatter(axes, points, "dppl", speed)

    return Drawing("Δppl against bits", subtitle, draw, _size(points))


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both, from few bits to many."""
    best: list[tuple[float, float]] = []
    for bits, cost in sorted(points):
        if not best or cost < best[-1][1]:
            best.append((bits, cost))
    return best


def _best(points: list[Point]) -> list[tuple[float, float]]:
    return frontier([(point.bits, point.y.value) for point in points])


def _size(points: list[Point]) -> tuple[float, float]:
    return (6.4, 4.4) if len(points) <= CROWD else (10.0, 6.6)


def _scatter(axes: Axes, points: list[Point], metric: str, speed: str) -> Tips:
    bits = [point.bits for point in points]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(bits) / 1.2, max(bits) * 1.25)
    axes.set_xticks([tick for tick in BIT_TICKS if min(bits) / 1.2 <= tick <= max(bits) * 1.25])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("bits kept per value at this context (scales included, exact tokens at 16)")
    best, crowded = set(_best(points)), len(points) > CROWD
    colours = _colours(points) if speed else {}
    for i, point in enumerate(points):
        first = (point.bits, point.y.value) in best
        mark(axes, point.bits, point, f"tip-{i}", _fill(point, metric, colours), size=8 if first else 6.5, faint=crowded and not first)
    named = [point for point in points if not crowded or (point.bits, point.y.value) in best]
    label(axes, [(point.bits, point) for point in named], [box for point in points for box in _boxes(axes, point)])
    if colours:
        _scale(axes, points, speed)
    else:
        legend(axes, points)
    return {f"tip-{i}": _tip(point, metric) for i, point in enumerate(points)}


def _tip(point: Point, metric: str) -> str:
    floor = f", floor {point.floor:.2g}" if point.floor and metric == "dppl" else ""
    speed = f", {point.speed:.3g} times as fast as the model's own cache" if point.speed else ""
    return f"{point.label}: {interval(point.y, metric)}{floor}, {point.bits:.4g} bits{speed}"


def mark(axes: Axes, x: float, point: Point, gid: str, fill: tuple[str, str], size: float = 7, faint: bool = False) -> None:
    """A point with its error bar; its left half in the first colour, its right half in the second."""
    low, high = point.y.ends
    reach = [[max(0.0, point.y.value - low)], [max(0.0, high - point.y.value)]]
    clear = 0.35 if faint else 1.0
    axes.errorbar([x], [point.y.value], reach, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2, alpha=0.7 * clear, zorder=3)
    look: dict[str, Any] = {"color": fill[0], "markerfacecoloralt": fill[1], "fillstyle": _halves(*fill), "markersize": size}
    axes.plot([x], [point.y.value], alpha=clear, zorder=4, gid=gid, **look, **MARK)


def _fill(point: Point, metric: str, colours: dict[str, str]) -> tuple[str, str]:
    """Hollow: not timed where others were, or a Δppl below its floor."""
    if colours:
        return (colours.get(point.label, PAPER),) * 2
    if metric == "dppl" and point.floor and abs(point.y.value) < point.floor:
        return PAPER, PAPER
    return codec_colours(point)


def codec_colours(point: Point) -> tuple[str, str]:
    """The colours of K's codec and of V's."""
    return colour(point.codecs[0]), colour(point.codecs[1])


def _boxes(axes: Axes, point: Point) -> tuple[Box, Box]:
    """Where its mark and its error bar are on the page."""
    ys = (point.y.value, *(max(end, axes.get_ylim()[0]) for end in point.y.ends))
    (x, middle), (_, bottom), (_, top) = (map(float, axes.transData.transform((point.bits, y))) for y in ys)
    return Box(x - 4, middle - 4, 8, 8), Box(x - 2, bottom, 4, top - bottom)


def _range(points: list[Point]) -> tuple[float, float]:
    """The speeds between which the colours run; as fast as the own cache is always one of them."""
    speeds = [point.speed for point in points if point.speed]
    return min(*speeds, 0.95), max(*speeds, 1.05)


def _colours(points: list[Point]) -> dict[str, str]:
    """A colour for each scheme that was timed: equal factors are equal steps."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    low, high = _range(points)
    parts = {p.label: math.log(p.speed / low) / math.log(high / low) for p in points if p.speed}
    return {name: to_hex(colormaps[SPEEDS](_shade(part))) for name, part in parts.items()}


def _shade(part: float) -> float:
    return DARKEST + (1 - DARKEST) * part


def _scale(axes: Axes, points: list[Point], speed: str) -> None:
    """What the colours mean."""
    from matplotlib import colormaps

    (low, high), (width, height) = _range(points), _size(points)
    strip = axes.figure.add_axes((1 - 1.6 / width, 1 - 0.27 / height, 1.1 / width, 0.08 / height))
    steps = 24
    shades = [colormaps[SPEEDS](_shade(i / (steps - 1))) for i in range(steps)]
    strip.bar(range(steps), [1] * steps, 1.02, color=shades, align="edge")
    strip.axvline(steps * math.log(1 / low) / math.log(high / low), color=INK, linewidth=1, ymin=-0.4, ymax=1.4, clip_on=False)
    strip.set(xlim=(0, steps), ylim=(0, 1))
    strip.set_axis_off()
    strip.text(-0.5, 0.5, f"{low:.2f}×", size=7, ha="right", va="center")
    strip.text(steps + 0.5, 0.5, f"{high:.2f}×", size=7, ha="left", va="center")
    axes.figure.text(1 - 0.06 / width, 1 - 0.14 / height, speed, size=7.5, ha="right")


def legend(axes: Axes, points: list[Point]) -> None:
    """The codecs by colour."""
    names = sorted({codec for point in points for codec in point.codecs})
    marks = [_handle(colour(name), colour(name), name) for name in names]
    if any(k != v for k, v in (point.codecs for point in points)):
        marks.append(_handle(INK, PAPER, "left half K, right half V"))
    style: dict[str, Any] = {"fontsize": 7.5, "columnspacing": 1, "handletextpad": 0}
    if len(marks) > BESIDE_TITLE:  # few bits and a small error: that corner is empty
        axes.legend(handles=marks, ncols=3, loc="lower left", **style)
    else:
        axes.figure.legend(handles=marks, ncols=len(marks), loc="upper right", bbox_to_anchor=(0.995, 0.995), **style)


def _handle(k: str, v: str, name: str) -> Line2D:
    """A mark and what it means."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=name, linestyle="", color=k, markerfacecoloralt=v, fillstyle=_halves(k, v), markersize=7, **MARK)


def _halves(k: str, v: str) -> Literal["full", "left"]:
    return "full" if k == v else "left"

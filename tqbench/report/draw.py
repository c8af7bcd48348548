"""Drawing with matplotlib: one look for every figure; SVG with text as text, PDF, PNG. Imported only when something is drawn."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from tqbench.core.record import Estimate
from tqbench.report.labels import Box, place, spread, width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Form = Literal["svg", "pdf", "png"]
Tips = dict[str, str]  # what a mark says when pointed at, by its id
INK, PAPER = "#1f2933", "#ffffff"  # a page replaces them by its own
COLOURS = {  # of Okabe and Ito, told apart by most eyes; of Tol where those are used up
    "block": "#0072B2",
    "codebook": "#D55E00",
    "affine": "#009E73",
    "mlx_affine": "#56B4E9",
    "nonuniform": "#E69F00",
    "fp8": "#CC79A7",
    "microscaling": "#F0E442",
    "product": "#882255",
    "qjl": "#AA4499",
    "polar": "#44AA99",
    "polar_pairs": "#117733",
    "split": "#999933",
    "cast": "#7F7F7F",
    "own": "#7d8791",
}
SPARE = ("#332288", "#DDCC77", "#88CCEE")
DASHES = ("-", "--", "-.", ":")
LABEL_SIZE = 8
LONGEST = 28  # letters of a label
MOST_TICKS = 10
CROWD = 24  # schemes: of more only those are named that no other beats
MARGINS = (0.83, 0.51, 0.13, 0.6)  # inches left, below, right and above
FONT = "'DejaVu Sans'"
FONTS = "'DejaVu Sans', Verdana, Arial, sans-serif"  # where a reader lacks the first; the second is as wide
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tqbench",
    "pdf.fonttype": 42,  # text stays text
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
    """A scheme in a figure: its name, the codecs of K and V, bits per value, the quality, its floor in ppl, and how fast it decodes."""

    label: str
    codecs: tuple[str, str]
    bits: float
    y: Estimate
    floor: float | None = None
    speed: float | None = None


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn when it is written. `draw` returns what its marks say when pointed at."""

    title: str
    subtitle: str
    draw: Callable[[Axes], Tips]
    size: tuple[float, float] = (6.4, 4.4)

    def write(self, form: Form = "svg") -> bytes:
        """One axes with its title. The same records give the same bytes."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        written = io.BytesIO()
        with mpl.rc_context(cast("Any", STYLE)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names may have letters that the font for measuring lacks; the reader's fonts have them
            width, height = self.size
            left, below, right, above = MARGINS
            page = Figure(figsize=self.size, dpi=72)
            axes = page.add_axes((left / width, below / height, 1 - (left + right) / width, 1 - (below + above) / height))
            page.text(0.06 / width, 1 - 0.2 / height, self.title, size=12, weight="bold")
            page.text(0.06 / width, 1 - 0.4 / height, shorten(self.subtitle, int(15.5 * width)), size=7.5, alpha=0.75)
            tips = self.draw(axes)
            page.savefig(written, format=form, dpi=72 if form == "svg" else 200, metadata=self._metadata(form))
        return written.getvalue() if form != "svg" else _told(written.getvalue().decode(), tips).encode()

    def _metadata(self, form: Form) -> dict[str, Any]:
        none: dict[str, Any] = {
            "svg": {"Date": None, "Creator": None},
            "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        }.get(form, {"Software": None})
        return {**none, "Title": self.title}


def _told(svg: str, tips: Tips) -> str:
    """Marks say what they are, and text is legible where the first font is missing."""
    marked = re.sub(r'<g id="(tip-\d+)">', lambda tag: f"{tag.group()}<title>{html.escape(tips[tag[1]])}</title>", svg)
    return re.sub(r'style="[^"]*"', lambda style: style.group().replace(FONT, FONTS), marked)


def colour(codec: str) -> str:
    """A codec's colour, the same in every figure."""
    return COLOURS.get(codec) or SPARE[sum(map(ord, codec)) % len(SPARE)]


def shorten(text: str, longest: int = LONGEST) -> str:
    """A name of any length, where there is little room."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def label(axes: Axes, points: list[tuple[float, Point]], taken: list[Box]) -> None:
    """Names beside their points; `taken` is what had better stay visible. What is at the same place shares a label."""
    at: dict[tuple[float, float], str] = {}
    for x, point in points:
        at[x, point.y.value] = f"{at[x, point.y.value]}, {point.label}" if (x, point.y.value) in at else point.label
    places = [tuple(axes.transData.transform(place)) for place in at]
    (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)])
    texts = [shorten(text) for text in at.values()]
    for spot, text, box in zip(
        at, texts, place(places, texts, Box(left, bottom, right - left, top - bottom), LABEL_SIZE, taken), strict=True
    ):
        x = axes.transData.transform(spot)[0]
        side = "left" if box.x > x else "right" if box.x + box.width < x else "center"
        anchor = {"left": box.x, "right": box.x + box.width, "center": box.x + box.width / 2}[side]
        _name(axes, spot, text, (anchor, box.y + box.height / 2), side)


def label_ends(axes: Axes, ends: list[tuple[float, Point]]) -> None:
    """Names at the right ends of lines, from top to bottom in their order; room is made for them."""
    texts = [shorten(point.label) for _, point in ends]
    (left, low), (right, high) = axes.transData.transform(
        [(axes.get_xlim()[0], axes.get_ylim()[0]), (axes.get_xlim()[1], axes.get_ylim()[1])]
    )
    room = min(0.5, (18 + max(width(text, LABEL_SIZE) for text in texts)) / (right - left))
    first, last = axes.get_xlim()
    axes.set_xlim(first, first * (last / first) ** (1 / (1 - room)))
    heights = [float(axes.transData.transform((x, point.y.value))[1]) for x, point in ends]
    for (x, point), text, y in zip(ends, texts, spread(heights, 1.25 * LABEL_SIZE, low, high), strict=True):
        _name(axes, (x, point.y.value), text, (float(axes.transData.transform((x, point.y.value))[0]) + 14, y), "left")


def _name(axes: Axes, spot: tuple[float, float], text: str, at: tuple[float, float], side: str) -> None:
    far = math.dist(axes.transData.transform(spot), at) > 18
    thread = {"arrowstyle": "-", "color": INK, "alpha": 0.4, "linewidth": 0.6, "shrinkB": 4} if far else None
    axes.annotate(text, spot, at, "data", "figure points", thread, ha=side, va="center", size=LABEL_SIZE, zorder=5)


def above_zero(estimate: Estimate) -> float:
    """The lower end, where a logarithm can show it."""
    low = estimate.ends[0]
    return low if low > 0 else estimate.value


def y_ticks(axes: Axes, spelled: str, linear: float = 0.0) -> None:
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
    axes.set_yticks(ticks, [_tick(tick, spelled) for tick in ticks])
    axes.minorticks_off()


def _tick(value: float, spelled: str) -> str:
    text = f"{value:,.0f}" if spelled == "{:g}" and value >= 1e4 else spelled.format(value)
    return text.replace("-", "−") if value else "0"

"""A heat map: layers from left to right, a row per scheme and side. Imported only when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import TYPE_CHECKING

from tqbench.report.draw import INK, LABEL_SIZE, MARGINS, Drawing, Tips, shorten
from tqbench.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT, RIGHT, ROW, AROUND, WIDTH = 1.3, 0.85, 0.24, 1.2, 9.0  # inches
RANKED = 5  # the worst so many of a scheme are numbered
DECADES = 3  # at most: what is less than a thousandth of the worst is as light as can be
SCALE = "YlOrRd"
DARK = 0.6  # of the scale, from where on what is written is white
Lines = Sequence[tuple[str, Sequence[float | None]]]


def layers(lines: Lines, names: Sequence[int], ranks: Mapping[tuple[str, int], int], subtitle: str, floor: float = 0.0) -> Drawing:
    """The figures of `lines`, a column for each of `names`. What does not exceed the floor is not told from nothing."""
    height = AROUND + ROW * len(lines)

    def draw(axes: Axes) -> Tips:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LogNorm
        from matplotlib.patches import Rectangle

        axes.set_position((LEFT / WIDTH, MARGINS[1] / height, 1 - (LEFT + RIGHT) / WIDTH, 1 - AROUND / height))
        known = [x for _, row in lines for x in row if x is not None and x > max(floor, 0.0)]
        most = max(known)
        norm = LogNorm(max(min(known), most / 10**DECADES, 1e-300) * (0.999 if len(set(known)) == 1 else 1), most, clip=True)
        scale, tips = colormaps[SCALE], Tips()
        for y, (name, row) in enumerate(lines):
            for x, kld in enumerate(row):
                if kld is None:
                    continue
                shade = float(norm(max(kld, norm.vmin or 0.0)))
                patch = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=scale(shade), edgecolor="none")
                tips[f"tip-{len(tips)}"] = f"{name}, layer {names[x]}: KLD {number(kld)}"
                patch.set_gid(f"tip-{len(tips) - 1}")
                axes.add_patch(patch)
                if rank := ranks.get((name, names[x])):
                    axes.text(x, y, str(rank), ha="center", va="center", size=7, color="white" if shade > DARK else "black")
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        step = max(1, -(-len(names) // 32))
        axes.set_xticks(range(0, len(names), step), [str(name) for name in names[::step]], size=7)
        axes.set_yticks(range(len(lines)), [shorten(name, 19) for name, _ in lines], size=LABEL_SIZE)
        axes.grid(visible=False)
        axes.set_xlabel("layer")
        beside = axes.figure.add_axes((1 - 0.68 / WIDTH, MARGINS[1] / height, 0.14 / WIDTH, 1 - AROUND / height))
        bar = axes.figure.colorbar(ScalarMappable(norm, scale), cax=beside)
        exponents = range(int(log10(norm.vmin or 1.0)) - 1, int(log10(most)) + 1)
        ticks = [10.0**e for e in exponents if (norm.vmin or 0.0) <= 10.0**e <= most] or [most]
        bar.set_ticks(ticks, labels=[f"{tick:.0e}".replace("e-0", "e−").replace("e+0", "e") for tick in ticks])
        bar.ax.minorticks_off()
        bar.ax.tick_params(labelsize=7, colors=INK)
        return tips

    return Drawing("Where it hurts", subtitle, draw, (WIDTH, height))

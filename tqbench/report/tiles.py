"""A heat map of shares from 0 to 1, in panels that have rows and columns in common. Imported only when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqbench.report.draw import INK, LABEL_SIZE, Drawing, Tips, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE, ROW, GAP = 0.62, 0.3, 0.3  # inches: width and height of a tile, and what lies between panels
LEFT, RIGHT, BELOW, ABOVE = 0.83, 0.2, 0.6, 0.95  # inches around the panels
ACROSS = 12  # columns side by side, at most; further panels go below
SCALE, DARK = "Blues", 0.55  # of the scale, from where on what is written is light
ON_DARK, ON_LIGHT = "#fdfdfd", "#101418"  # neither is a page's ink or paper, which pages replace


@dataclass(frozen=True)
class Tile:
    """A share, what stands in it and what it says when pointed at. Hatched: it says nothing, because the baseline fails there."""

    value: float
    text: str
    tip: str
    hatched: bool = False


Panel = tuple[str, Mapping[tuple[int, int], Tile]]  # its title, and its tiles by row and column


def panels(found: Sequence[Panel], rows: Sequence[str], columns: Sequence[str], names: tuple[str, str], about: tuple[str, str]) -> Drawing:
    """All panels on one axes. `names`: of rows and columns; `about`: title and subtitle."""
    beside = max(1, min(len(found), ACROSS // max(1, len(columns))))
    lines = -(-len(found) // beside)
    across, down = beside * len(columns) * SIZE + (beside - 1) * GAP, lines * (len(rows) * ROW) + (lines - 1) * (GAP + 0.35)
    width, height = max(4.2, LEFT + across + RIGHT), BELOW + down + ABOVE

    def draw(axes: Axes) -> Tips:
        axes.set_position((LEFT / width, BELOW / height, across / width, down / height))
        axes.set_xlim(0, across)
        axes.set_ylim(down, 0)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
        tips: Tips = {}
        for i, (title, tiles) in enumerate(found):
            left, top = (i % beside) * (len(columns) * SIZE + GAP), (i // beside) * (len(rows) * ROW + GAP + 0.35)
            axes.text(
                left, top - 0.06, shorten(title, max(6, int(len(columns) * SIZE / 0.075))), size=LABEL_SIZE, weight="bold", va="bottom"
            )
            _labels(axes, (left, top), rows if i % beside == 0 else [], columns, bottom=top + len(rows) * ROW)
            for (row, column), one in tiles.items():
                tips[f"tip-{len(tips)}"] = f"{title}: {one.tip}"
                _tile(axes, (left + column * SIZE, top + row * ROW), one, f"tip-{len(tips) - 1}")
        axes.set_ylabel(names[0], labelpad=34)
        axes.set_xlabel(names[1], labelpad=18)
        return tips

    return Drawing(about[0], about[1], draw, (width, height))


def _labels(axes: Axes, at: tuple[float, float], rows: Sequence[str], columns: Sequence[str], bottom: float) -> None:
    for y, name in enumerate(rows):
        axes.text(at[0] - 0.06, at[1] + (y + 0.5) * ROW, name, size=LABEL_SIZE, ha="right", va="center", clip_on=False)
    for x, name in enumerate(columns):
        axes.text(at[0] + (x + 0.5) * SIZE, bottom + 0.05, name, size=LABEL_SIZE, ha="center", va="top", clip_on=False)


def _tile(axes: Axes, at: tuple[float, float], one: Tile, tip: str) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    shade = 0.08 + 0.8 * one.value
    patch = Rectangle(at, SIZE, ROW, facecolor=colormaps[SCALE](shade), edgecolor=INK, linewidth=0.4, hatch="///" if one.hatched else None)
    patch.set_gid(tip)
    axes.add_patch(patch)
    ink = ON_DARK if shade > DARK else ON_LIGHT
    axes.text(at[0] + SIZE / 2, at[1] + ROW / 2, one.text, size=7, ha="center", va="center", color=ink)

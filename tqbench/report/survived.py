"""Survival curves: the share of prompts that still agree after so many tokens, a line per scheme. Imported only when something is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqbench.core.record import Estimate
from tqbench.metrics.shares import Step
from tqbench.report.draw import DASHES, Drawing, Point, Tips, colour, label_ends
from tqbench.report.scatter import legend
from tqbench.report.text import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BANDS = 4  # lines whose intervals can be told apart


def curves(lines: Mapping[str, tuple[Sequence[Step], tuple[str, str]]], subtitle: str) -> Drawing:
    """A step for every token; of few lines the intervals, too."""

    def draw(axes: Axes) -> Tips:
        most = max(steps[-1].after for steps, _ in lines.values())
        axes.set_xscale("log", base=2)
        axes.set_xlim(1, most)
        axes.set_ylim(-0.02, 1.02)
        axes.minorticks_off()
        ticks = [tick for tick in (2**i for i in range(24)) if tick <= most]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        axes.set_xlabel("tokens after the prompt")
        axes.set_ylabel("prompts that agree so far")
        tips, ends = Tips(), []
        for index, (name, (steps, codecs)) in enumerate(lines.items()):
            xs, known = [step.after for step in steps[1:]], [step.share for step in steps[1:]]
            last = Point(name, codecs, 1.0, Estimate(known[-1].value))
            style: dict[str, Any] = {"color": colour(codecs[0]), "linestyle": DASHES[index % len(DASHES)]}
            (line,) = axes.step(xs, [share.value for share in known], where="post", linewidth=1.4, zorder=2, **style)
            tips[f"tip-{index}"] = f"{name}: {interval(known[-1], 'survival')} after {xs[-1]:,}"
            line.set_gid(f"tip-{index}")
            if len(lines) <= BANDS:
                low, high = ([share.ends[end] for share in known] for end in (0, 1))
                axes.fill_between(xs, low, high, step="post", color=colour(codecs[0]), alpha=0.12, linewidth=0)
            ends.append((xs[-1], last))
        ends.sort(key=lambda end: -end[1].y.value)
        label_ends(axes, [(float(x), point) for x, point in ends])
        legend(axes, [point for _, point in ends])
        return tips

    return Drawing("Agreement with the baseline, free-running", subtitle, draw)

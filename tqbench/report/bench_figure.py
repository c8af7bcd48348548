"""A benchmark as a figure: time against tokens, one panel for each scheme, with the same uncompressed baselines in all of them in grey and
the time that memory alone would take. Benchmarks of stages have a figure of their own (`bench_stages`)."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from tqbench.bench.result import Bench, Row
from tqbench.report import bench_stages
from tqbench.report.bench_table import facts
from tqbench.report.draw import INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "native": "#0072B2",
    "torch": "#D55E00",
    "naive": "#CC79A7",
    "reference": "#CC79A7",
    "torch eager": "#D55E00",
}  # of Okabe and Ito
COMPARED = ("naive", "reference", "torch eager")  # what a scheme's own forms are drawn against
SPARE = ("#009E73", "#E69F00", "#56B4E9")
GREYS, DASHES, MARKERS = ("#a3abb3", "#7d8791", "#3e4c59", INK), (":", "--", "-", "-."), ("o", "s", "^", "v")
ACROSS, PANEL = 3, (3.1, 2.7)  # panels in a line, and inches of each
Line = tuple[list[int], list[float]]


def render(bench: Bench) -> dict[str, bytes]:
    """The figure as `svg` and as `png`."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {}
    with mpl.rc_context(cast("Any", STYLE)):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        if any(row.stages for row in bench.rows):
            bench_stages.draw(bench, figure)
        else:
            _against_tokens(bench, figure)
        _title(figure, bench)
        for kind in ("svg", "png"):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            found[kind] = file.getvalue()
    return found


def _against_tokens(bench: Bench, figure: Figure) -> None:
    schemes = list(dict.fromkeys(row.scheme for row in bench.rows if row.scheme and row.timing))
    down, across = -(-len(schemes) // ACROSS) or 1, min(ACROSS, len(schemes)) or 1
    figure.set_size_inches(max(2, across) * PANEL[0] + 0.4, down * PANEL[1] + 1.9)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, scheme in zip(grid.flat, schemes, strict=False):
        _panel(axes, bench, scheme)
        axes.label_outer()
    for axes in grid.flat[len(schemes) :]:
        axes.set_visible(False)
    marks = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=min(5, len(marks) or 1), fontsize=7.5)


def _panel(axes: Axes, bench: Bench, scheme: str) -> None:
    titles = {rival: title for title, rival in bench.comparisons.items()}
    for name, look in _greys(_uncompressed(bench)).items():
        line = _line(row for row in bench.rows if row.name == name)
        axes.plot(*line, label=titles.get(name, name), linewidth=1, markersize=3.5, **look)
    own = [row for row in bench.rows if row.scheme == scheme]
    for i, form in enumerate(dict.fromkeys(row.form for row in own)):
        colour, bold = COLOURS.get(form) or SPARE[i % len(SPARE)], 1.4 if form in COMPARED else 2.0
        line = _line(row for row in own if row.form == form)
        if line[0]:
            axes.plot(
                *line,
                label=form if form in COMPARED else f"form {form}",
                color=colour,
                linewidth=bold,
                marker="D",
                markersize=4,
                zorder=3,
            )
    limit = {row.tokens: row.limit_ms for row in own if row.limit_ms}
    if limit:
        axes.plot(list(limit), list(limit.values()), label="memory limit", color=INK, linewidth=1.2, linestyle=(0, (1, 1.5)), zorder=2)
    axes.set_title(scheme, size=10, weight="bold", loc="left")
    _scales(axes, sorted({row.tokens for row in bench.rows}))


def _uncompressed(bench: Bench) -> list[str]:
    """The rows that every scheme is compared with."""
    shared = [row.name for row in bench.rows if row.role == "baseline" and not row.scheme]
    return list(dict.fromkeys([*shared, *(rival for rival in bench.comparisons.values() if any(row.name == rival for row in bench.rows))]))


def _greys(names: list[str]) -> dict[str, dict[str, Any]]:
    """The way decides shade and dashes, the type the marker, as in `sdpa bf16`."""
    ways, types = (list(dict.fromkeys(name.split()[end] for name in names)) for end in (0, -1))
    looks = {}
    for name in names:
        way, kind = ways.index(name.split()[0]), types.index(name.split()[-1])
        dash, marker = DASHES[way % len(DASHES)], MARKERS[kind % len(MARKERS)]
        looks[name] = {"color": GREYS[way % len(GREYS)], "linestyle": dash, "marker": marker}
    return looks


def _line(rows: Iterable[Row]) -> Line:
    timed = [(row.tokens, row.timing.spread.median) for row in rows if row.timing]
    return [tokens for tokens, _ in timed], [median for _, median in timed]


def _scales(axes: Axes, tokens: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(tokens, [f"{n // 1024}k" if n % 1024 == 0 else f"{n}" for n in tokens])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens")
    axes.set_ylabel("milliseconds, median")
    axes.minorticks_off()


def _title(figure: Figure, bench: Bench) -> None:
    figure.suptitle("time per call\n", size=12, weight="bold", ha="left", x=0.01)
    figure.text(0.01, 1 - 0.38 / figure.get_size_inches()[1], " · ".join(facts(bench)), size=7, alpha=0.75, va="center")

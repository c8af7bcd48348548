"""Sensitivity for people: the sides of layers from worst to best, what keys and values looked like beforehand, how well that foretold it,
and all of it as a heat map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tqbench.core.record import Cell, Estimate, Record
from tqbench.metrics.traits import TRAITS, spearman
from tqbench.report import heat
from tqbench.report.chart import Chart
from tqbench.report.column import Figure
from tqbench.report.details import SIDES, Grid, measured
from tqbench.report.run import Run
from tqbench.report.table import heading, label
from tqbench.report.text import NONE, bounds, number, value

SHORT = {
    "error": "codec error",
    "norm_mean": "norm",
    "norm_max": "max norm",
    "norm_spread": "norm spread",
    "bias": "K bias",
    "kurtosis": "kurtosis",
    "kurtosis_rotated": "kurtosis rotated",
    "channel_max": "channel max",
}
Place = tuple[int, str]


@dataclass(frozen=True)
class _Probed:
    """A scheme's probes, and what keys and values looked like before, by layer and side."""

    name: str
    record: Record
    traits: dict[Place, dict[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        """From worst to best."""
        own: list[dict[str, Any]] = [self.traits.get((row["layer"], row["side"]), {}) | row for row in self.record.layers]
        return sorted(own, key=lambda row: row["kld"], reverse=True)


def _probed(run: Run, cells: Iterable[Cell]) -> list[_Probed]:
    found = []
    for record in measured(run, cells):
        if record.cell.task == "sensitivity" and record.layers:
            base = run.baseline(record.cell)
            traits = {(row["layer"], row["side"]): row for row in base.layers} if base else {}
            found.append(_Probed(label(run, record.cell), record, traits))
    return found


def grids(run: Run, cells: list[Cell]) -> list[Grid]:
    """Per scheme the ranking, and for all of them what foretold it."""
    found = _probed(run, cells)
    return [*([_foretold(found)] if found else []), *(_ranked(one) for one in found)]


def _ranked(one: _Probed) -> Grid:
    known = [name for name in SHORT if any(row.get(name) is not None for row in one.rows())]
    about = "; ".join(f"{SHORT[name]}: {TRAITS[name]}" for name in known if name in TRAITS)
    caption = (
        "each side of each layer packed alone, from worst to best. First: the share of the draws of the bootstrap in which it costs most. "
        f"{'Beside it what keys and values looked like in the first window: ' if about else ''}{about}{'.' if about else ''}"
    )
    rows = []
    for row in one.rows():
        kld, dnll = (Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in ("kld", "dnll"))
        rows.append(
            (
                f"{row['layer']} {SIDES[row['side']]}",
                (
                    Figure(value(kld, "kld"), bounds(kld, "kld"), kld.value),
                    Figure(value(dnll, "ln_ratio"), bounds(dnll, "ln_ratio"), dnll.value),
                    Figure(f"{100 * row['first']:.3g} %", order=row["first"]),
                    *(_trait(row.get(name)) for name in known),
                ),
            )
        )
    head = ("KLD", "ΔNLL", "first", *(SHORT[name] for name in known))
    return Grid(f"Layers of {one.name}", caption, "layer", head, tuple(rows))


def _trait(x: float | None) -> Figure:
    return Figure(NONE) if x is None else Figure(number(x), order=x)


def _foretold(found: list[_Probed]) -> Grid:
    """Rank correlations between what was known before and what was measured."""
    names = [name for name in SHORT if any(row.get(name) is not None for one in found for row in one.rows())]
    rows = []
    for one in found:
        for side, title in SIDES.items():
            own = [row for row in one.rows() if row["side"] == side]
            rows.append((f"{one.name} {title}", tuple(_correlation(own, name) for name in names)))
    tried, layers = len(names) * len(rows), max(len(one.record.layers) // 2 for one in found)
    caption = (
        f"Spearman's rank correlation over {layers} layers between a figure known before and the KLD of packing that side alone, with its "
        f"95 % interval: 1 names the worst layers without a probe, 0 tells nothing. Of {tried} that are shown, about {max(1, tried // 20)} "
        "would miss 0 by chance; layers are not independent, and another model may rank otherwise. Codec error is known only once packed."
    )
    return Grid("What foretold it", caption, "scheme", tuple(SHORT[name] for name in names), tuple(rows))


def _correlation(rows: list[dict[str, Any]], name: str) -> Figure:
    pairs = [(row[name], row["kld"]) for row in rows if row.get(name) is not None]
    found = spearman(*np.array(pairs, np.float64).T) if pairs else None
    if found is None:
        return Figure(NONE)
    ends = f"[{found.low:+.2f}, {found.high:+.2f}]".replace("-", "−") if found.low is not None and found.high is not None else ""
    return Figure(f"{found.value:+.2f}".replace("-", "−"), ends, found.value)


def charts(run: Run, cells: list[Cell], index: int) -> Iterable[Chart]:
    """The heat map of a setting: a row per scheme and side, a column per layer."""
    found = [one for one in _probed(run, cells) if any(row["kld"] > 0 for row in one.record.layers)]
    if not found:
        return
    base = run.baseline(cells[0])
    floor = base.metrics["kld_nothing"].value if base and "kld_nothing" in base.metrics else 0.0
    layers = sorted({row["layer"] for one in found for row in one.record.layers})
    lines = []
    for one in found:
        for side, title in SIDES.items():
            own = {row["layer"]: row["kld"] for row in one.record.layers if row["side"] == side}
            lines.append((f"{one.name} {title}", [own.get(layer) for layer in layers]))
    caption = (
        "Sensitivity: KLD when one side of one layer is packed alone, on a logarithmic scale; darker is worse. Numbers are ranks within "
        f"a scheme, both sides together. Packing nothing gives {number(floor, 2)} here."
    )
    ranks = {(f"{one.name} {SIDES[row['side']]}", row["layer"]): i for one in found for i, row in enumerate(one.rows()[: heat.RANKED], 1)}
    data = tuple({"scheme": one.name, "rank": i, **row} for one in found for i, row in enumerate(one.rows(), 1))
    drawing = heat.layers(lines, layers, ranks, heading(cells[0]), max(floor, 0.0))
    yield Chart(f"sensitivity-{index}", cells[0].setting, caption, drawing, data)

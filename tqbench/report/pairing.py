"""Two measurements of the same tokens, subtracted token by token where their scores are at hand, and refused where they are not alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tqbench.core.record import Cell, Estimate, Record
from tqbench.corpora import recipes
from tqbench.metrics.paired import ENOUGH, Bootstrap, blocks
from tqbench.report.knobs import Knob, differences, distance, stops
from tqbench.report.run import Run

How = Literal["equal", "paired", "unpaired", "refused"]
ROUNDED = 1e-5  # nats: far more than float32 scores can move their mean, far less than anyone would bother to cheat by
HOWS: dict[How, str] = {
    "equal": "every score is equal bit for bit",
    "paired": "paired token by token",
    "unpaired": "not paired: per-token scores (nll.npy) are not at hand on both sides. This is the difference of two costs, each against "
    "its own baseline; the ends of its interval are as far apart as theirs allow",
    "refused": "not comparable",
}


@dataclass(frozen=True)
class Pair:
    """A cell of the first run and its like in the other. `metrics`: the other's minus the first's."""

    first: Record | None
    other: Record | None
    cell: Cell
    how: How
    why: str  # it is refused
    knobs: tuple[Knob, ...] = ()
    metrics: dict[str, Estimate] | None = None
    floor: float | None = None

    @property
    def tokens(self) -> int:
        """How many scores were subtracted."""
        return int(self.other.text.get("scored", 0)) if self.other else 0

    @property
    def rough(self) -> bool:
        """Whether there are too few windows for more than a rough interval."""
        return self.how != "equal" and self.other is not None and self.other.text.get("windows", ENOUGH) < ENOUGH


def pairs(first: Run, other: Run, chosen: tuple[str | None, str | None] = (None, None), allow: frozenset[str] = frozenset()) -> list[Pair]:
    """Each cell of the other run with the cell of the first that is most like it. `chosen`: one scheme of either, which may differ.
    `allow`: keys that are no reason to refuse."""
    mine = [cell for cell in first.cells if chosen[0] in (None, cell.label)]
    theirs = [cell for cell in other.cells if chosen[1] in (None, cell.label)]
    crossed = None not in chosen and chosen[0] != chosen[1]
    alike = [
        (distance(a, b), i, j)
        for i, a in enumerate(mine)
        for j, b in enumerate(theirs)
        if a.task == b.task and (crossed or a.label == b.label)
    ]
    partner: dict[int, int] = {}  # of theirs, nearest first
    for _, i, j in sorted(alike):
        if j not in partner and i not in partner.values():
            partner[j] = i
    found = [
        _pair(first, other, mine[partner[j]], cell, allow, crossed=crossed)
        if j in partner
        else Pair(None, other.record(cell), cell, "refused", f"only {other.title} has it")
        for j, cell in enumerate(theirs)
    ]
    alone = [cell for i, cell in enumerate(mine) if i not in partner.values()]
    return found + [Pair(first.record(cell), None, cell, "refused", f"only {first.title} has it") for cell in alone]


def _pair(first: Run, other: Run, partner: Cell, cell: Cell, allow: frozenset[str], *, crossed: bool) -> Pair:
    a, b = first.record(partner), other.record(cell)
    for run, record, one in ((first, a, partner), (other, b, cell)):
        if record is None or record.outcome != "ok":
            reason = f": {record.reason}" if record and record.reason else ""
            return Pair(a, b, cell, "refused", f"{run.title} has no result for it ({run.outcome(one)}){reason}")
    assert a  # noqa: S101 - for the type checker: an outcome needs a record
    assert b  # noqa: S101
    knobs = tuple(differences((first, a), (other, b), crossed=crossed))
    fatal = [knob for knob in knobs if stops(knob, allow)]
    if fatal:
        return Pair(a, b, cell, "refused", "; ".join(map(str, fatal)), knobs)
    floor = max((floor for one in (first.floor(a), other.floor(b)) if (floor := one) is not None), default=None)
    how, why, metrics = _subtract(first, other, a, b)
    return Pair(a, b, cell, how, why, knobs, metrics, floor)


def _subtract(first: Run, other: Run, a: Record, b: Record) -> tuple[How, str, dict[str, Estimate] | None]:
    if b.cell.task != "perplexity":
        return "unpaired", "", None
    if a.fingerprint and a.fingerprint == b.fingerprint:
        zero = Estimate(0.0, 0.0, 0.0)
        return "equal", "", {"dppl": zero, "ln_ratio": zero}
    try:
        mine, theirs = scores(first, a), scores(other, b)
        where = None if mine is None or theirs is None else windows(b)
    except ValueError as error:
        return "refused", str(error), None
    if mine is not None and theirs is not None and where is not None:
        boot, exp = Bootstrap(blocks(where)), np.exp
        dppl = boot.estimate(theirs, mine, of=lambda x, y: exp(x) - exp(y))
        return "paired", "", {"dppl": dppl, "ln_ratio": boot.estimate(theirs - mine)}
    return "unpaired", "", {name: _apart(a, b, name) for name in ("dppl", "ln_ratio")}


def _apart(a: Record, b: Record, name: str) -> Estimate:
    """The difference of two costs that were each paired with the same baseline; without one, the bare difference of two perplexities."""
    if name in a.metrics and name in b.metrics:
        (low, high), (low2, high2) = a.metrics[name].ends, b.metrics[name].ends
        return Estimate(b.metrics[name].value - a.metrics[name].value, low2 - high, high2 - low)
    x, y = a.metrics["ppl"].value, b.metrics["ppl"].value
    return Estimate(y - x if name == "dppl" else math.log(y / x))


def scores(run: Run, record: Record) -> NDArray[np.float64] | None:
    """The per-token scores beside a record; None if they are not there. ValueError if they are not its own."""
    path: Path = run.folder / "cells" / record.cell.key / "nll.npy"
    if not path.exists():
        return None
    found: Any = np.load(path, allow_pickle=False).astype(np.float64)
    scored, ppl = record.text.get("scored"), record.metrics["ppl"].value
    if found.shape != (scored,):
        raise ValueError(f"{record.cell.label}: nll.npy holds {found.size} scores, the record has {scored}")
    if not abs(found.mean() - math.log(ppl)) <= ROUNDED * (1 + abs(math.log(ppl))):
        raise ValueError(f"{record.cell.label}: nll.npy gives a perplexity of {math.exp(found.mean()):.6g}, the record says {ppl:.6g}")
    return np.asarray(found)


def windows(record: Record) -> NDArray[np.int64]:
    """The window of each scored token."""
    spans = recipes.spans(record.cell.params)[: record.text.get("windows")]
    where = np.repeat(np.arange(len(spans)), [span.last - span.first for span in spans])
    if len(where) != record.text.get("scored"):
        raise ValueError(f"{record.cell.label}: {record.text.get('scored')} scored tokens do not fit its recipe, which scores {len(where)}")
    return where

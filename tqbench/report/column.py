"""What a table is made of: columns, and the figures that they show of a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tqbench.core.record import Record
from tqbench.metrics.verdict import paid
from tqbench.report.run import bits_of
from tqbench.report.text import NONE, bounds, exact, half, plain, value

MARKED_COVERAGE = 0.5
ROUNDED = 1e-6  # of a share


@dataclass(frozen=True)
class Line:
    """A cell with numbers, and the floor under them."""

    record: Record
    floor: float | None


@dataclass(frozen=True)
class Figure:
    """What stands in one place of a table: the figure, what belongs below it, its order when sorted, what stands below in little room."""

    text: str
    detail: str = ""
    order: float | None = None
    brief: str | None = None


@dataclass(frozen=True)
class Column:
    """A column: its title, what it means, and how it shows a line."""

    title: str
    meaning: str
    show: Callable[[Line], Figure]
    optional: bool = False  # left out of a table in which it shows nothing


def bits(line: Line) -> Figure:
    """Bits per packed value, and K / V where they differ."""
    found = bits_of(line.record)
    if "bits" not in found:
        return Figure(NONE)
    k, v = (trim(found[name]) if name in found else NONE for name in ("bits_k", "bits_v"))
    sides = f"{k} / {v}" if k != v else ""
    return Figure(trim(found["bits"]), sides, found["bits"], sides.replace(" ", ""))


def coverage(line: Line) -> Figure:
    """The share that was packed, in percent: of K and V the smaller, and below it both where they differ."""
    share, sides = line.record.coverage, _sides(line.record)
    if share is None:
        return Figure(NONE)
    k, v = map(_percent, sides)
    if k == v:
        return Figure(f"{_percent(share)}{_mark(share)}", order=share)
    where = "" if abs(sum(sides) / 2 - share) < ROUNDED else " in the longest text"
    least = min(share, *sides)
    return Figure(f"{_percent(least)}{_mark(least)}", f"K {k} / V {v}{where}", least, f"{k}/{v}")


def _sides(record: Record) -> tuple[float, float]:
    """Of what was attended of K, and of V, the share that was packed, by the evidence, which is of the longest text."""
    seen = [[e for e in record.evidence if e.get("side") == side and e.get("attended")] for side in "kv"]
    if not all(seen):
        return (record.coverage or 0.0,) * 2
    packed = [sum(e["attended_packed"] for e in own if e.get("counts", True)) for own in seen]
    k, v = (some / sum(e["attended"] for e in own) for some, own in zip(packed, seen, strict=True))
    return k, v


def _percent(share: float) -> str:
    return trim(round(100 * share, 1))


def _mark(share: float) -> str:
    return "*" if share < MARKED_COVERAGE else ""


def metric(name: str) -> Callable[[Line], Figure]:
    """A metric with its interval below it."""

    def show(line: Line) -> Figure:
        estimate = line.record.metrics.get(name)
        if estimate is None:
            return Figure(NONE)
        if exact(estimate):
            return Figure("0 (exact)", order=0.0)
        estimate = paid(line.record, name, estimate)
        return Figure(value(estimate, name), bounds(estimate, name), estimate.value, half(estimate, name))

    return show


def kernels(line: Line) -> Figure:
    """The form of attention, and the form that unpacked the cache."""
    ran = line.record.kernels
    attend, decode = (plain(str(ran.get(op, NONE))).replace("+", " + ") for op in ("attend", "decode"))
    return Figure(attend, decode) if ran else Figure(NONE)


def trim(x: float) -> str:
    """Three decimals at most."""
    return f"{x:.3f}".rstrip("0").rstrip(".")


BITS = Column("bits", "bits per packed value at this model's head_dim, scales and norms included; below it K / V where they differ", bits)
COVERAGE = Column(
    "coverage %",
    "the share of what was attended that was read in packed form: of K and V the smaller, and below it both where they differ",
    coverage,
)


KERNELS = Column("kernels", "the form of attention that ran; below it the form that unpacked the cache", kernels)

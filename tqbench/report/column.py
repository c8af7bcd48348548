"""What a table is made of: columns, and the figures that they show of a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tqbench.core.quantity import size
from tqbench.core.record import Record
from tqbench.metrics.verdict import paid
from tqbench.report.run import bits_of
from tqbench.report.text import NONE, bounds, exact, half, plain, value

MARKED_COVERAGE = 0.5
TRIFLE = 0.01  # of a cache
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
    """Bits per packed value, K / V where they differ, and what a sequence or the model keeps besides."""
    found = bits_of(line.record)
    if "bits" not in found:
        return Figure(NONE)
    k, v = (trim(found[name]) if name in found else NONE for name in ("bits_k", "bits_v"))
    kept, tables = _kept(found), _tables(line.record)
    differ = k != v
    detail = [
        *([f"K {k} / V {v}"] if differ else []),
        *([f"kept {kept:.3g}"] if kept else []),
        *([f"tables {size(tables)}"] if tables else []),
    ]
    brief = [*([f"{k}/{v}"] if differ else []), *([f"kept {kept:.2g}"] if kept else []), *([f"+{size(tables, 0)}"] if tables else [])]
    return Figure(trim(found["bits"]), f"({', '.join(detail)})" if detail else "", found["bits"], "\n".join(brief))


def _kept(found: dict[str, float]) -> float | None:
    """Bits over all values of a sequence, exact ones included, where they are more than those of packed values."""
    kept = found.get("bits_resident", 0.0)
    return kept if kept > found["bits"] and f"{kept:.3g}" != f"{found['bits']:.3g}" else None


def _tables(record: Record) -> int:
    """Bytes of what codecs learned, which are in no bits; 0 where they are a trifle beside the cache."""
    tables, cache = record.ledger.get("tables", 0), sum(record.ledger.get(name, 0) for name in ("payload", "metadata", "exact"))
    return int(tables) if tables > TRIFLE * cache else 0


def coverage(line: Line) -> Figure:
    """The share that was packed, in percent: of K and V the smaller, and below it both where they differ."""
    share, sides = line.record.coverage, _sides(line.record)
    if share is None:
        return Figure(NONE)
    if sides is None:
        return Figure(f"{_percent(share)}{_mark(share)}", "(K and V together)", share, "both")
    k, v = map(_percent, sides)
    if k == v:
        return Figure(f"{_percent(share)}{_mark(share)}", order=share)
    least = min(sides)
    return Figure(f"{_percent(least)}{_mark(least)}", f"(K {k} / V {v})", least, "/".join(f"{100 * side:.0f}" for side in sides))


def _sides(record: Record) -> tuple[float, float] | None:
    """Of what was attended of K, and of V, the share that was packed. Older records tell it by their evidence, of the longest text:
    where that does not come to the coverage of all texts, nothing is known of a side."""
    if told := record.coverage_sides:
        k, v = (told.get(side, record.coverage or 0.0) for side in ("k", "v"))
        return k, v
    attended, packed = Counter[str](), Counter[str]()
    for e in record.evidence:
        attended[e["side"]] += e.get("attended", 0)
        packed[e["side"]] += e.get("attended_packed", 0) if e.get("counts", True) else 0
    if not (attended["k"] and attended["v"]) or abs(packed.total() / attended.total() - (record.coverage or 0.0)) > ROUNDED:
        return None
    return packed["k"] / attended["k"], packed["v"] / attended["v"]


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


BITS = Column(
    "bits",
    "bits per packed value at this model's head_dim, scales and norms included; below it K / V where they differ. Kept: over all values of "
    "a sequence at this context, exact ones of windows and sinks at 16 bits, where that is more. Tables: what codecs learned, once for the "
    "model and in no bits, from a hundredth of this cache on",
    bits,
)
COVERAGE = Column(
    "coverage %",
    "the share of what was attended that was read in packed form: of K and V the smaller, and below it both where they differ",
    coverage,
)
# What the words below figures of these two columns mean: column, word, meaning.
BELOW = (
    (BITS, "kept ", "kept: bits over all values at this context, those of windows and sinks at 16"),
    (BITS, "tables ", "tables, or + where there is little room: what codecs learned, once for the model and in no bits"),
    (COVERAGE, "K ", "coverage: of K or of V, whichever was packed less"),
    (COVERAGE, "together", "K and V together: the record is older and does not tell them apart, and one of them may be packed less"),
)
KERNELS = Column("kernels", "the form of attention that ran; below it the form that unpacked the cache", kernels)

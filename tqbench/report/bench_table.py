"""A benchmark as tables: one for each number of tokens, the same for terminals, Markdown and eyes. Renderers only lay them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tqbench.bench.result import Bench, Group, Row, Timing
from tqbench.report.text import NONE, number

UNQUIET = "!"


@dataclass(frozen=True)
class Column:
    """A column: its title, what it means, and what stands in it for a row."""

    title: str
    meaning: str
    show: Callable[[Row], str]


def columns(bench: Bench) -> list[Column]:
    """Those that have something to say in this benchmark; the last ones compare, one for each rival that ran."""
    limited = any(row.timing and row.timing.share is not None for row in bench.rows)
    fixed = [
        Column("ms", f"the median time of a call; {UNQUIET} where no round was quiet", _of_timing(_median)),
        Column("min", "the shortest sample", _of_timing(lambda t: number(t.spread.least))),
        Column("p90", "what nine of ten samples stayed below", _of_timing(lambda t: number(t.spread.p90))),
        Column("±%", "the middle half of the samples, as a share of the median", _of_timing(lambda t: f"{100 * t.spread.spread:.0f}")),
        Column("GB/s", "bytes that a call must move, per second", _of_timing(lambda t: number(t.gbps))),
        *([Column("limit %", "GB/s as a share of what this machine can read", _of_timing(_share))] if limited else []),
        Column("error", "of the output against the reference on the same packed data, relative", lambda r: _small(r.implementation_error)),
        Column("quantization", "what packing costs: against exact keys and values, relative", lambda r: _small(r.quantization_error)),
    ]
    return fixed + [_comparison(title, rival) for title, rival in bench.comparisons.items() if _ran(bench, rival)]


def cells(bench: Bench, row: Row) -> list[str]:
    """What stands in the row, the name first."""
    return [row.name, *(column.show(row) for column in columns(bench))]


def facts(bench: Bench) -> list[str]:
    """What holds for all tables."""
    top, machine = bench.ceiling, bench.environment
    limit = f"memory limit {number(top.gbps)} GB/s, the best of {len(top.samples)} reads" if top.gbps else f"no memory limit: {top.reason}"
    threads = f"{top.threads} thread{'s' * (top.threads > 1)}"
    isa = machine.get("isa") or "no native library"
    return [f"{bench.op} · {bench.shape} · {bench.data} data · float32 queries", f"{machine.get('cpu')} · {threads} · {isa} · {limit}"]


def heading(group: Group) -> str:
    """The tokens, how quiet it was, and which row is the best that torch does, where that is compared with."""
    total = len(group.rounds)
    unknown = sum(r.disturbed is None for r in group.rounds)
    noise = f"{group.quiet} of {total} rounds quiet" if not unknown else "nobody knows who else used the processor"
    best = f" · best torch row: {group.best}" if group.best else ""
    return f"{group.tokens:,} tokens · {noise}{best}"


def notes(group: Group) -> Iterator[str]:
    """Why rows have no time, and what to make of the noise."""
    for row in group.rows:
        if row.outcome != "ok":
            yield f"{row.name}: {row.outcome}: {row.reason}"
        elif row.tokens != group.tokens:
            yield f"{row.name}: {row.tokens:,} tokens, because whole units are encoded together"
        if row.stages:
            whole = sum(row.stages.values())
            yield f"{row.name}: " + ", ".join(f"{name} {number(ms)} ms ({100 * ms / whole:.0f} %)" for name, ms in row.stages.items())
    yield from group.notes
    if not group.quiet and group.rounds:
        most = max(r.foreign or 0.0 for r in group.rounds)
        yield f"others used up to {number(most, 2)} cores in every round: times are too long, and ratios to slow rows too favourable"


def words(bench: Bench) -> dict[str, str]:
    """What the rows are: those that are the same for all schemes by their form."""
    texts: dict[str, dict[str, list[str]]] = {}
    for row in bench.rows:
        texts.setdefault(row.form, {}).setdefault(row.words, []).append(row.name)
    return {
        form if len(found) == 1 else ", ".join(dict.fromkeys(names)): text for form, found in texts.items() for text, names in found.items()
    }


def _of_timing(show: Callable[[Timing], str]) -> Callable[[Row], str]:
    return lambda row: show(row.timing) if row.timing else NONE


def _median(timing: Timing) -> str:
    return number(timing.spread.median) + ("" if timing.quiet else f" {UNQUIET}")


def _share(timing: Timing) -> str:
    return NONE if timing.share is None else number(100 * timing.share, 2)


def _small(x: float | None) -> str:
    return NONE if x is None else f"{x:.1e}".replace("-", "−")


def _comparison(title: str, rival: str) -> Column:
    def show(row: Row) -> str:
        found = row.timing.ratios.get(rival.format(scheme=row.scheme)) if row.timing else None
        return NONE if found is None else number(found.median)

    return Column(f"× {title}", f"how many times as long {rival.format(scheme='SCHEME')} takes: the median over rounds", show)


def _ran(bench: Bench, rival: str) -> bool:
    names = {rival.format(scheme=row.scheme) for row in bench.rows}
    return any(name in row.timing.ratios for row in bench.rows if row.timing for name in names)

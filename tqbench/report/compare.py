"""`tqbench compare`: two runs side by side, as sections that a terminal and a Markdown file lay out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tqbench.core.gate import POINTS, RATIOS
from tqbench.core.record import Cell, Estimate, Record
from tqbench.metrics.verdict import paid
from tqbench.report import markdown
from tqbench.report.grounds import disturbed
from tqbench.report.knobs import KINDS, Knob
from tqbench.report.pairing import HOWS, Pair, pairs
from tqbench.report.run import Run
from tqbench.report.table import heading as heading_of
from tqbench.report.table import short_headings
from tqbench.report.text import NONE, bounds, exact, inside, interval, number, plain, title, value

SPEED = {  # of each task, what stands side by side
    "decode": ("decode_ratio", "decode_tps", "decode_ms_p50"),
    "prefill": ("prefill_ratio", "prefill_tps", "ttft_ms"),
    "memory": ("kv_bytes_per_token",),
    "storage": ("stored_ratio", "entropy_gain", "cos_k_min", "cos_v_min", "ttft_gain", "ttft_load_ms", "save_ms", "load_ms"),
    "sensitivity": ("kld", "kld_k", "kld_v", "kld_worst"),
}
SENTENCE = 58  # columns, two of which fit where 120 are usual
COUNTED = ("memory", "sensitivity")  # of these, what no clock has a part in
QUALITY = ("cell", "ppl first>", "ppl other>", "Δppl>", "95 %>", "ln ratio>", "tokens>", "says")
UNPAIRED_SPEED = (
    "speeds of different runs are never paired: another time, other neighbours. × own cache is paired inside each run, so it survives that "
    "best; whether intervals overlap is all that can be said"
)
MEANINGS = {
    "fatal": "not comparable",
    "asked": "how the schemes that were named differ; a key without a value is its codec's default, or none of its codec",
    "warning": "comparable, and this may be why they differ",
    "harmless": "changes no digit",
}


@dataclass(frozen=True)
class Section:
    """A table and what is to be said below it. A column whose title ends in `>` is aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    widest: int | None = None  # that a column may be on a terminal and in a pipe, where it holds sentences or a hundred names


@dataclass(frozen=True)
class Comparison:
    """A run, held against the first."""

    first: Run
    other: Run
    pairs: tuple[Pair, ...]

    @property
    def compared(self) -> int:
        """Of how many cells something is shown beside its like."""
        return sum(pair.how != "refused" and (pair.cell.task == "perplexity" or any(self._speed(pair, ""))) for pair in self.pairs)

    def sections(self) -> Iterator[Section]:
        """Quality, speed, and what differs."""
        names = self._names()
        quality = [pair for pair in self.pairs if pair.cell.task == "perplexity" and pair.first and pair.other]
        if quality:
            notes = [HOWS["unpaired"]] if any(pair.how == "unpaired" for pair in quality) else []
            notes += ["rough: too few windows for a trustworthy interval"] if any(p.rough and p.metrics for p in quality) else []
            rows = tuple((names[id(pair)], *_quality(pair)) for pair in quality)
            yield Section("Perplexity: other − first", QUALITY, rows, tuple(notes))
        speed = [row for pair in self.pairs if pair.cell.task in SPEED for row in self._speed(pair, names[id(pair)])]
        if speed:
            timed = any(pair.cell.task not in COUNTED for pair in self.pairs if pair.cell.task in SPEED)
            yield Section(
                "Speed, memory, storage and sensitivity: side by side",
                ("cell", "metric", "first>", "other>", "says"),
                tuple(speed),
                (UNPAIRED_SPEED,) if timed else (),
            )
        refused = {pair.why: [names[id(one)] for one in self.pairs if one.why == pair.why] for pair in self.pairs if pair.why}
        if refused:
            rows = tuple((why, ", ".join(cells)) for why, cells in refused.items())
            yield Section("Not comparable", ("because", "cells"), rows, widest=SENTENCE)
        yield from self._knobs(names)

    def _names(self) -> dict[int, str]:
        """Each pair by its scheme, with as much of its setting as tells it from the others."""
        heads = short_headings(self.other) | short_headings(self.first)
        for parts in (_who, _where, lambda pair: f"{_who(pair)} · {heads.get(pair.cell.setting) or heading_of(pair.cell)}"):
            names = [parts(pair) for pair in self.pairs]
            if len(set(names)) == len(names):
                break
        return {id(pair): name for pair, name in zip(self.pairs, names, strict=True)}

    def _speed(self, pair: Pair, name: str) -> Iterator[tuple[str, ...]]:
        if pair.how == "refused" or not pair.first or not pair.other:
            return
        moved = any(knob.key in ("machine", "threads", "device", "system") for knob in pair.knobs)
        for metric in SPEED.get(pair.cell.task, ()):
            a, b = pair.first.metrics.get(metric), pair.other.metrics.get(metric)
            if a and b:
                says = _side_by_side(metric, a, b, moved=moved, disturbed=any(disturbed(one, metric) for one in (pair.first, pair.other)))
                yield (name, title(metric), interval(a, metric), interval(b, metric), says)

    def _knobs(self, names: dict[int, str]) -> Iterator[Section]:
        """What differs, and in which cells."""
        both = [pair for pair in self.pairs if pair.first and pair.other]
        cells: dict[Knob, list[str]] = {}
        for pair in both:
            for knob in pair.knobs:
                cells.setdefault(knob, []).append(names[id(pair)])
        rows = [(knob.kind, knob.key, knob.first, knob.other, _cells(own, len(both))) for knob, own in cells.items()]
        rows.sort(key=lambda row: KINDS.index(row[0]))
        notes = tuple(f"{kind}: {meaning}" for kind, meaning in MEANINGS.items() if any(row[0] == kind for row in rows))
        if rows:
            yield Section("What differs", ("class", "key", "first", "other", "cells"), tuple(rows), notes)
        elif both:
            yield Section("Nothing differs: same cells, same text, same machine, same code", (), ())


def compare(first: tuple[Run, str | None], others: list[tuple[Run, str | None]], allow: frozenset[str] = frozenset()) -> list[Comparison]:
    """Each of the others held against the first, with the schemes that were named; a scheme named on one side is meant on both."""
    run, scheme = first
    found = []
    for other, named in others:
        chosen = (scheme or named, named or scheme)
        found.append(Comparison(run, other, tuple(pairs(run, other, chosen, allow))))
    return found


def render(found: list[Comparison]) -> str:
    """As Markdown."""
    parts = []
    for one in found:
        parts.append(f"## {markdown.escape(heading(one))}")
        for section in one.sections():
            parts.append(f"### {markdown.escape(section.title)}")
            if section.columns:
                lines = [tuple(map(markdown.escape, row)) for row in section.rows]
                parts.append(markdown.grid(tuple(column.rstrip(">") for column in section.columns), lines))
            parts += [markdown.escape(note) for note in section.notes]
    return "\n\n".join(parts) + "\n"


def heading(one: Comparison) -> str:
    """Which run is held against which."""
    return plain(f"{one.other.title} against {one.first.title}: {one.compared} of {len(one.pairs)} cells comparable")


def _who(pair: Pair) -> str:
    first = pair.first.cell if pair.first else pair.cell
    return _name(first) if _name(first) == _name(pair.cell) else f"{_name(first)} → {_name(pair.cell)}"


def _name(cell: Cell) -> str:
    return plain(cell.label if cell.kernel == "auto" else f"{cell.label} ({cell.kernel})")


def _quality(pair: Pair) -> tuple[str, ...]:
    ppl = [_ppl(record) for record in (pair.first, pair.other)]
    if not pair.metrics:
        return (*ppl, NONE, NONE, NONE, NONE, "not comparable")
    dppl, ratio = (_paid(pair, name) for name in ("dppl", "ln_ratio"))
    shown = "0 (exact)" if pair.how == "equal" else value(dppl, "dppl")
    tokens = f"{pair.tokens:,}"
    return (*ppl, shown, bounds(dppl, "dppl"), value(ratio, "ln_ratio"), tokens, _says(pair, dppl))


def _paid(pair: Pair, name: str) -> Estimate:
    """Either may have stopped at a lucky moment; the one whose look may spend less has the say."""
    looked = [record for record in (pair.first, pair.other) if record]
    metrics = pair.metrics or {}
    return max((paid(record, name, metrics[name]) for record in looked), key=lambda estimate: estimate.ends[1] - estimate.ends[0])


def _ppl(record: Record | None) -> str:
    estimate = record.metrics.get("ppl") if record else None
    return number(estimate.value, 6) if estimate else NONE


def _says(pair: Pair, dppl: Estimate) -> str:
    if exact(dppl):
        return "equal bit for bit"
    low, high = dppl.ends
    if low == high:
        return "two points without an interval: nothing can be said"
    if low <= 0 <= high:
        word = "indistinguishable"
    elif pair.floor is not None and inside(dppl, pair.floor):
        word = f"≤ floor ({number(pair.floor, 2)})"
    else:
        word = "higher" if dppl.value > 0 else "lower"
        word += f" by less than the floor ({number(pair.floor, 2)})" if pair.floor is not None and abs(dppl.value) < pair.floor else ""
    return ", ".join([word, *(["not paired"] if pair.how == "unpaired" else []), *(["rough"] if pair.rough else [])])


def _side_by_side(metric: str, a: Estimate, b: Estimate, *, moved: bool, disturbed: bool) -> str:
    if metric in POINTS:
        return "equal" if a.value == b.value else f"{b.value / a.value - 1:+.2%}".replace("-", "−")
    if moved and metric not in (*RATIOS, *SPEED["sensitivity"]):
        return "not compared: another machine"
    (low, high), (low2, high2) = a.ends, b.ends
    if low == high or low2 == high2:
        return "no interval: nothing can be said"
    says = "intervals overlap" if low <= high2 and low2 <= high else f"intervals lie apart: {'higher' if b.value > a.value else 'lower'}"
    return f"{says}, unpaired{', disturbed' if disturbed else ''}"


def _where(pair: Pair) -> str:
    task = "" if pair.cell.task == "perplexity" else f"{pair.cell.task} "
    return f"{_who(pair)} · {task}{pair.cell.params.get('context', '')}"


def _cells(names: list[str], count: int) -> str:
    return "all" if len(names) == count else ", ".join(names)

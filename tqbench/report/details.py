"""What lies behind a row of the result table, as data: memory, positions in the window, and the evidence that the scheme ran."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tqbench.core.quantity import size
from tqbench.core.record import Cell, Record
from tqbench.report import speed
from tqbench.report.column import Figure
from tqbench.report.run import Run
from tqbench.report.table import label
from tqbench.report.text import NONE, number, plain

PARTS = ("payload", "metadata", "protected", "exact", "sinks", "tables", "slack")
RANGES = 6  # layers are shown in at most this many ranges
SIDES = {"k": "K", "v": "V"}


@dataclass(frozen=True)
class Grid:
    """A small table: its title and caption, what its rows are, column titles, and rows that begin with their own title."""

    title: str
    caption: str
    corner: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Figure, ...]], ...]


@dataclass(frozen=True)
class Evidence:
    """The proof of one cell: facts in words, and the codec error by layer."""

    label: str
    outcome: str
    facts: tuple[tuple[str, str], ...]
    errors: Grid | None


def measured(run: Run, cells: Iterable[Cell]) -> list[Record]:
    """The records of schemes that have numbers."""
    found = (run.record(cell) for cell in cells if cell.scheme is not None)
    return [record for record in found if record and record.outcome == "ok"]


def ledger(run: Run, cells: list[Cell]) -> Grid | None:
    """Resident bytes at the end of the last window, per scheme."""
    records = [record for record in measured(run, cells) if record.ledger and record.cell.task in ("perplexity", "memory")]
    if not records:
        return None
    head = (*PARTS, "bytes per token", "bits kept", "smaller than f16")
    caption = (
        f"of the cache at {records[0].ledger['tokens']:,} tokens, counted over the arrays that exist. Exact: what the policy keeps in the "
        "model's dtype: windows, and sinks, which are a part of it. Protected: what of payload and metadata lies in layers that another "
        "scheme protects. Tables: what codecs learned, once. Slack: reserved, not yet filled, and not counted. Bits kept: all of it over "
        "all values, exact ones counted at 16 bits, so that a float32 model does not make every scheme look twice as small."
    )
    return Grid("Memory", caption, "scheme", head, tuple((label(run, record.cell), _bytes(record)) for record in records))


def _bytes(record: Record) -> tuple[Figure, ...]:
    held = record.ledger
    parts = [Figure(size(held[name]), order=held[name]) if name in held else Figure(NONE) for name in PARTS]
    per_token, kept = held["bytes_per_token"], held["bits_resident"]
    return (
        *parts,
        Figure(f"{per_token:,.0f}", order=per_token),
        Figure(f"{kept:.4g}", order=kept),
        Figure(f"{16 / kept:.2f}×", order=16 / kept) if kept else Figure(NONE),
    )


def positions(run: Run, cells: list[Cell]) -> Grid | None:
    """KLD and ΔNLL by position in the window."""
    records = [record for record in measured(run, cells) if record.positions]
    if not records:
        return None
    head = tuple(f"{row['from']:.0f}–{row['to']:.0f}" for row in records[0].positions)
    caption = "in the window: mean KLD, below it the mean ΔNLL, in nats per token. What breaks at depth shows to the right."
    rows = tuple((label(run, record.cell), tuple(map(_position, record.positions))) for record in records)
    return Grid("Position", caption, "scheme", head, rows)


def _position(row: dict[str, float]) -> Figure:
    dnll = number(row["dnll"], 2)
    return Figure(number(row["kld"], 2), dnll if row["dnll"] <= 0 else f"+{dnll}", row["kld"])


def stored(run: Run, cells: list[Cell]) -> list[Grid]:
    """Of saved caches: bytes by part before and after the entropy stage, and the worst vectors of each layer."""
    found = [(label(run, cell), record) for cell in cells if (record := run.record(cell)) and record.outcome == "ok" and record.storage]
    if not found:
        return []
    held = found[0][1].storage
    caption = (
        f"of the cache at {held['tokens']:,} tokens, after the entropy stage, below it before. Sinks, window and exact are in the model's "
        "dtype. Overhead: the header and the heads of streams. Tables: what codecs learned, in no file because it is the model's; × f16 "
        f"counts the share that these tokens have of it among {held['tables_over']:,}."
    )
    rows = tuple((title, _parts(record.storage)) for title, record in found)
    return [Grid("In the file", caption, "scheme", (*held["after"], "overhead", "file", "tables"), rows), _agreement(found)]


def _parts(held: dict[str, Any]) -> tuple[Figure, ...]:
    parts = [Figure(size(held["after"][name]), size(held["before"][name]), held["after"][name]) for name in held["after"]]
    whole = (Figure(size(held["overhead"]), order=held["overhead"]), Figure(size(held["file"]), order=held["file"]))
    share = f"{size(held['tables_share'])} counted" if held["tables"] else ""
    return (*parts, *whole, Figure(size(held["tables"]), share, held["tables"]))


def _agreement(found: list[tuple[str, Record]]) -> Grid:
    layers = [row["layer"] for row in found[0][1].storage["agreement"] if row["side"] == "k"]
    head, ranges = _ranges(layers)
    rows = []
    for title, record in found:
        for side, name in SIDES.items():
            own = {row["layer"]: row for row in record.storage["agreement"] if row["side"] == side}
            rows.append((f"{title} {name}", tuple(_lowest([own[layer] for layer in r if layer in own]) for r in ranges)))
    caption = (
        "what was taken back beside the exact keys and values: the lowest cosine of a vector (a token of a head) in these layers, below it "
        "the longest difference, relative to the exact vector."
    )
    return Grid("Agreement", caption, "scheme", head, tuple(rows))


def _lowest(rows: list[dict[str, float]]) -> Figure:
    if not rows:
        return Figure(NONE)
    low, most = min(row["cos_min"] for row in rows), max(row["err_max"] for row in rows)
    return Figure(f"{low:.4f}", number(most, 2), low)


def stages(run: Run, cells: list[Cell]) -> list[Grid]:
    """Where the time of a step goes."""
    found = [(label(run, cell), record) for cell in cells if (record := run.record(cell)) and record.outcome == "ok" and record.stages]
    return [_stages(found, lane, what) for lane, what in (speed.lanes(found[0][1]) if found else {}).items()]


def _stages(found: list[tuple[str, Record]], lane: str, what: str) -> Grid:
    spent = [(title, record, speed.per_move(record, lane)) for title, record in found]
    names = [name for name in speed.STAGES if any(name in stages for _, _, stages in spent)]
    caption = (
        f"milliseconds of {what}, from repetitions of their own; "
        + "; ".join(f"{name}: {speed.meaning(found[0][1].cell, name)}" for name in names)
        + "."
    )
    rows = tuple((title, _spent(stages, names, disturbed=speed.disturbed_stages(record, lane))) for title, record, stages in spent)
    return Grid("Stages" if lane == "cell" else f"Stages, {lane}", caption, "scheme", (*names, "whole"), rows)


def _spent(stages: dict[str, float], names: list[str], *, disturbed: bool) -> tuple[Figure, ...]:
    shown = [Figure(number(stages[name], 2), order=stages[name]) if name in stages else Figure(NONE) for name in names]
    whole = sum(stages.values())
    return (*shown, Figure(number(whole, 3) + (" !" if disturbed else ""), order=whole))


def evidence(run: Run, cells: list[Cell]) -> list[Evidence]:
    """Per scheme of a setting, what proves that it ran; without numbers, why there is no proof."""
    found = [_evidence(label(run, cell), record) for cell in cells if cell.scheme is not None and (record := run.record(cell))]
    return [item for item in found if item.facts]


def _evidence(title: str, record: Record) -> Evidence:
    if record.outcome != "ok":
        reason = [("reason", plain(record.reason))] if record.reason and record.reason not in record.audits else []
        return Evidence(title, record.outcome, (*reason, *(("audit", plain(text)) for text in record.audits)), None)
    facts = {**_ran(record), **_resident(record), **_forms(record)}
    return Evidence(title, "ok", tuple((name, plain(text)) for name, text in facts.items() if text), _errors(record))


def _ran(record: Record) -> dict[str, str]:
    layers = len({e["layer"] for e in record.evidence})
    return {
        "read in packed form": "; ".join(text for side in SIDES if (text := _share(record, side))),
        "layers": f"{layers} of {record.model.get('kv_layers', NONE)} that hold K and V" if layers else "",
        "audits": "passed: coverage and bytes are as declared, and the scores differ from the baseline's unless the scheme is lossless",
    }


def _share(record: Record, side: str) -> str:
    own = [e for e in record.evidence if e["side"] == side]
    seen = sum(e["attended"] for e in own)
    if not seen:
        return ""
    share = 100 * sum(e["attended_packed"] for e in own if e.get("counts", True)) / seen
    packed, held = (sum(e[name] for e in own) // len(own) for name in ("tokens_packed", "tokens"))
    return f"{SIDES[side]} {share:.1f} % of what was attended ({packed:,} of {held:,} tokens at the end)"


def _resident(record: Record) -> dict[str, str]:
    held = record.ledger
    if not held:
        return {}
    packed = held["payload"] + held["metadata"]
    equal = "equal to the byte" if packed == held["declared"] else "NOT equal"
    learned = f"; and once, whatever the length, {size(held['tables'])} of learned tables" if held.get("tables") else ""
    return {"bytes": f"{held['declared']:,} declared, {packed:,} resident: {equal}{learned}"}


def _forms(record: Record) -> dict[str, str]:
    ran = record.kernels
    return {
        "definition": json.dumps({key: value for key, value in (record.cell.scheme or {}).items() if key != "name"}, ensure_ascii=False),
        "codec": _by_side(record, "codec"),
        "channel order": _by_side(record, "order"),
        "kernels": ", ".join(f"{op}: {ran[op]}" for op in ("encode", "decode", "attend") if op in ran),
        "faster forms passed over": "; ".join(f"{name}: {why}" for name, why in ran.get("passed_over", {}).items()),
        "learned from": _learned(record),
        "peak of the process": size(record.peak_bytes) if record.peak_bytes else "",
        "hash of the scores": record.fingerprint or "",
    }


def _learned(record: Record) -> str:
    text = record.calibration
    return f"{text['tokens']:,} tokens of {text['corpus']} that are not scored, drawn with seed {text['seed']}" if text else ""


def _by_side(record: Record, field: str) -> str:
    found = {name: sorted({e[field] for e in record.evidence if e["side"] == side}) for side, name in SIDES.items()}
    return ", ".join(f"{name}: {' and '.join(values)}" for name, values in found.items() if values)


def _errors(record: Record) -> Grid | None:
    layers = sorted({e["layer"] for e in record.evidence if e["error"] is not None})
    if not layers:
        return None
    head, ranges = _ranges(layers)
    error: dict[tuple[int, str], float | None] = {(e["layer"], e["side"]): e["error"] for e in record.evidence}
    rows = tuple((name, tuple(_mean(error.get((layer, side)) for layer in r) for r in ranges)) for side, name in SIDES.items())
    return Grid("Codec error", "on the keys and values of this run: squared, relative to their size.", "side", head, rows)


def _ranges(layers: list[int]) -> tuple[tuple[str, ...], list[list[int]]]:
    """The layers in a few ranges, with their titles."""
    step = -(-len(layers) // RANGES)
    ranges = [layers[i : i + step] for i in range(0, len(layers), step)]
    return tuple(f"layer {r[0]}" if len(r) == 1 else f"layers {r[0]}–{r[-1]}" for r in ranges), ranges


def _mean(errors: Iterable[float | None]) -> Figure:
    known = [error for error in errors if error is not None]
    return Figure(number(fmean(known), 2), order=fmean(known)) if known else Figure(NONE)

"""Stacked bars, made from records: the bytes of a cache by part, and the time of a step by stage."""

from __future__ import annotations

from collections.abc import Iterable

from tqbench.core.codec import ITEMSIZE
from tqbench.core.record import Cell, Record
from tqbench.report import bars
from tqbench.report.chart import Chart
from tqbench.report.draw import CROWD
from tqbench.report.points import controls, measured, points
from tqbench.report.run import Run
from tqbench.report.scatter import frontier
from tqbench.report.speed import STAGES, disturbed_stages, lanes, per_move
from tqbench.report.table import heading
from tqbench.report.text import number

PARTS = ("payload", "metadata", "protected", "window", "sinks", "slack")
FEW = " Of so many only those are drawn that no other beats in bits and KLD; the table has all."


def ledger(run: Run, cells: list[Cell], index: int) -> Iterable[Chart]:
    """Bytes per token by part in one setting. Where memory is a task of its own, quality does not repeat it."""
    counted = {cell.group for cell in run.cells if cell.task == "memory"}
    if cells[0].task != "memory" and (cells[0].task != "perplexity" or cells[0].group in counted):
        return
    out = controls(run, cells)
    found = [(name, r) for name, r in measured(run, cells) if r.cell.scheme and r.cell.key not in out and r.ledger.get("tokens")]
    few = _few(run, found)
    drawn = [
        (name, _parts(record), f"{record.ledger['bytes_per_token']:,.0f}  ({record.ledger['bits_resident']:.3g} bits)")
        for name, record in few
    ]
    if not drawn:
        return
    names = [part for part in PARTS if any(parts[part] for _, parts, _ in drawn)]
    tokens = few[0][1].ledger["tokens"]
    caption = (
        f"What the cache holds at {tokens:,} tokens, in bytes per token, counted over the arrays that exist. Window and sinks: tokens kept "
        "in the model's dtype; protected: in layers that another scheme protects; slack: reserved, not yet filled, and not counted."
    )
    chart = bars.ledger(drawn, names, _whole(few[0][1]), heading(cells[0]))
    data = tuple(
        {"scheme": name, **parts, "bits": record.ledger["bits_resident"]} for (name, parts, _), (_, record) in zip(drawn, few, strict=True)
    )
    yield Chart(f"ledger-{index}", cells[0].setting, caption + (FEW if len(few) < len(found) else ""), chart, data)


def _few(run: Run, found: list[tuple[str, Record]]) -> list[tuple[str, Record]]:
    if len(found) <= CROWD:
        return found
    known = points(run, [record.cell for _, record in found], "kld")
    best = set(frontier([(point.bits, point.y.value) for point in known]))
    named = {point.label for point in known if (point.bits, point.y.value) in best}
    return [(name, record) for name, record in found if name in named] if named else found[:CROWD]


def _parts(record: Record) -> dict[str, float]:
    """Bytes per token of each part, none counted twice."""
    held, tokens = record.ledger, record.ledger["tokens"]
    protected = {kind: sum(e[f"bytes_{kind}"] for e in record.evidence if not e.get("counts", True)) for kind in ("payload", "metadata")}
    sinks = held.get("sinks", 0)
    parts = {kind: held[kind] - own for kind, own in protected.items()}
    parts |= {"protected": sum(protected.values()), "window": held["exact"] - sinks, "sinks": sinks, "slack": held["slack"]}
    return {name: count / tokens for name, count in parts.items()}


def _whole(record: Record) -> dict[str, float]:
    """What a token takes when nothing is packed."""
    model, dtype = record.model, record.model.get("dtype", record.cell.dtype)
    if not {"kv_layers", "kv_heads", "head_dim"} <= model.keys() or dtype not in ITEMSIZE:
        return {}
    values = 2 * model["kv_layers"] * model["kv_heads"] * model["head_dim"]
    return {"16 bits": 2.0 * values} | ({dtype: float(ITEMSIZE[dtype] * values)} if ITEMSIZE[dtype] != 2 else {})


def stages(run: Run, cells: list[Cell], index: int) -> Iterable[Chart]:
    """Where the time goes in one setting."""
    found = [(name, record) for name, record in measured(run, cells) if record.stages][:CROWD]
    for lane, what in (lanes(found[0][1]) if found else {}).items():
        drawn = [
            (f"{name} !" if disturbed_stages(record, lane) else name, spent, number(sum(spent.values())))
            for name, record in found
            if (spent := per_move(record, lane))
        ]
        if not drawn:
            continue
        names = [name for name in STAGES if any(name in spent for _, spent, _ in drawn)]
        caption = f"Where the time goes, in milliseconds, of {what}; the table says what the stages are. ! marks disturbed repetitions."
        data = tuple({"scheme": name, **spent} for name, spent, _ in drawn)
        name, title = (f"stages-{index}" if lane == "cell" else f"stages-{lane}-{index}"), f"{heading(cells[0])} · {what}"
        yield Chart(name, cells[0].setting, caption, bars.stages(drawn, names, title), data)

"""The audits that read records together: over all of a run, whenever it is read, so that neither the order of measuring nor the way a
record came into its folder escapes them."""

from __future__ import annotations

import dataclasses
from math import log
from typing import Any

from tqbench.core.record import Record

ROUNDED = 1e-9  # of a perplexity: what is computed from one another in float64 differs by no more
IDENTITY = ("architecture", "layers", "kv_layers", "heads", "kv_heads", "head_dim", "vocab", "dtype", "weights")  # of a model


def settle(records: list[Record]) -> list[Record]:
    """The records with what the other cells of their setting say about them. One that fails is inactive or altered, and has no numbers."""
    return [_settled(record, [other for other in records if other.cell.setting == record.cell.setting]) for record in records]


def _settled(record: Record, setting: list[Record]) -> Record:
    if record.cell.scheme is None or record.outcome != "ok":
        return record
    measured = [other for other in setting if other.outcome == "ok"]
    base = next((other for other in measured if other.cell.scheme is None), None)
    same = [other for other in measured if other.cell.scheme and record.fingerprint and other.fingerprint == record.fingerprint]
    twins = [other.cell.label for other in same if _kept(other) != _kept(record)]
    audits = [f"every score equals that of {twin!r} bit for bit, though the two kept other values" for twin in twins]
    audits += _kernels(record)
    if base is not None:
        audits += _against(record, base)
        record = dataclasses.replace(record, floors={**record.floors, "instrument": base.floors.get("instrument")})
    forged = _figures(record)
    return record.audited(*forged, *audits, altered=bool(forged))


def _against(record: Record, base: Record) -> list[str]:
    common = record.text.get("first") or {"ids_sha256": record.text.get("ids_sha256"), "base_ppl": _value(record, "base_ppl")}
    if base.text.get("ids_sha256") != common["ids_sha256"]:
        return ["the tokens differ from the baseline's: another tokenizer or another text"]
    if other := [key for key in IDENTITY if base.model.get(key) != record.model.get(key)]:
        was = ", ".join(f"{key} {base.model.get(key)!r} and not {record.model.get(key)!r}" for key in other)
        return [f"the baseline was measured on another model: {was}"]
    if common["base_ppl"] is None or "ppl" not in base.metrics:
        return []
    drift = abs(common["base_ppl"] - base.metrics["ppl"].value)
    if drift > max(base.floors.get("instrument") or 0.0, 1e-6 * base.metrics["ppl"].value):
        return [f"the baseline beside this cell is {drift:.3g} ppl away from the baseline cell: another model or build"]
    return []


def _figures(record: Record) -> list[str]:
    """A perplexity, its difference and its ratio to the baseline's follow from each other; a figure that was changed by hand does not."""
    ppl, base, dppl, ratio = (_value(record, name) for name in ("ppl", "base_ppl", "dppl", "ln_ratio"))
    if not ppl or not base:
        return []
    told = {"dppl": (dppl, ppl - base), "ln_ratio": (ratio, log(ppl / base))}
    return [
        f"{name} is {says:.6g}, and the perplexities {ppl:.6g} and {base:.6g} make it {makes:.6g}"
        for name, (says, makes) in told.items()
        if says is not None and abs(says - makes) > ROUNDED * ppl
    ]


def _value(record: Record, name: str) -> float | None:
    return record.metrics[name].value if name in record.metrics else None


def _kernels(record: Record) -> list[str]:
    """A form that was asked for by name ran: an operation's own in every layer, a bare name in at least one operation of each."""
    packed, wanted = [e for e in record.evidence if e.get("tokens_packed")], record.cell.kernel
    pinned = dict(item.split("=", 1) for item in wanted.split(",") if "=" in item)
    idle = {"decode": "in attend", "attend": "engine" if record.cell.scheme and record.cell.scheme.get("bypass") == "identity" else ""}
    found = [
        f"layer {e['layer']} {e['side']}: {op}={name} was asked for, {e[op]} ran"
        for e in packed
        for op, name in pinned.items()
        if name != "auto" and e[op] not in (name, idle.get(op))
    ]
    if not pinned and wanted != "auto":
        ran: dict[int, set[str]] = {}
        for e in packed:
            ran.setdefault(e["layer"], set()).update((e["encode"], e["decode"], e["attend"]))
        wrong = {layer: ", ".join(sorted(names)) for layer, names in ran.items() if wanted not in names}
        found = [f"layer {layer}: kernel {wanted!r} was asked for, {names} ran" for layer, names in wrong.items()]
    return found[:1]


def _kept(record: Record) -> list[Any]:
    """The codec errors of all lossy layers and sides: equal for schemes that are the same mathematics, and never by chance."""
    return [e["error"] for e in record.evidence if not e.get("lossless")]

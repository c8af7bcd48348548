"""The audits that need more than one cell: read after every run over all its records, so that no order of measuring escapes them."""

from __future__ import annotations

import dataclasses
from typing import Any

from tqbench.core.record import Record


def settle(records: list[Record]) -> list[Record]:
    """The records with what the other cells of their setting say about them. One that fails becomes inactive and keeps no numbers."""
    return [_settled(record, [other for other in records if other.cell.setting == record.cell.setting]) for record in records]


def inactive(record: Record) -> Record:
    """A record whose audits found something is not a measurement."""
    if not record.audits:
        return record
    none: dict[str, Any] = {"metrics": {}, "positions": [], "floors": {}, "stages": {}}
    return dataclasses.replace(record, outcome="inactive", reason=record.audits[0], **none)


def _settled(record: Record, setting: list[Record]) -> Record:
    if record.cell.scheme is None or record.outcome != "ok":
        return record
    measured = [other for other in setting if other.outcome == "ok"]
    base = next((other for other in measured if other.cell.scheme is None), None)
    same = [other for other in measured if other.cell.scheme and record.fingerprint and other.fingerprint == record.fingerprint]
    twins = [other.cell.label for other in same if _kept(other) != _kept(record)]
    audits = [f"every score equals that of {twin!r} bit for bit, though the two kept other values" for twin in twins]
    floors = record.floors
    if base is not None:
        floors = {**floors, "instrument": base.floors.get("instrument")}
        audits += _against(record, base)
    return inactive(dataclasses.replace(record, audits=[*record.audits, *audits], floors=floors))


def _against(record: Record, base: Record) -> list[str]:
    common = record.text.get("first") or {"ids_sha256": record.text["ids_sha256"], "base_ppl": _value(record, "base_ppl")}
    if base.text["ids_sha256"] != common["ids_sha256"]:
        return ["the tokens differ from the baseline's: another tokenizer or another text"]
    if common["base_ppl"] is None:
        return []
    drift = abs(common["base_ppl"] - base.metrics["ppl"].value)
    if drift > max(base.floors.get("instrument") or 0.0, 1e-6 * base.metrics["ppl"].value):
        return [f"the baseline beside this cell is {drift:.3g} ppl away from the baseline cell: another model or build"]
    return []


def _value(record: Record, name: str) -> float | None:
    return record.metrics[name].value if name in record.metrics else None


def _kept(record: Record) -> list[Any]:
    """The codec errors of all lossy layers and sides: equal for schemes that are the same mathematics, and never by chance."""
    return [e["error"] for e in record.evidence if not e["lossless"]]

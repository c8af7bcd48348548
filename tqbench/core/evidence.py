"""The proof that a scheme ran: counts, bytes and kernels per layer and side, and the audits that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SideEvidence:
    """What happened to K or V of one layer during a cell."""

    layer: int
    side: str
    codec: str
    order: str
    tokens: int
    tokens_packed: int
    tokens_declared: int
    bytes_payload: int
    bytes_metadata: int
    bytes_declared: int
    bytes_exact: int
    bytes_slack: int
    lossless: bool  # the codec is declared to keep the model's dtype bit for bit
    attended: int  # Σ over queries of the positions they saw
    attended_packed: int  # of these, in packed form
    error: float | None  # relative squared error of what was packed; None if nothing was
    encode: str
    decode: str
    attend: str
    entered: dict[str, int]  # how often each operation's form was entered
    passed_over: dict[str, str]  # faster forms, and why they did not run


def coverage(evidence: Sequence[SideEvidence]) -> float:
    """The share of attended K and V that was packed."""
    seen = sum(e.attended for e in evidence)
    return sum(e.attended_packed for e in evidence) / seen if seen else 0.0


def audit(evidence: Sequence[SideEvidence], layers: int, *, lossless: bool, identical: bool) -> list[str]:
    """What the evidence contradicts; empty if the scheme ran as declared. `identical`: the scores equal the baseline's bit for bit."""
    found = []
    if len({e.layer for e in evidence}) != layers:
        found.append(f"{len({e.layer for e in evidence})} layers went through the store, the model has {layers} that hold K and V")
    if coverage(evidence) == 0:
        found.append("no attended key or value was packed")
    for e in evidence:
        where = f"layer {e.layer} {e.side}"
        if e.tokens_packed != e.tokens_declared:
            found.append(f"{where}: {e.tokens_packed} tokens are packed, the policy declares {e.tokens_declared}")
        if e.bytes_payload + e.bytes_metadata != e.bytes_declared:
            found.append(f"{where}: {e.bytes_payload + e.bytes_metadata} bytes are resident, the layout declares {e.bytes_declared}")
        if e.tokens_packed and (idle := [op for op, calls in e.entered.items() if not calls]):
            found.append(f"{where}: {', '.join(idle)} was never entered")
        if not e.lossless and e.tokens_packed and not e.error:
            found.append(f"{where}: the codec error is zero, so nothing was quantized")
    if identical and not lossless:
        found.append("every score equals the baseline's bit for bit, so the scheme had no effect")
    return found

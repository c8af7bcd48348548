"""The proof that a scheme ran: counts, bytes and kernels per layer and side, and the audits that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SideEvidence:
    """What happened to K or V of one layer during a cell."""

    layer: int
    side: str
    codec: str
    order: str
    tokens: int  # held
    tokens_packed: int
    tokens_declared: int
    bytes_payload: int
    bytes_metadata: int
    bytes_declared: int
    bytes_exact: int
    bytes_slack: int
    lossless: bool  # the codec is declared to keep the model's dtype bit for bit
    attended: int  # Σ over queries of the positions they saw
    attended_packed: int  # of these, in packed form: counted when the packed form was handed to attention
    attended_declared: int  # the same as the policy says
    error: float | None  # relative squared error of what was packed; None if nothing was
    encode: str
    decode: str
    attend: str
    entered: dict[str, int]  # how often each operation's form was entered
    passed_over: dict[str, str]  # faster forms, and why they did not run
    attend_error: float | None = None  # of attention against the reference on the same packed data; None if nothing was compared
    attend_limit: float = 0.0
    latest_error: tuple[float, float] | None = None  # as `error`, of what was packed last: as it lies, and as the reference packs it
    tokens_forgotten: int = 0  # beyond the reach of a sliding window
    bytes_sinks: int = 0  # of the exact ones
    bytes_tables: int = 0  # of what the codec has learned: once, however many tokens
    scheme: str = ""  # that ran in this layer
    runs: dict[str, Any] = field(default_factory=dict)  # the codec and its parameters, as the store had them; empty for other libraries
    counts: bool = True  # as covered: not in a layer that another scheme protects, or where one that loses nothing stands in


def coverage(evidence: Sequence[SideEvidence]) -> float:
    """The share of attended K and V that was packed."""
    seen = sum(e.attended for e in evidence)
    return sum(e.attended_packed for e in evidence if e.counts) / seen if seen else 0.0


def coverage_sides(evidence: Sequence[SideEvidence]) -> dict[str, float]:
    """The same of K alone and of V alone, where they were attended."""
    sides = {side: [e for e in evidence if e.side == side] for side in ("k", "v")}
    return {side: coverage(own) for side, own in sides.items() if any(e.attended for e in own)}


def kept(evidence: Sequence[SideEvidence]) -> int:
    """Bytes of all keys and values that are kept, packed and exact; room for growth is not counted."""
    return sum(e.bytes_payload + e.bytes_metadata + e.bytes_exact for e in evidence)


def audit(evidence: Sequence[SideEvidence], layers: int, *, lossless: bool, identical: bool, covered: bool | None = None) -> list[str]:
    """What the evidence of a window contradicts; empty if the scheme ran as declared. `identical`: the scores equal the baseline's bit for
    bit. `covered`: whether the cell attended to anything packed, if this is a window of several; a short one may not."""
    found = []
    if len({e.layer for e in evidence}) != layers:
        found.append(f"{len({e.layer for e in evidence})} layers went through the store, the model has {layers} that hold K and V")
    if not (coverage(evidence) > 0 if covered is None else covered):
        found.append("no attended key or value was packed")
    for e in evidence:
        found += _audit_side(e)
    if identical and not lossless and not all(e.lossless for e in evidence):
        found.append("every score equals the baseline's bit for bit, so the scheme had no effect")
    return found


def _audit_side(e: SideEvidence) -> list[str]:
    found = []
    where = f"layer {e.layer} {e.side}"
    if e.tokens_packed != e.tokens_declared:
        found.append(f"{where}: {e.tokens_packed} tokens are packed, the policy declares {e.tokens_declared}")
    if e.attended_packed != e.attended_declared:
        found.append(f"{where}: attention was handed {e.attended_packed} packed positions, the policy declares {e.attended_declared}")
    if e.attend_error is not None and not e.attend_error <= e.attend_limit:
        found.append(
            f"{where}: attention is {e.attend_error:.1e} off the reference on the same data, at most {e.attend_limit:.0e} is rounding"
        )
    if e.bytes_payload + e.bytes_metadata != e.bytes_declared:
        found.append(f"{where}: {e.bytes_payload + e.bytes_metadata} bytes are resident, the layout declares {e.bytes_declared}")
    if e.tokens_packed and (idle := [op for op, calls in e.entered.items() if not calls]):
        found.append(f"{where}: {', '.join(idle)} was never entered")
    if not e.lossless and e.tokens_packed and not e.error:
        found.append(f"{where}: the codec error is zero, so nothing was quantized")
    if e.latest_error is not None and not e.latest_error[0] <= WORSE * e.latest_error[1] + SMALL:
        here, there = e.latest_error
        found.append(f"{where}: the tokens packed last have a codec error of {here:.1e}, packed by the reference of {there:.1e}")
    return found


# What was packed last may be off by so much more than the reference would be: codes on a boundary may fall to either side.
WORSE, SMALL = 1.2, 1e-6

# What the order of summation may cost in KLD, per token, when nothing is lost.
LOSSLESS_KLD = {"float64": 1e-9, "float32": 1e-5, "float16": 1e-3, "bfloat16": 2e-2}


def audit_control(*, bypass: str | None, lossless: bool, dtype: str, identical: bool, kld: float) -> list[str]:
    """What a control contradicts: identity is exactly the baseline, and what loses nothing differs by rounding only."""
    if bypass == "identity" and not identical:
        return [f"the identity control differs from the baseline (KLD {kld:.2e}), so the store or the engine changes what it must not"]
    if lossless and not kld <= LOSSLESS_KLD[dtype]:
        return [f"nothing is lost here, yet KLD is {kld:.2e}, more than rounding in {dtype} explains"]
    return []

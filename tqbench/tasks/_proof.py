"""What a cell of a scheme must show beside its figures: evidence, audits, which kernels ran, and the bytes that are resident."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tqbench.core import evidence as proof
from tqbench.core.codec import Codec
from tqbench.core.evidence import SideEvidence
from tqbench.core.scheme import Scheme
from tqbench.core.session import ModelInfo, TokenScores

GIB = 1 << 30


def prove(windows: list[list[SideEvidence]], scores: TokenScores, scheme: Scheme, info: ModelInfo) -> dict[str, Any]:
    """Evidence of the longest window, audits over all of them, and the ledger. `scores`: beside the model's own cache."""
    witness = Witness(scheme, info)
    for window in windows:
        witness.see(window)
    return witness.prove(scores)


@dataclass
class Witness:
    """The proof of a cell, gathered window by window: of thousands, only counts, contradictions and the longest are kept."""

    scheme: Scheme
    info: ModelInfo
    attended: Counter[str] = field(default_factory=Counter)  # by side
    packed: Counter[str] = field(default_factory=Counter)
    found: dict[str, None] = field(default_factory=dict)
    longest: list[SideEvidence] = field(default_factory=list)

    def see(self, window: list[SideEvidence]) -> float:
        """One more window; its coverage."""
        texts = proof.audit(window, self.info.kv_layers, lossless=False, identical=False, covered=True)
        self.found |= dict.fromkeys((*texts, *_declared(window, self.scheme, self.info)))
        for e in window:
            self.attended[e.side] += e.attended
            self.packed[e.side] += e.attended_packed if e.counts else 0
        if not self.longest or _length(window) >= _length(self.longest):
            self.longest = window
        return proof.coverage(window)

    def prove(self, scores: TokenScores) -> dict[str, Any]:
        """Evidence of the longest window, audits over all of them, and the ledger. `scores`: beside the model's own cache."""
        identical = bool(np.array_equal(scores.nll, scores.base_nll) and not scores.kld.any())
        lossless, attended = self.scheme.lossless_in(self.info.dtype), self.attended.total()
        coverage = self.packed.total() / attended if attended else 0.0
        facts: dict[str, Any] = {"lossless": lossless, "identical": identical, "covered": coverage > 0}
        found = [*self.found, *proof.audit(self.longest, self.info.kv_layers, **facts)]
        control: dict[str, Any] = {"bypass": self.scheme.bypass, "lossless": lossless, "dtype": self.info.dtype}
        found += proof.audit_control(**control, identical=identical, kld=float(scores.kld.mean()))
        return {
            "audits": list(dict.fromkeys(found)),
            "coverage": coverage,
            "coverage_sides": {side: self.packed[side] / seen for side, seen in sorted(self.attended.items()) if seen},
            "evidence": [dataclasses.asdict(e) for e in self.longest],
            "kernels": kernels(self.longest),
            "ledger": ledger(self.longest, self.info),
        }


def _length(window: list[SideEvidence]) -> int:
    return window[0].tokens + window[0].tokens_forgotten if window else 0


def _declared(evidence: list[SideEvidence], scheme: Scheme, info: ModelInfo) -> list[str]:
    """What ran in each layer and side against the scheme itself, which the store is not asked about: codec, parameters and bytes."""
    places = {layer: position for position, layer in enumerate(sorted({e.layer for e in evidence}))}
    found = []
    for e in evidence if len(places) == info.kv_layers else ():
        own = scheme.for_layer(places[e.layer], info.kv_layers, info.heads // info.kv_heads)
        codec = (own.k if e.side == "k" else own.v).codec
        wanted = {"codec": codec.plain.name, **codec.data(), **({"bypass": scheme.bypass} if scheme.bypass else {})}
        if e.runs and (not wanted.items() <= e.runs.items() if scheme.bypass else e.runs != wanted):  # a control wraps the codec
            found.append(f"layer {e.layer} {e.side}: {_words(e.runs)} ran, the scheme has {_words(wanted)} there")
        size, most = _declared_bytes(codec, e, info), "at most " if codec.tags.learned_layout else ""
        if e.runs and not scheme.bypass and (e.bytes_declared > size if most else e.bytes_declared != size):
            found.append(f"layer {e.layer} {e.side}: the store declares {e.bytes_declared} bytes, the scheme {most}{size}")
    return found


def _declared_bytes(codec: Codec, e: SideEvidence, info: ModelInfo) -> int:
    """What a codec says that a layer takes; the most, where its layout is learned. What all layers pack together they share evenly."""
    together = info.kv_layers if codec.tags.across_layers else 1
    whole = codec.spanning(info.kv_heads * together)
    total = whole.layout(info.head_dim).nbytes * (e.tokens_packed // codec.unit) * (info.kv_heads * together // whole.heads)
    return -(-total // together)


def _words(runs: dict[str, Any]) -> str:
    return " ".join([str(runs["codec"]), *(f"{key}={value}" for key, value in runs.items() if key != "codec")])


def kernels(evidence: list[SideEvidence]) -> dict[str, Any]:
    """Which form of each operation ran, over all layers and sides, and why faster ones did not."""
    ran = {op: sorted({getattr(e, op) for e in evidence}) for op in ("encode", "decode", "attend")}
    return {
        **{op: "+".join(names) for op, names in ran.items()},
        "passed_over": {k: v for e in evidence for k, v in e.passed_over.items()},
    }


def ledger(evidence: list[SideEvidence], info: ModelInfo) -> dict[str, Any]:
    """Resident bytes of the longest window's cache, counted over the arrays that exist, beside what the layouts declare.

    `bits` are those of a packed value; `bits_resident` spread everything that a sequence keeps over all its values, with exact tokens
    counted at 16 bits whatever the model's dtype, so that a float32 model does not make every scheme look twice as good. `tables` are the
    model's, once for all sequences, and in neither. `sinks` are a part of `exact`, and `protected` of payload and metadata: what lies in
    layers that another scheme protects, or that lose nothing.
    """
    parts = ("payload", "metadata", "declared", "tables", "exact", "sinks", "slack")
    total = {name: sum(getattr(e, f"bytes_{name}") for e in evidence) for name in parts}
    tokens, width = evidence[0].tokens + evidence[0].tokens_forgotten, info.kv_heads * info.head_dim
    sides = {name: _bits([e for e in evidence if e.side == name], width) for name in ("k", "v")}
    packed, exact = total["payload"] + total["metadata"], sum(e.tokens - e.tokens_packed for e in evidence)
    return {
        **total,
        "protected": sum(e.bytes_payload + e.bytes_metadata for e in evidence if not e.counts),
        "tokens": tokens,
        "bytes_per_token": (packed + total["exact"]) / tokens,
        "bits_k": sides["k"],
        "bits_v": sides["v"],
        "bits": _bits(evidence, width),
        "bits_resident": (8 * packed + 16 * exact * width) / sum(e.tokens * width for e in evidence),
    }


def _bits(evidence: list[SideEvidence], width: int) -> float | None:
    """Resident bits per packed value; None if nothing was packed."""
    values = width * sum(e.tokens_packed for e in evidence)
    return 8 * sum(e.bytes_payload + e.bytes_metadata for e in evidence) / values if values else None


def fitting(evidence: list[SideEvidence], budget: int = GIB) -> float:
    """How many tokens a budget of bytes holds: windows, sinks and tables are there once, every further token is packed where any is."""
    once, each = 0.0, 0.0
    for e in evidence:
        once += e.bytes_tables + (e.bytes_exact if e.tokens_packed else 0)
        each += (e.bytes_payload + e.bytes_metadata) / e.tokens_packed if e.tokens_packed else e.bytes_exact / e.tokens
    return max(0.0, budget - once) / each

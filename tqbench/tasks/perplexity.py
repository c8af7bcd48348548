"""Perplexity through the cache, strict: what each query sees is what the scheme would hold at that position in decoding.

Each window gets a fresh cache; the baseline runs side by side on the same tokens, so KLD is exact. The whole is scored once more cut
into other chunks: in exact arithmetic nothing would change, so what does change is the floor below which a difference means nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from tqbench.core import evidence as proof
from tqbench.core.errors import ConfigError
from tqbench.core.evidence import SideEvidence
from tqbench.core.scheme import Scheme, read
from tqbench.core.session import ModelInfo, TokenScores
from tqbench.corpora import recipes
from tqbench.metrics import paired
from tqbench.tasks import Job, Result


def passes(cell: Any) -> int:
    """How many times the cell runs each token through the model: what a plan multiplies by."""
    return 2 if cell.scheme is None else 3


def second_chunk(chunk: int) -> int:
    """The other cut, for the floors: small and odd, because matrix products of large or round sizes may agree to the last bit."""
    return 2 if chunk == 1 else chunk * 3 // 8 | 1 if chunk > 5 else 1


def run(job: Job) -> Result:
    """Score every window and say how sure that is."""
    params, info = job.cell.params, job.session.info
    if params["context"] > info.max_positions:
        raise ConfigError(f"context {params['context']} is longer than the {info.max_positions} positions of {info.name}")
    ids = job.session.tokenize(job.text.text)
    parts = recipes.windows(params["recipe"], ids, params["context"], params["tokens"], params["warmup"], info.bos_token)
    scheme = None if job.cell.scheme is None else read(job.cell.scheme)
    first = _Pass(job, parts, scheme, params["chunk"], beside=scheme is not None)
    second = _Pass(job, parts, scheme, second_chunk(params["chunk"]), beside=False)
    where = np.concatenate([np.full((w.targets >= 0).sum(), i) for i, w in enumerate(parts)])
    positions = np.concatenate([np.flatnonzero(w.targets >= 0) for w in parts])
    gap = paired.recut(first.scores.nll, second.scores.nll, where)
    moved = not np.array_equal(first.scores.nll, second.scores.nll)
    floor = paired.floor(first.scores.nll, gap) if moved else None  # two cuts that agree by luck have measured no floor
    fields: dict[str, Any] = {
        "model": dataclasses.asdict(info),
        "text": {
            "corpus": job.text.name,
            "origin": job.text.origin,
            "sha256": job.text.sha256,
            "ids_sha256": recipes.fingerprint(parts),
            "recipe": params["recipe"],
            "protocol": "strict",
            "windows": len(parts),
            "scored": len(where),
        },
        "fingerprint": hashlib.sha256(first.scores.nll.tobytes()).hexdigest(),
    }
    if scheme is None:
        fields |= {"metrics": paired.baseline(first.scores.nll, where) | {"recut": gap}, "floors": {"instrument": floor}}
    else:
        fields |= {
            "metrics": paired.quality(first.scores, where) | {"recut": gap},
            "positions": paired.by_position(first.scores, positions),
            "floors": {"scheme": floor},
            **_proof(first, scheme, info),
        }
    return Result(fields, {"nll": first.scores.nll.astype(np.float32)})


class _Pass:
    """All windows once, in chunks of one size."""

    def __init__(self, job: Job, parts: list[recipes.Window], scheme: Scheme | None, chunk: int, *, beside: bool):
        scores = []
        self.evidence: list[list[SideEvidence]] = []
        for window in parts:
            cache = job.session.new_cache(scheme, job.cell.kernel)
            base = job.session.new_cache(None) if beside else None
            scores.append(job.session.score(window.tokens, cache, window.targets, base, chunk, lambda n: job.progress(n * (1 + beside))))
            self.evidence.append(cache.evidence())
        self.scores = TokenScores.join(scores)


def _proof(run: _Pass, scheme: Scheme, info: ModelInfo) -> dict[str, Any]:
    """Evidence of the last window, audits over all of them, and the ledger."""
    scores, everything = run.scores, [e for window in run.evidence for e in window]
    identical = bool(np.array_equal(scores.nll, scores.base_nll) and not scores.kld.any())
    found = [
        text
        for window in run.evidence
        for text in proof.audit(window, info.kv_layers, lossless=scheme.lossless_in(info.dtype), identical=identical)
    ]
    found += proof.audit_control(
        bypass=scheme.bypass, lossless=scheme.lossless_in(info.dtype), dtype=info.dtype, identical=identical, kld=float(scores.kld.mean())
    )
    last = run.evidence[-1]
    return {
        "audits": list(dict.fromkeys(found)),
        "coverage": proof.coverage(everything),
        "evidence": [dataclasses.asdict(e) for e in last],
        "kernels": kernels(last),
        "ledger": ledger(last, info),
    }


def kernels(evidence: list[SideEvidence]) -> dict[str, Any]:
    """Which form of each operation ran, over all layers and sides, and why faster ones did not."""
    ran = {op: sorted({getattr(e, op) for e in evidence}) for op in ("encode", "decode", "attend")}
    return {
        **{op: "+".join(names) for op, names in ran.items()},
        "passed_over": {k: v for e in evidence for k, v in e.passed_over.items()},
    }


def ledger(evidence: list[SideEvidence], info: ModelInfo) -> dict[str, Any]:
    """Resident bytes of the last window's cache, counted over the arrays that exist, beside what the layouts declare.

    `bits` are those of a packed value; `bits_resident` spread everything that is kept over all values, with exact tokens counted at 16
    bits whatever the model's dtype, so that a float32 model does not make every scheme look twice as good.
    """
    total = {name: sum(getattr(e, f"bytes_{name}") for e in evidence) for name in ("payload", "metadata", "declared", "exact", "slack")}
    tokens, width = evidence[0].tokens, info.kv_heads * info.head_dim
    sides = {name: _bits([e for e in evidence if e.side == name], width) for name in ("k", "v")}
    packed, exact = total["payload"] + total["metadata"], sum(e.tokens - e.tokens_packed for e in evidence)
    return {
        **total,
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

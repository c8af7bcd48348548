"""Perplexity through the cache. Protocol strict: what each query sees is what the scheme would hold at that position in decoding. Protocol
deploy: what came in the same forward call is exact, as engines have it, so the chunk is part of what is measured.

Each window gets a fresh cache; the baseline runs side by side on the same tokens, so KLD is exact. Some windows are scored once more cut
into other chunks: in exact arithmetic nothing would change, so what does change is the floor below which a difference means nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqbench import corpora
from tqbench.core import evidence as proof
from tqbench.core.codec import ITEMSIZE
from tqbench.core.errors import ConfigError
from tqbench.core.evidence import SideEvidence
from tqbench.core.presets import read
from tqbench.core.record import Cell, Estimate
from tqbench.core.scheme import Scheme
from tqbench.core.session import ModelInfo, Terms, TokenScores
from tqbench.corpora import recipes
from tqbench.corpora._held_out import held_out
from tqbench.metrics import paired
from tqbench.tasks import Job, Result

KEPT_BYTES = 2 << 30  # of baseline logits
FLOOR_TOKENS = 2048  # the second cut runs no more windows than hold this many tokens


def passes(cell: Cell) -> float:
    """How many times the cell runs each token through the model: what a plan multiplies by."""
    once = 1 if cell.scheme is None else 2
    again = cell.scheme is None or cell.params["protocol"] == "strict"
    windows = len(recipes.spans(cell.params))
    return once + again * _again(cell.params) / windows


def _again(params: Mapping[str, Any]) -> int:
    """How many windows the second cut runs."""
    return min(max(1, FLOOR_TOKENS // int(params["context"])), len(recipes.spans(params)))


def second_chunk(chunk: int) -> int:
    """The other cut, for the floors: small and odd, because matrix products of large or round sizes may agree to the last bit."""
    return 2 if chunk == 1 else chunk * 3 // 8 | 1 if chunk > 5 else 1


def run(job: Job) -> Result:
    """Score every window and say how sure that is."""
    params, info = job.cell.params, job.session.info
    if params["context"] > info.max_positions:
        raise ConfigError(f"context {params['context']} is longer than the {info.max_positions} positions of {info.name}")
    ids = job.session.tokenize(recipes.prepare(params, job.text.text))
    parts = recipes.windows(params, ids, info.bos_token)
    scheme = None if job.cell.scheme is None else read(job.cell.scheme)
    terms, text = _terms(job, parts, scheme)
    first = _Pass(job, parts, scheme, terms, params["chunk"])
    where = np.concatenate([np.full((w.targets >= 0).sum(), i) for i, w in enumerate(parts)])
    positions = np.concatenate([np.flatnonzero(w.targets >= 0) for w in parts])
    gap, floor = _recut(job, parts, scheme, terms, first.scores, where)
    fields: dict[str, Any] = {
        "model": dataclasses.asdict(info),
        "text": {
            "corpus": job.text.name,
            "origin": job.text.origin,
            "sha256": job.text.sha256,
            "ids_sha256": recipes.fingerprint(parts),
            "recipe": params["recipe"],
            "protocol": params["protocol"],
            "windows": len(parts),
            "scored": len(where),
            "recut_windows": _again(params) if gap else 0,
        },
        "fingerprint": hashlib.sha256(first.scores.nll.tobytes()).hexdigest(),
    }
    if scheme is None:
        fields |= {"metrics": paired.baseline(first.scores.nll, where) | gap, "floors": {"instrument": floor}}
    else:
        fields |= {
            "metrics": paired.quality(first.scores, where) | gap,
            "positions": paired.by_position(first.scores, positions),
            "floors": {"scheme": floor},
            "calibration": text | {"learned_sha256": terms.calibration.sha256()} if terms.calibration else {},
            **_proof(first, scheme, info),
        }
    return Result(fields, {"nll": first.scores.nll.astype(np.float32)})


def _terms(job: Job, parts: list[recipes.Window], scheme: Scheme | None) -> tuple[Terms, dict[str, Any]]:
    """Kernel, protocol and calibration of the cell, and the record of the text that codecs learn from."""
    terms = Terms(job.cell.kernel, job.cell.params["protocol"])
    if scheme is None or not scheme.calibrated:
        return terms, {}
    wanted = job.cell.params["calibration"]
    text = corpora.load(wanted["corpus"], job.root)
    stretches = held_out(job.session.tokenize(text.text), [part.tokens for part in parts], wanted["tokens"], wanted["seed"])
    about = {
        "corpus": text.name,
        "sha256": text.sha256,
        "ids_sha256": hashlib.sha256(np.concatenate(stretches).astype("<i8").tobytes()).hexdigest(),
        "tokens": sum(map(len, stretches)),
        "seed": wanted["seed"],
    }
    return dataclasses.replace(terms, calibration=job.session.calibrate(stretches)), about


def _recut(
    job: Job, parts: list[recipes.Window], scheme: Scheme | None, terms: Terms, scores: TokenScores, where: NDArray[np.int64]
) -> tuple[dict[str, Estimate], float | None]:
    """Some windows again, cut into other chunks: the paired difference and the floor in ppl. In protocol deploy the cut is part of
    what is measured, so there is no second one of a scheme."""
    if scheme is not None and terms.protocol == "deploy":
        return {}, None
    chosen = np.linspace(0, len(parts) - 1, _again(job.cell.params)).round().astype(int)  # spread over the text
    second = _Pass(job, [parts[i] for i in chosen], scheme, terms, second_chunk(job.cell.params["chunk"]), alone=True).scores.nll
    same = np.isin(where, chosen)
    gap = paired.recut(scores.nll[same], second, where[same])
    # Two cuts that agree by luck have measured no floor.
    return {"recut": gap}, None if np.array_equal(scores.nll[same], second) else paired.floor(scores.nll, gap)


def _kept(job: Job, window: recipes.Window, chunk: int) -> dict[int, Any] | None:
    """Where the baseline's logits for this window are kept for the next scheme, while there is room."""
    key = (window.tokens.tobytes(), chunk)
    room = KEPT_BYTES // (job.cell.params["context"] * job.session.info.vocab * ITEMSIZE[job.session.info.dtype])
    return job.beside.setdefault(key, {}) if key in job.beside or len(job.beside) < room else None


def _tell(progress: Callable[[int], None], times: int, tokens: int) -> None:
    progress(times * tokens)


class _Pass:
    """Windows once, in chunks of one size; a scheme beside the baseline, unless alone."""

    def __init__(self, job: Job, parts: list[recipes.Window], scheme: Scheme | None, terms: Terms, chunk: int, *, alone: bool = False):
        scores = []
        beside = scheme is not None and not alone
        self.evidence: list[list[SideEvidence]] = []
        for window in parts:
            cache = job.session.new_cache(scheme, terms)
            base = job.session.new_cache(None) if beside else None
            kept = _kept(job, window, chunk) if beside else None
            told = partial(_tell, job.progress, 1 + beside)
            scores.append(job.session.score(window.tokens, cache, window.targets, base, chunk, told, kept))
            self.evidence.append(cache.evidence())
        self.scores = TokenScores.join(scores)


def _proof(run: _Pass, scheme: Scheme, info: ModelInfo) -> dict[str, Any]:
    """Evidence of the longest window, audits over all of them, and the ledger."""
    scores, everything = run.scores, [e for window in run.evidence for e in window]
    identical = bool(np.array_equal(scores.nll, scores.base_nll) and not scores.kld.any())
    facts: dict[str, Any] = {"lossless": scheme.lossless_in(info.dtype), "identical": identical, "covered": proof.coverage(everything) > 0}
    found = [text for window in run.evidence for text in proof.audit(window, info.kv_layers, **facts)]
    found += proof.audit_control(
        bypass=scheme.bypass, lossless=scheme.lossless_in(info.dtype), dtype=info.dtype, identical=identical, kld=float(scores.kld.mean())
    )
    last = max(reversed(run.evidence), key=lambda window: window[0].tokens + window[0].tokens_forgotten)
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
    """Resident bytes of the longest window's cache, counted over the arrays that exist, beside what the layouts declare.

    `bits` are those of a packed value; `bits_resident` spread everything that is kept over all values, with exact tokens counted at 16
    bits whatever the model's dtype, so that a float32 model does not make every scheme look twice as good.
    """
    total = {
        name: sum(getattr(e, f"bytes_{name}") for e in evidence) for name in ("payload", "metadata", "declared", "tables", "exact", "slack")
    }
    tokens, width = evidence[0].tokens + evidence[0].tokens_forgotten, info.kv_heads * info.head_dim
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

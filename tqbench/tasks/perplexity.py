"""Perplexity through the cache. Protocol strict: what each query sees is what the scheme would hold at that position in decoding. Protocol
deploy: what came in the same forward call is exact, as engines have it, so the chunk is part of what is measured.

Each window gets a fresh cache; the baseline runs side by side on the same tokens, so KLD is exact. Some windows are scored once more cut
into other chunks: in exact arithmetic nothing would change, so what does change is the floor below which a difference means nothing.

`tokens: until decided` looks at the gates of the scheme after some windows and goes on only while one of them is open. Each look spends its
share of the error (`metrics/verdict.py`), so that stopping at a lucky moment gains nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tqbench.core.codec import ITEMSIZE
from tqbench.core.errors import ConfigError
from tqbench.core.evidence import SideEvidence
from tqbench.core.gate import Gate
from tqbench.core.presets import read
from tqbench.core.record import Cell, Estimate
from tqbench.core.scheme import Scheme
from tqbench.core.session import Terms, TokenScores
from tqbench.corpora import recipes
from tqbench.metrics import paired
from tqbench.metrics.verdict import decide, least, looks, shares, widened
from tqbench.tasks import Job, Result
from tqbench.tasks._proof import prove
from tqbench.tasks._terms import learned
from tqbench.tasks._terms import terms as terms_of

T = TypeVar("T")
KEPT_BYTES = 2 << 30  # of baseline logits
FLOOR_TOKENS = 2048  # the second cut runs no more windows than hold this many tokens,
FLOOR_SHARE = 4  # or one in so many where scoring goes on until it is decided: a floor wider than the interval would undo the decision


def passes(cell: Cell) -> float:
    """How many times the cell runs each token through the model: what a plan multiplies by."""
    windows = recipes.spans(cell.params)
    run = len(_planned(cell, windows))
    again = cell.scheme is None or cell.params["protocol"] == "strict"
    return (run * (1 if cell.scheme is None else 2) + again * _again(cell.params, run)) / len(windows)


def _again(params: Mapping[str, Any], windows: int) -> int:
    """How many of so many windows the second cut runs."""
    deciding = windows // FLOOR_SHARE if "judging" in params else 0
    return min(max(1, FLOOR_TOKENS // int(params["context"]), deciding), windows)


def _planned(cell: Cell, windows: list[T]) -> list[T]:
    """The windows that a cell may run. Where schemes are scored until they are decided, the baseline alone runs what each of them begins
    with, to be held against; how it fares in the other windows they measure themselves."""
    return windows[: looks(len(windows))[0]] if cell.scheme is None and "until" in cell.params else windows


def second_chunk(chunk: int) -> int:
    """The other cut, for the floors: small and odd, because matrix products of large or round sizes may agree to the last bit."""
    return 2 if chunk == 1 else chunk * 3 // 8 | 1 if chunk > 5 else 1


def run(job: Job) -> Result:
    """Score every window and say how sure that is."""
    params, info = job.cell.params, job.session.info
    if params["context"] > info.max_positions:
        raise ConfigError(f"context {params['context']} is longer than the {info.max_positions} positions of {info.name}")
    ids = job.session.tokenize(recipes.prepare(params, job.text.text))
    parts = _planned(job.cell, recipes.windows(params, ids, info.bos_token))
    scheme = None if job.cell.scheme is None else read(job.cell.scheme)
    terms, about = terms_of(job, [part.tokens for part in parts], scheme)
    first = _Pass(job, scheme, terms, params["chunk"])
    looked = first.until_decided(parts) if "judging" in params else first.run(parts)
    parts = first.windows
    where = first.where
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
            "recut_windows": _again(params, len(parts)) if gap else 0,
            **looked,
        },
        "fingerprint": hashlib.sha256(first.scores.nll.tobytes()).hexdigest(),
    }
    if scheme is None:
        fields |= {"metrics": paired.baseline(first.scores.nll, where) | gap, "floors": {"instrument": floor}}
    else:
        fields |= {
            "metrics": first.quality() | gap,
            "positions": paired.by_position(first.scores, first.positions),
            "floors": {"scheme": floor},
            "calibration": learned(terms, about),
            **prove(first.evidence, first.scores, scheme, info),
        }
    return Result(fields, {"nll": first.scores.nll.astype(np.float32)})


def _recut(
    job: Job, parts: list[recipes.Window], scheme: Scheme | None, terms: Terms, scores: TokenScores, where: NDArray[np.int64]
) -> tuple[dict[str, Estimate], float | None]:
    """Some windows again, cut into other chunks: the paired difference and the floor in ppl. In protocol deploy the cut is part of
    what is measured, so there is no second one of a scheme."""
    if scheme is not None and terms.protocol == "deploy":
        return {}, None
    chosen = np.linspace(0, len(parts) - 1, _again(job.cell.params, len(parts))).round().astype(int)  # spread over the text
    again = _Pass(job, scheme, terms, second_chunk(job.cell.params["chunk"]), alone=True)
    again.run([parts[i] for i in chosen])
    second = again.scores.nll
    same = np.isin(where, chosen)
    gap = paired.recut(scores.nll[same], second, where[same])
    # Two cuts that agree by luck have measured no floor.
    return {"recut": gap}, None if np.array_equal(scores.nll[same], second) else paired.floor(scores.nll, gap)


def _kept(job: Job, window: recipes.Window, chunk: int) -> dict[int, Any] | None:
    """Where the baseline's logits for this window are kept for the next scheme, while there is room."""
    key = (window.tokens.tobytes(), chunk)
    room = KEPT_BYTES // (job.cell.params["context"] * job.session.info.vocab * ITEMSIZE[job.session.info.dtype])
    return job.beside.setdefault(key, {}) if key in job.beside or len(job.beside) < room else None


def _decided(gate: Gate, found: Estimate | None, share: float, windows: int) -> bool:
    return found is not None and decide(gate, widened(found, share, windows, gate.metric)) is not None


def _tell(progress: Callable[[int], None], times: int, tokens: int) -> None:
    progress(times * tokens)


@dataclass
class _Pass:
    """Windows once, in chunks of one size; a scheme beside the baseline, unless alone."""

    job: Job
    scheme: Scheme | None
    terms: Terms
    chunk: int
    alone: bool = False
    windows: list[recipes.Window] = field(default_factory=list)
    parts: list[TokenScores] = field(default_factory=list)
    evidence: list[list[SideEvidence]] = field(default_factory=list)

    @property
    def scores(self) -> TokenScores:
        """Of all windows that were run."""
        return TokenScores.join(self.parts)

    @property
    def where(self) -> NDArray[np.int64]:
        """The window of each scored token."""
        return np.repeat(np.arange(len(self.windows)), [(w.targets >= 0).sum() for w in self.windows])

    @property
    def positions(self) -> NDArray[np.int64]:
        """The place of each scored token in its window."""
        return np.concatenate([np.flatnonzero(w.targets >= 0) for w in self.windows])

    def quality(self) -> dict[str, Estimate]:
        """All that is reported about a scheme, and so all that a gate may ask for."""
        scores, where = self.scores, self.where
        return paired.quality(scores, where) | {"kld_worst_decile": paired.worst_decile(scores.kld, where, self.positions)}

    def run(self, windows: list[recipes.Window]) -> dict[str, Any]:
        """Run these windows too."""
        job, beside = self.job, self.scheme is not None and not self.alone
        for window in windows:
            cache = job.session.new_cache(self.scheme, self.terms)
            base = job.session.new_cache(None) if beside else None
            kept = _kept(job, window, self.chunk) if beside else None
            told = partial(_tell, job.progress, 1 + beside)
            self.windows.append(window)
            self.parts.append(job.session.score(window.tokens, cache, window.targets, base, self.chunk, told, kept))
            self.evidence.append(cache.evidence())
        return {}

    def until_decided(self, windows: list[recipes.Window]) -> dict[str, Any]:
        """Run windows while a gate is open; what the record says about the looks, and about the windows that the baseline's cell runs."""
        ends, look = looks(len(windows)), dict[str, Any]()
        judging = self.job.cell.params["judging"]
        gates = [Gate.of(gate) for gate in judging["gates"]]
        for at, (end, share) in enumerate(zip(ends, shares(len(ends)), strict=True), 1):
            self.run(windows[len(self.windows) : end])
            scores = self.scores
            first = look.get("first") or {
                "ids_sha256": recipes.fingerprint(self.windows),
                "base_ppl": float(np.exp(scores.base_nll.mean())),
            }
            look = {"look": {"at": at, "of": len(ends), "share": share}, "first": first}
            found, mine = self.quality(), share / max(1, judging["beside"])
            if all(end >= least(gate.metric) and _decided(gate, found.get(gate.metric), mine, end) for gate in gates):
                break
        return look

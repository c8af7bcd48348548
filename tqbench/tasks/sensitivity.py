"""Where does a scheme hurt? K or V of one layer is packed at a time, all else is kept exact in the same store, and each of these probes is
scored beside the model's own cache, whose logits are computed once for all of them.

A probe is a scheme like any other: the side under test in its layer, `f32` on the other side, and a rule that puts `f32` into all other
layers. Evidence must show that nothing else lost anything, or the cell has no number. The baseline's cell runs the probe that packs nothing,
which says what the instrument itself costs, and looks at the keys and values: figures that may tell beforehand what the probes will find.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.evidence import SideEvidence, coverage
from tqbench.core.presets import preset, read
from tqbench.core.record import Cell, Estimate
from tqbench.core.scheme import Layers, Scheme
from tqbench.core.session import ModelInfo, Terms, TokenScores
from tqbench.core.state import SIDES
from tqbench.corpora import recipes
from tqbench.metrics import paired
from tqbench.metrics.traits import traits
from tqbench.tasks import Job, Result
from tqbench.tasks._proof import kernels, ledger, prove
from tqbench.tasks._terms import learned
from tqbench.tasks._terms import terms as terms_of

EXACT = "f32"
ALONE = 2  # passes of the baseline's cell: its own, and the probe that packs nothing


def passes(cell: Cell, layers: int) -> int:
    """How many times each token runs through a model of so many layers that hold K and V."""
    return ALONE if cell.scheme is None else 1 + len(SIDES) * layers


def run(job: Job) -> Result:
    """Score all windows through every probe, or look at the model itself."""
    params, info = job.cell.params, job.session.info
    if params["context"] > info.max_positions:
        raise ConfigError(f"context {params['context']} is longer than the {info.max_positions} positions of {info.name}")
    ids = job.session.tokenize(job.text.text)
    windows = recipes.windows(params, ids, info.bos_token)
    scheme = None if job.cell.scheme is None else read(job.cell.scheme)
    terms, about = terms_of(job, [window.tokens for window in windows], scheme)
    fields: dict[str, Any] = {
        "model": dataclasses.asdict(info),
        "text": {
            "corpus": job.text.name,
            "origin": job.text.origin,
            "sha256": job.text.sha256,
            "ids_sha256": recipes.fingerprint(windows),
            "recipe": params["recipe"],
            "protocol": params["protocol"],
            "windows": len(windows),
            "scored": sum(int((window.targets >= 0).sum()) for window in windows),
        },
    }
    where = np.repeat(np.arange(len(windows)), [(window.targets >= 0).sum() for window in windows])
    if scheme is None:
        return _baseline(job, windows, where, terms, fields)
    probes = [_Probe(at, side, alone(scheme, at, side, info)) for at in range(info.kv_layers) for side in SIDES]
    _score(job, windows, probes, terms)
    fields |= {"calibration": learned(terms, about), **_found(probes, where, scheme, info)}
    names: tuple[str, ...] = ("kld", "nll")
    arrays = {f"probe_{name}": np.stack([getattr(probe.scores, name) for probe in probes]).astype(np.float32) for name in names}
    fields["fingerprint"] = hashlib.sha256(arrays["probe_nll"].tobytes()).hexdigest()
    return Result(fields, arrays)


def alone(scheme: Scheme, position: int, side: str, info: ModelInfo) -> Scheme:
    """The scheme on one side of one of the layers that hold K and V, and nothing anywhere else."""
    if scheme.logits:
        raise Unsupported(f"scheme {scheme.name!r} multiplies the attention logits of every layer, so none can be looked at alone")
    exact, own = nothing(info), scheme.for_layer(position, info.kv_layers, info.heads // info.kv_heads)
    sides = {name: getattr(own if name == side else exact, name) for name in SIDES}
    others = tuple(at for at in range(info.kv_layers) if at != position)
    rules = (Layers(exact, at=others),) if others else ()
    return Scheme(f"{scheme.name} in {position} {side}", **sides, sinks=own.sinks, layers=rules, bypass=scheme.bypass)


def nothing(info: ModelInfo) -> Scheme:
    """The scheme that keeps everything as it is."""
    exact = preset(EXACT)
    if not exact.lossless_in(info.dtype):
        raise Unsupported(f"no scheme keeps {info.dtype} as it is, so no layer can be packed alone; set `dtype: float32`")
    return exact


@dataclass
class _Probe:
    """One side of one layer, packed alone: its scores so far, its evidence in the last window, and what audits found in any."""

    position: int
    side: str
    scheme: Scheme
    parts: list[TokenScores] = field(default_factory=list)
    evidence: SideEvidence | None = None
    audits: list[str] = field(default_factory=list)

    @property
    def scores(self) -> TokenScores:
        """Of all windows that were run."""
        return TokenScores.join(self.parts)

    @property
    def own(self) -> SideEvidence:
        """The evidence of what it packs."""
        assert self.evidence is not None  # noqa: S101 - for the type checker: a probe has run
        return self.evidence

    def take(self, scores: TokenScores, evidence: list[SideEvidence], info: ModelInfo) -> None:
        """A window's scores, and the proof that this side of this layer was packed and nothing else."""
        self.parts.append(scores)
        layer = sorted({e.layer for e in evidence})[self.position]
        (self.evidence,) = (e for e in evidence if (e.layer, e.side) == (layer, self.side))
        self.audits += prove([evidence], scores, self.scheme, info)["audits"]
        if not self.evidence.attended_packed:
            self.audits.append(f"layer {layer} {self.side}: nothing of it was attended in packed form; set a longer context")
        for e in evidence:
            if e is not self.evidence and (not e.lossless or e.error):
                self.audits.append(f"layer {e.layer} {e.side} lost something (error {e.error}) while layer {layer} {self.side} was probed")


def _score(job: Job, windows: list[recipes.Window], probes: list[_Probe], terms: Terms) -> None:
    """Every window through every probe; the baseline's logits of a window are kept until all of them have been held against it."""
    session, chunk = job.session, job.cell.params["chunk"]
    for window in windows:
        kept: dict[int, Any] = {}
        for probe in probes:
            cache, base = session.new_cache(probe.scheme, terms), session.new_cache(None)
            told = partial(_tell, job, 2 if not kept else 1)
            scores = session.score(window.tokens, cache, window.targets, base, chunk, told, kept)
            probe.take(scores, cache.evidence(), session.info)


def _tell(job: Job, times: int, tokens: int) -> None:
    job.progress(times * tokens)


def _found(probes: list[_Probe], where: NDArray[np.int64], scheme: Scheme, info: ModelInfo) -> dict[str, Any]:
    """What a cell of a scheme says: layer by layer and side by side, together, and with what proof."""
    boot = paired.Bootstrap(paired.blocks(where))
    firsts = _firsts(boot, probes)
    packed = [probe.own for probe in probes]
    return {
        "metrics": _together(boot, probes),
        "layers": [_row(boot, probe, first) for probe, first in zip(probes, firsts, strict=True)],
        "audits": list(dict.fromkeys(text for probe in probes for text in probe.audits)),
        "coverage": coverage(packed),
        "evidence": [dataclasses.asdict(e) for e in packed],
        "kernels": kernels(packed),
        "ledger": ledger(packed, info),
    }


def _row(boot: paired.Bootstrap, probe: _Probe, first: float) -> dict[str, Any]:
    own, scores = probe.own, probe.scores
    kld, dnll = boot.positive(scores.kld), boot.estimate(scores.nll - scores.base_nll)
    return {
        "layer": own.layer,
        "side": own.side,
        **_spread("kld", kld),
        **_spread("dnll", dnll),
        "first": first,
        "error": own.error,
        "bytes": own.bytes_payload + own.bytes_metadata,
        "exact_tokens": own.tokens - own.tokens_packed,
        "tokens": own.tokens,
    }


def _spread(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _firsts(boot: paired.Bootstrap, probes: list[_Probe]) -> list[float]:
    """Of each probe, in what share of the draws it hurts most: draws are the same for all, so this is how sure its rank is."""
    drawn = np.stack([boot.means(probe.scores.kld)[1] for probe in probes])
    return [float(share) for share in (drawn == drawn.max(0)).mean(1)] if drawn.any() else [0.0] * len(probes)


def _together(boot: paired.Bootstrap, probes: list[_Probe]) -> dict[str, Estimate]:
    """Sums over layers: what the scheme costs if damage adds up, which it does while it is small; and the worst of all probes."""
    kld = {side: np.sum([probe.scores.kld for probe in probes if probe.side == side], axis=0) for side in SIDES}
    worst = max(probes, key=lambda probe: float(probe.scores.kld.mean()))
    return {
        "base_ppl": boot.estimate(worst.scores.base_nll, of=np.exp),
        "kld_worst": boot.positive(worst.scores.kld),
        **{f"kld_sum_{side}": boot.positive(values) for side, values in kld.items()},
        "kld_sum": boot.positive(kld["k"] + kld["v"]),
    }


def _baseline(job: Job, windows: list[recipes.Window], where: NDArray[np.int64], terms: Terms, fields: dict[str, Any]) -> Result:
    """The model's own cache, what the probe that packs nothing changes, and the traits of keys and values in the first window."""
    session, parts = job.session, []
    for window in windows:
        cache, told = session.new_cache(nothing(session.info), terms), partial(_tell, job, ALONE)
        parts.append(session.score(window.tokens, cache, window.targets, session.new_cache(None), job.cell.params["chunk"], told))
    scores = TokenScores.join(parts)
    boot = paired.Bootstrap(paired.blocks(where))
    gap = boot.estimate(scores.nll - scores.base_nll)
    fields |= {
        "metrics": paired.baseline(scores.base_nll, where) | {"kld_nothing": boot.positive(scores.kld)},
        "floors": {"instrument": paired.floor(scores.base_nll, gap)},
        "fingerprint": hashlib.sha256(scores.base_nll.tobytes()).hexdigest(),
    }
    try:
        layers = session.exact(session.context(windows[0].tokens))
        fields["layers"] = [{"layer": one.layer, "side": side, **found} for one in layers for side, found in traits(one).items()]
    except Unsupported as error:
        fields["text"]["no_traits"] = str(error)
    return Result(fields, {"nll": scores.base_nll.astype(np.float32)})

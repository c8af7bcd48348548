"""Where does a scheme hurt? K or V of one layer is packed at a time, all else is kept exact in the same store, and each of these probes is
scored beside the model's own cache, whose logits are computed once for all of them. K of all layers, V of all layers and both follow, which
says how far damage adds up; a scheme whose `probes` are `sides` has these alone.

A probe is a scheme like any other: the side under test in its layer, `f32` on the other side, and a rule that puts `f32` into all other
layers. Evidence must show that nothing else lost anything, or the cell has no number. The baseline's cell runs the probe that packs
nothing, which says what the instrument itself costs, and looks at the keys and values: figures that may tell beforehand what probes find.
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
from tqbench.core.evidence import SideEvidence, coverage, coverage_sides
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
WHOLE = ("k", "v", "kv")  # sides that are packed in all layers at once
ALONE = 2  # passes of the baseline's cell: its own, and the probe that packs nothing


def passes(cell: Cell, layers: int) -> int:
    """How many times each token runs through a model of so many layers that hold K and V."""
    singles = len(SIDES) * layers if cell.params.get("probes") == "layers" else 0
    return ALONE if cell.scheme is None else 1 + singles + len(WHOLE)


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
    wholes = [_Probe(range(info.kv_layers), sides, whole(scheme, sides, info)) for sides in WHOLE]
    places = [(at, side) for at in range(info.kv_layers) for side in SIDES] if params["probes"] == "layers" else []
    singles = [_Probe(range(at, at + 1), side, alone(scheme, at, side, info)) for at, side in places]
    _score(job, windows, [*singles, *wholes], terms)
    fields |= {"calibration": learned(terms, about), **_found(singles, wholes, where, info)}
    arrays = {f"probe_{name}": _stacked([*singles, *wholes], name) for name in ("kld", "nll")}
    fields["fingerprint"] = hashlib.sha256(arrays["probe_nll"].tobytes()).hexdigest()
    return Result(fields, arrays)


def _stacked(probes: list[_Probe], name: str) -> NDArray[np.float32]:
    """A row per probe, in the order in which they ran."""
    return np.stack([getattr(probe.scores, name) for probe in probes]).astype(np.float32)


def alone(scheme: Scheme, position: int, side: str, info: ModelInfo) -> Scheme:
    """The scheme on one side of one of the layers that hold K and V, and nothing anywhere else."""
    if scheme.logits:
        raise Unsupported(f"scheme {scheme.name!r} multiplies the attention logits of every layer, so none can be looked at alone")
    if any(scheme.across_layers(name) for name in SIDES):
        raise Unsupported(f"scheme {scheme.name!r} packs all layers together, so none can be looked at alone")
    exact, own = nothing(info), scheme.for_layer(position, info.kv_layers, info.heads // info.kv_heads)
    sides = {name: getattr(own if name == side else exact, name) for name in SIDES}
    others = tuple(at for at in range(info.kv_layers) if at != position)
    rules = (Layers(exact, at=others),) if others else ()
    return Scheme(f"{scheme.name} in {position} {side}", **sides, sinks=own.sinks, layers=rules, bypass=scheme.bypass)


def whole(scheme: Scheme, sides: str, info: ModelInfo) -> Scheme:
    """The scheme on these sides of all layers; the schemes that stand in for it by a rule are cut down alike."""
    other = {side: getattr(nothing(info), side) for side in SIDES if side not in sides}
    if not other:
        return scheme
    inner = {rule: getattr(scheme, rule) for rule in ("protect", "gqa") if getattr(scheme, rule)}
    rules: dict[str, Any] = {name: dataclasses.replace(rule, scheme=whole(rule.scheme, sides, info)) for name, rule in inner.items()}
    rules["layers"] = tuple(dataclasses.replace(rule, scheme=whole(rule.scheme, sides, info)) for rule in scheme.layers)
    return dataclasses.replace(scheme, name=f"{scheme.name} in {sides}", **other, **rules)


def nothing(info: ModelInfo) -> Scheme:
    """The scheme that keeps everything as it is."""
    exact = preset(EXACT)
    if not exact.lossless_in(info.dtype):
        raise Unsupported(f"no scheme keeps {info.dtype} as it is, so no layer can be packed alone; set `dtype: float32`")
    return exact


@dataclass
class _Probe:
    """Sides of layers that are packed together, as positions among those that hold K and V: the scores so far, the evidence of the last
    window, and what audits found in any."""

    layers: range
    sides: str
    scheme: Scheme
    parts: list[TokenScores] = field(default_factory=list)
    evidence: list[SideEvidence] = field(default_factory=list)
    audits: list[str] = field(default_factory=list)

    @property
    def scores(self) -> TokenScores:
        """Of all windows that were run."""
        return TokenScores.join(self.parts)

    @property
    def own(self) -> list[SideEvidence]:
        """The evidence of what it packs."""
        names = sorted({e.layer for e in self.evidence})
        mine = {names[at] for at in self.layers}
        return [e for e in self.evidence if e.layer in mine and e.side in self.sides]

    def take(self, scores: TokenScores, evidence: list[SideEvidence], info: ModelInfo) -> None:
        """A window's scores, and the proof that these sides of these layers were packed and nothing else."""
        self.parts.append(scores)
        self.evidence = evidence
        self.audits += prove([evidence], scores, self.scheme, info)["audits"]
        own = self.own
        if not any(e.attended_packed for e in own):
            self.audits.append(f"layer {own[0].layer} {self.sides}: nothing of it was attended in packed form; set a longer context")
        for e in evidence:
            if e not in own and (not e.lossless or e.error):
                self.audits.append(f"layer {e.layer} {e.side} lost something (error {e.error}) while only {self.scheme.name!r} was probed")


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


def _found(singles: list[_Probe], wholes: list[_Probe], where: NDArray[np.int64], info: ModelInfo) -> dict[str, Any]:
    """What a cell of a scheme says: all of it together, layer by layer and side by side, and with what proof."""
    boot = paired.Bootstrap(paired.blocks(where))
    packed, firsts = wholes[-1].evidence, _firsts(boot, singles)
    return {
        "metrics": _metrics(boot, wholes) | (_sums(boot, singles) if singles else {}),
        "layers": [_row(boot, probe, first) for probe, first in zip(singles, firsts, strict=True)],
        "audits": list(dict.fromkeys(text for probe in (*singles, *wholes) for text in probe.audits)),
        "coverage": coverage(packed),
        "coverage_sides": coverage_sides(packed),
        "evidence": [dataclasses.asdict(e) for e in packed],
        "kernels": kernels(packed),
        "ledger": ledger(packed, info),
    }


def _metrics(boot: paired.Bootstrap, wholes: list[_Probe]) -> dict[str, Estimate]:
    """K of all layers, V of all layers, and both."""
    k, v, both = (probe.scores for probe in wholes)
    return {
        "base_ppl": boot.estimate(both.base_nll, of=np.exp),
        "kld": boot.positive(both.kld),
        "kld_k": boot.positive(k.kld),
        "kld_v": boot.positive(v.kld),
        "ln_ratio": boot.estimate(both.nll - both.base_nll),
    }


def _row(boot: paired.Bootstrap, probe: _Probe, first: float) -> dict[str, Any]:
    (own,), scores = probe.own, probe.scores
    kld, dnll = boot.positive(scores.kld), boot.estimate(scores.nll - scores.base_nll)
    packed = {"attended_packed": own.attended_packed, "error": own.error}
    return {"layer": own.layer, "side": own.side, **_spread("kld", kld), **_spread("dnll", dnll), "first": first, **packed}


def _spread(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _firsts(boot: paired.Bootstrap, probes: list[_Probe]) -> list[float]:
    """Of each probe, in what share of the draws it hurts most: draws are the same for all, so this is how sure its rank is."""
    if not probes:
        return []
    drawn = np.stack([boot.means(probe.scores.kld)[1] for probe in probes])
    return [float(share) for share in (drawn == drawn.max(0)).mean(1)] if drawn.any() else [0.0] * len(probes)


def _sums(boot: paired.Bootstrap, probes: list[_Probe]) -> dict[str, Estimate]:
    """Sums over layers: what the scheme costs if damage adds up, which it does while it is small; and the worst of all probes."""
    kld = {side: np.sum([probe.scores.kld for probe in probes if probe.sides == side], axis=0) for side in SIDES}
    worst = max(probes, key=lambda probe: float(probe.scores.kld.mean()))
    return {
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

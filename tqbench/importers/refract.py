"""REFRACT's report: the composite, its axes, and the KL divergence under them. Scores that do not follow from each other are refused."""

from __future__ import annotations

import math
from pathlib import PureWindowsPath  # takes either slash

from tqbench.importers.document import Node
from tqbench.importers.row import Fact, Figure, Row, facts, figure

TOOL = "REFRACT"
SCHEMAS = ("refract.report.v0.1", "refract.report.v0.2", "refract.report.v0.3")  # with any further number
RECIPE = "scores from 0 to 100, 100 like the reference; the KL divergence by the engine's own tool, from one cache to the other"
CAVEAT = (
    "the composite is a harmonic mean of scores that have no like here, and no record shows that the cache was active; only the KL "
    "divergence has a like, on other tokens"
)
UNSAID = {
    "model": "the report does not name it",
    "cache_k": "the candidate does not say it",
    "cache_v": "the candidate does not say it",
    "corpus": "the divergence was measured without one, or the report does not name it",
    "context": "no divergence was measured",
    "chunks": "no divergence was measured",
    "stride": "the report does not say it; llama-perplexity's windows lie side by side",
    "bos": "the report does not say it",
}
AXES = ("gtm", "kld", "rniah", "plad")
SKIPPED = "this axis was skipped"
SLACK = 1e-6  # relative: the report has all digits


def is_report(value: object) -> bool:
    """Whether a JSON value is a report."""
    return isinstance(value, dict) and str(value.get("schema", "")).startswith("refract.report")


def read(document: Node) -> list[Row]:
    """The one row of a report."""
    schema = document.at("schema").word()
    if not any(schema == known or schema.startswith(f"{known}.") for known in SCHEMAS):
        document.at("schema").wrong(f"one of {', '.join(SCHEMAS)}")
    scores = {axis: _score(document, axis) for axis in AXES}
    composite = document.at("composite").number()
    _agrees(document, composite, [score for score in scores.values() if score is not None])
    figures = {
        "refract": figure(composite),
        **{f"refract_{axis}": figure(score, why=SKIPPED) for axis, score in scores.items()},
        **_divergence(document, scores["kld"]),
    }
    known, unknown = facts(_known(document, schema), UNSAID)
    label = f"{known.get('cache_k', '?')} / {known.get('cache_v', '?')}"
    return [Row(TOOL, RECIPE, label, document.at("composite").where, known, unknown, figures, CAVEAT)]


def _known(document: Node, schema: str) -> dict[str, Fact | None]:
    kld, machine = document.at("axes").at("kld"), document.at("environment")
    measured = kld.at("score").value is not None
    model, candidate = document.at("model").maybe_word(), _parts(document.at("candidate").word())
    engine, commit = machine.at("backend").maybe_word(), machine.at("llama_cpp_commit").maybe_word()
    corpus = kld.at("corpus").at("path").maybe_word()
    digest = kld.at("corpus").at("sha256_head").maybe_word()
    rest = ",".join(f"{key}={value}" for key, value in candidate.items() if key not in ("ctk", "ctv"))
    return {
        "version": document.at("framework_version").maybe_word() or schema,
        "model": PureWindowsPath(model).name if model else None,
        "cache_k": candidate.get("ctk"),
        "cache_v": candidate.get("ctv"),
        "corpus": f"{PureWindowsPath(corpus).name} (sha256 of its head {digest[:16]})" if corpus and digest else corpus,
        "context": kld.at("ctx").maybe_whole() if measured else None,
        "chunks": kld.at("chunks").maybe_whole() if measured else None,
        "reference": document.at("reference").word(),
        "candidate's other settings": rest or None,
        "engine": f"{engine} ({commit})" if engine and commit else engine,
    }


def _parts(spec: str) -> dict[str, str]:
    """`ctk=q8_0,ctv=turbo4`."""
    return {key.strip(): value.strip() for key, equals, value in (part.partition("=") for part in spec.split(",")) if equals}


def _score(document: Node, axis: str) -> float | None:
    """Of an axis that was run."""
    found = document.at("composite_detail").mapping().at(f"{axis}_score")
    score = found.maybe_number()
    if score is not None and not -SLACK <= score <= 100 + SLACK:
        found.wrong("a number from 0 to 100")
    return score


def _agrees(document: Node, composite: float, scores: list[float]) -> None:
    """The harmonic mean of the axes that were run, 0 if one of them is."""
    mean = len(scores) / sum(1 / score for score in scores) if scores and min(scores) > 0 else 0.0
    if abs(composite - mean) > SLACK * 100:
        document.at("composite").wrong(f"the harmonic mean of its axes, {mean:.6g},")


def _divergence(document: Node, score: float | None) -> dict[str, Figure]:
    kld = document.at("axes").at("kld").mapping()
    if score is None:
        return {key: figure(None, why=SKIPPED) for key in ("kld", "ppl", "rms_dp", "top1")}
    mean = kld.at("mean_kld").number()
    if math.isfinite(mean) and abs(100 * math.exp(-max(mean, 0.0)) - score) > SLACK * 100:
        kld.at("mean_kld").wrong(f"what its score {score:.6g} stands for, −ln(score / 100)")
    why = "REFRACT did not find it in the engine's output"
    return {
        "kld": figure(mean),
        "ppl": figure(kld.at("ppl").maybe_number(), why=why),
        "rms_dp": figure(kld.at("rms_dp_pct").maybe_number(), why=why, scale=0.01),
        "top1": figure(kld.at("same_topp_pct").maybe_number(), why=why, scale=0.01),
    }

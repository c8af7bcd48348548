"""What a reader must know before the figures: model, text, machine and dates; and by which hashes it can be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tqbench.core.quantity import size
from tqbench.core.record import Cell
from tqbench.report import speed
from tqbench.report.run import Run
from tqbench.report.table import short_headings
from tqbench.report.text import plain

TASKS = {
    "perplexity": "Quality",
    "decode": "Decode",
    "prefill": "Prefill",
    "memory": "Memory",
    "storage": "Storage",
    "breakdown": "Breakdown",
    "sensitivity": "Sensitivity",
    "needle": "Needles",
    "generation": "Generation",
    "lm_eval": "lm-eval",
}


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The head of a page."""
    records = [record for run in runs for record in run.records if record.outcome == "ok"]
    days = sorted({record.started[:10] for record in records if record.started})
    found = {
        "model": [record.model.get("name", record.cell.model) for record in records],
        "weights": [record.model["weights"] for record in records if "weights" in record.model],
        "engine": [" · ".join((cell.backend, cell.device, cell.dtype)) for cell in (record.cell for record in records)],
        "text": [str(record.cell.corpus.get("name", "")) for record in records],
        "machine": [_machine(run.environment) for run in runs],
        "measured": [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else [],
        "version": [f"tqbench {record.tqbench}" for record in records if record.tqbench],
    }
    return [(name, plain(", ".join(dict.fromkeys(values)))) for name, values in found.items() if any(values)]


def _machine(environment: dict[str, Any]) -> str:
    cores, memory = environment.get("cores"), environment.get("memory_bytes")
    parts = (environment.get("cpu"), f"{cores} cores" if cores else None, size(memory) if memory else None)
    return " · ".join(str(part) for part in parts if part)


def titles(run: Run) -> dict[str, str]:
    """Per setting, a title of a few words: the task, its context, and of the rest what tells it from others."""
    groups = [cells[0].group for cells in run.settings().values()]
    common = {part for part in (groups[0] if groups else ()) if all(part in group for group in groups)}
    corpora = {str(cells[0].corpus.get("name")) for cells in run.settings().values()}
    found: dict[str, str] = {}
    for setting, cells in run.settings().items():
        cell = cells[0]
        own = [part for part in cell.group if part not in common] + ([str(cell.corpus.get("name"))] if len(corpora) > 1 else [])
        title = plain(" · ".join((f"{TASKS.get(cell.task, cell.task)} {_where(cell)}".strip(), *own)))
        found[setting] = title if title not in found.values() else f"{title} · {short_headings(run)[setting]}"
    return found


def _where(cell: Cell) -> str:
    if cell.task not in ("perplexity", "sensitivity"):
        return speed.heading(cell).removeprefix(f"{cell.task} ")
    context = f"at context {cell.params['context']:,}" if "context" in cell.params else ""
    return f"{context} · {cell.params.get('recipe', '')}".strip(" ·")


def machines(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each environment as names and texts, with the runs that it is of."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        found.setdefault(tuple(_spelled(run)), []).append(f"{run.suite} {run.name}")
    return [(", ".join(names), list(machine)) for machine, names in found.items()]


def _spelled(run: Run) -> Iterator[tuple[str, str]]:
    for name, value in run.environment.items():
        if name != "schema":
            yield name.removesuffix("_bytes").replace("_", " "), _spell(name, value)


def _spell(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {'not installed' if item is None else item}" for key, item in value.items()) or "none"
    return size(value) if name.endswith("_bytes") else str(value)


def texts(run: Run) -> list[tuple[str, str]]:
    """What was scored, by hash: the same hashes are the same tokens."""
    return list(dict.fromkeys(_text(run)))


def _text(run: Run) -> Iterator[tuple[str, str]]:
    short = short_headings(run)
    for setting, cells in run.settings().items():
        for cell in cells:
            yield from _hashes(run, cell, short[setting])


def _hashes(run: Run, cell: Cell, where: str) -> Iterator[tuple[str, str]]:
    record = run.record(cell)
    if record is None or record.outcome != "ok":
        return
    text = record.text
    yield "tqbench", record.tqbench or "unknown version"
    yield "model", f"{record.model.get('name', cell.model)}: {record.model.get('weights', 'weights not described')}"
    if "sha256" in text:
        yield f"corpus {text.get('corpus', '')}", f"{text.get('origin', '')}, SHA-256 {text['sha256']}"
    if "ids_sha256" in text:
        yield f"token ids {where}".strip(), f"SHA-256 {text['ids_sha256']}"

"""What differs between two measurements, and what that means: fatal (they are not comparable), asked (how the schemes that were named
differ), warning (they are comparable, and this may be why they differ), harmless."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from tqbench.core.errors import ConfigError, unknown
from tqbench.core.record import Cell, Record
from tqbench.report.audit import IDENTITY
from tqbench.report.run import Run, bits_of
from tqbench.report.text import number, plain

Kind = Literal["fatal", "asked", "warning", "harmless"]
KINDS: tuple[Kind, ...] = ("fatal", "asked", "warning", "harmless")
ASKED = (
    "form",
    "depth",
    "samples",
    "digits",
    "seed",
    "chat",
    "prompts",
    "task",
    "limit",
    "fewshot",
)  # what decides which questions are asked
DRIFT = 1e-3  # of a baseline's ppl: more than rounding on another machine makes, so it is another model
FILE = re.compile(r"sha256 [0-9a-f]{16}")  # in what a record says of its weights
LONGEST = 60  # characters of a value


@dataclass(frozen=True)
class Knob:
    """A key that differs: the first run's value, and the other's."""

    key: str
    kind: Kind
    first: str
    other: str

    def __str__(self) -> str:
        return f"{self.key} {self.first} → {self.other}"


def differences(first: tuple[Run, Record], other: tuple[Run, Record], *, crossed: bool = False) -> list[Knob]:
    """Every key that differs, the gravest first. `crossed`: the schemes were asked for by name, so that they differ is the question."""
    (run, record), (run2, record2) = first, other
    found = [
        *_of("fatal", _fatal(record), _fatal(record2)),
        *(_of("asked", _bits(record) | _scheme(record), _bits(record2) | _scheme(record2)) if crossed else []),
        *([] if crossed else _of("fatal", _scheme(record), _scheme(record2))),
        *_baseline(record, record2),
        *_of("warning", _warnings(run, record), _warnings(run2, record2)),
        *_of("harmless", _harmless(run, record), _harmless(run2, record2)),
    ]
    return sorted(found, key=lambda knob: KINDS.index(knob.kind))


def distance(cell: Cell, other: Cell) -> int:
    """How many of the keys of two cells differ: which belong together."""
    mine, theirs = ({**vars(one), **one.params, "params": None, "scheme": None} for one in (cell, other))
    return sum(mine.get(key) != theirs.get(key) for key in mine.keys() | theirs.keys())


def _fatal(record: Record) -> dict[str, Any]:
    cell, text, params = record.cell, record.text, record.cell.params
    protocol, coder = text.get("protocol") or params.get("protocol"), record.storage.get("coder", {})
    return {
        "task": cell.task,
        **{f"model {key}": record.model.get(key) for key in IDENTITY if key not in ("dtype", "weights")},
        "model weights": weights(record),
        "dtype": record.model.get("dtype", cell.dtype),
        "text": text.get("sha256"),
        "recipe": params.get("recipe"),
        **{key: params.get(key) for key in ("context", "stride", "new", *ASKED)},
        "lm-eval": record.harness.get("version"),
        "lm-eval tasks": record.harness.get("task_hashes"),
        "warm-up": params.get("warmup"),
        "protocol": protocol,
        **({"chunk": params.get("chunk")} if protocol == "deploy" else {}),  # there it is part of what is measured
        "entropy": coder.get("name", params.get("entropy")),
        "level": coder.get("level", params.get("level")),  # the one that ran: None is the coder's own
        "scored tokens": text.get("scored"),
        "token ids": text.get("ids_sha256"),
    }


def weights(record: Record) -> str | None:
    """Which they are: of a file that is named by its hash, the hash, however the rest is worded; how they are computed is `dtype`."""
    said = record.model.get("weights")
    return named[0] if said and (named := FILE.search(said)) else said


def _bits(record: Record) -> dict[str, Any]:
    """What the scheme made of its definition: bits per packed value."""
    return {f"bits per value of {side.upper()}": bits_of(record).get(f"bits_{side}") for side in "kv"}


def _scheme(record: Record) -> dict[str, Any]:
    """What the scheme does, by its definition and by what it learned from."""
    return {**_flat("scheme", record.cell.scheme or {}), **_flat("calibration", record.calibration)}


def _baseline(record: Record, record2: Record) -> list[Knob]:
    """The same model on the same tokens has the same perplexity, but for rounding."""
    bases = [one.metrics.get("base_ppl") or one.metrics.get("ppl") for one in (record, record2) if one.cell.task == "perplexity"]
    if len(bases) < 2 or not bases[0] or not bases[1] or record.text.get("ids_sha256") != record2.text.get("ids_sha256"):
        return []
    a, b = (base.value for base in bases if base)
    floors = [floor for one in (record, record2) if (floor := one.floors.get("instrument"))]
    if abs(a - b) <= max(floors, default=1e-6 * a):
        return []
    return [Knob("baseline ppl", "fatal" if abs(a - b) > DRIFT * a else "warning", number(a, 7), number(b, 7))]


def _warnings(run: Run, record: Record) -> dict[str, Any]:
    cell, here = record.cell, run.environment
    return {
        "kernel": cell.kernel,
        **{f"{op} form": record.kernels.get(op) for op in ("encode", "decode", "attend")},
        "chunk": cell.params.get("chunk"),
        "repetitions": cell.params.get("repetitions"),
        "backend": cell.backend,
        "device": cell.device,
        "machine": here.get("cpu"),
        "threads": record.timing.get("threads") or here.get("threads"),
        "system": here.get("system"),
        "python": here.get("python"),
        **{f"version of {name}": version for name, version in (here.get("versions") or {}).items()},
        "code": here.get("code") or f"not recorded, run {run.name}",
    }


def _harmless(run: Run, record: Record) -> dict[str, Any]:
    return {
        "suite": run.suite,
        "run": run.name,
        "command": run.command,
        "model's name": record.cell.model,
        "weights as described": record.model.get("weights"),
        "scheme's name": record.cell.label,
        "text's origin": record.text.get("origin"),
        "memory": run.environment.get("memory_bytes"),
        "tokens asked for": record.cell.params.get("tokens"),
    }


def _of(kind: Kind, first: dict[str, Any], other: dict[str, Any]) -> list[Knob]:
    keys = dict.fromkeys((*first, *other))
    return [Knob(key, kind, _short(first.get(key)), _short(other.get(key))) for key in keys if first.get(key) != other.get(key)]


def _flat(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Nested keys as one word each: `scheme k.bits`. A scheme's name says nothing of what it does."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if (name, key) != ("scheme", "name"):
            word = f"{name}{'.' if ' ' in name else ' '}{key}"
            found |= _flat(word, value) if isinstance(value, dict) else {word: value}
    return found


def _short(value: Any) -> str:
    if value is None:
        return "–"
    text = plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    if len(text) == 64 and all(c in "0123456789abcdef" for c in text):
        return text[:12]  # a hash
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def permitted(keys: list[str]) -> frozenset[str]:
    """Keys that may differ though they are fatal. Without the same token ids nothing can be subtracted."""
    known = [*(f"model {key}" for key in IDENTITY if key != "dtype"), "dtype", "protocol", "chunk", "scheme", "calibration", "baseline ppl"]
    known += ["entropy", "level"]
    if wrong := [key for key in keys if key not in known]:
        raise ConfigError([f"--allow: {unknown('key', key, known)}" for key in wrong])
    return frozenset(keys)


def stops(knob: Knob, allow: frozenset[str]) -> bool:
    """Whether this difference is a reason to refuse."""
    whole = knob.key.split(" ")[0] if knob.key.startswith(("scheme ", "calibration ")) else knob.key
    return knob.kind == "fatal" and whole not in allow

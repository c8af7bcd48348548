"""Cells and records: one point of a suite's grid, and what came of it. Both round-trip through JSON; unknown keys raise."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tqbench.core.errors import TqbenchError
from tqbench.core.files import seal, sha256_file, short_hash, write_json

SCHEMA = "tqbench.record/1"
Outcome = Literal["ok", "oom", "crashed", "timeout", "unsupported", "inactive", "altered", "failed"]
VOID: tuple[Outcome, ...] = ("inactive", "altered")  # what audits contradict: the scheme did not run as declared; the record was changed
FINAL: tuple[Outcome, ...] = ("ok",)  # measured once; the others are tried again
EDITED = "the record was changed after it was measured: its content does not fit its seal; run the suite again to measure the cell anew"


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `scheme` is plain data, or None for the baseline: the model's own cache."""

    model: str
    backend: str
    device: str
    dtype: str
    scheme: dict[str, Any] | None
    kernel: str
    task: str
    params: dict[str, Any]
    corpus: dict[str, Any]

    @property
    def label(self) -> str:
        """The scheme as tables print it."""
        if self.scheme is None:
            return "baseline"
        bypass = self.scheme.get("bypass")
        return f"{self.scheme['name']}[{bypass}]" if bypass else str(self.scheme["name"])

    @property
    def group(self) -> tuple[str, str, str, str]:
        """Cells of a group share a worker and the loaded weights."""
        return (self.model, self.backend, self.device, self.dtype)

    @property
    def setting(self) -> str:
        """Everything but the scheme, what belongs to it, and the kernel: cells of one setting are compared with each other."""
        data = dataclasses.asdict(self)
        del data["scheme"], data["kernel"]
        for own in ("calibration", "judging", "probes"):
            data["params"].pop(own, None)
        return short_hash(data)

    @property
    def key(self) -> str:
        """The folder's name: readable, with a hash of the whole cell."""
        context = f"-c{self.params['context']}" if "context" in self.params else ""
        readable = re.sub(r"[^A-Za-z0-9._]+", "-", f"{self.label}-{self.task}{context}").strip("-").lower()
        return f"{readable[:60]}-{short_hash(dataclasses.asdict(self), 8)}"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, where one could be computed."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; a figure without one is a point."""
        return (self.value if self.low is None else self.low), (self.value if self.high is None else self.high)


@dataclass(frozen=True)
class Record:
    """The result of a cell. Only an `ok` record has metrics."""

    cell: Cell
    outcome: Outcome
    reason: str | None = None
    seconds: float | None = None
    model: dict[str, Any] = field(default_factory=dict)  # ModelInfo
    text: dict[str, Any] = field(default_factory=dict)  # corpus and its hash, hash of the ids, recipe, windows, tokens scored
    metrics: dict[str, Estimate] = field(default_factory=dict)
    positions: list[dict[str, float]] = field(default_factory=list)  # the same by position in the window
    calibration: dict[str, Any] = field(default_factory=dict)  # the text that codecs learned from, and the hash of what they learned
    floors: dict[str, float | None] = field(default_factory=dict)  # `instrument` and `scheme`, in ppl
    coverage: float | None = None  # share of attended K and V that was packed
    coverage_sides: dict[str, float] = field(default_factory=dict)  # the same of K alone and of V alone; older records lack it
    ledger: dict[str, Any] = field(default_factory=dict)  # resident bytes and bits
    kernels: dict[str, Any] = field(default_factory=dict)  # which form of each operation ran, and why faster ones did not
    timing: dict[str, Any] = field(default_factory=dict)  # threads, repetitions, and whether others used the machine meanwhile
    stages: dict[str, Any] = field(default_factory=dict)  # seconds by stage of a step, of the model's own cache and of the scheme
    device: dict[str, Any] = field(default_factory=dict)  # what a step asks of torch and its device, and what a GPU did meanwhile
    storage: dict[str, Any] = field(
        default_factory=dict
    )  # bytes of a saved cache by part, and how well each layer agrees with the exact one
    layers: list[dict[str, Any]] = field(
        default_factory=list
    )  # per layer and side: what packing it alone costs; of the baseline, its traits
    prompts: list[dict[str, Any]] = field(default_factory=list)  # what was asked, by hash, and what came back, where a task asks
    harness: dict[str, Any] = field(default_factory=dict)  # what lm-evaluation-harness found, and of which version and tasks
    evidence: list[dict[str, Any]] = field(default_factory=list)  # SideEvidence per layer and side
    audits: list[str] = field(default_factory=list)  # what the evidence contradicts
    fingerprint: str | None = None  # hash of the per-token scores
    arrays: dict[str, str] = field(default_factory=dict)  # the hash of each .npy file beside the record
    peak_bytes: int | None = None  # of the process during the cell
    started: str | None = None
    tqbench: str | None = None
    seal: str | None = field(default=None, compare=False)  # hash of all the rest; records from before there were seals have none

    def audited(self, *found: str, altered: bool = False) -> Record:
        """With what audits found besides. What any audit contradicts is not a measurement: it becomes inactive, or altered if it was
        changed, and keeps no numbers."""
        audits = list(dict.fromkeys((*self.audits, *found)))
        if not audits:
            return self
        none: dict[str, Any] = {"metrics": {}, "positions": [], "floors": {}, "stages": {}, "device": {}, "storage": {}}
        none |= {"layers": [], "prompts": [], "harness": {}}
        outcome: Outcome = "altered" if altered or self.outcome == "altered" else "inactive"
        return dataclasses.replace(self, outcome=outcome, reason=audits[0], audits=audits, **none)

    def write(self, folder: Path) -> None:
        """Write `record.json` whole, sealed."""
        data = {"schema": SCHEMA, **dataclasses.asdict(self)}
        write_json(folder / "record.json", data | {"seal": seal(data)})

    @staticmethod
    def read(path: Path) -> Record:
        """Read and check a record. One that was changed after it was written, or whose arrays were, is altered."""
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise TqbenchError(f"{path}: not a readable record: {error}") from error
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise TqbenchError(f"{path}: this is not a {SCHEMA} file")
        edited = data.get("seal") is not None and data["seal"] != seal({"schema": SCHEMA, **data})
        try:
            cell = Cell(**data.pop("cell"))
            metrics = {name: Estimate(**value) for name, value in data.pop("metrics", {}).items()}
            record = Record(cell=cell, metrics=metrics, **data)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise TqbenchError(f"{path}: damaged record: {type(error).__name__}: {error}") from error
        if record.outcome not in get_args(Outcome):
            raise TqbenchError(f"{path}: unknown outcome {record.outcome!r}")
        if record.metrics and record.outcome != "ok":
            raise TqbenchError(f"{path}: outcome {record.outcome} carries metrics; a cell that did not pass has no numbers")
        changed = [*([EDITED] if edited else []), *_foreign(record.arrays, path.parent)]
        return record.audited(*changed, altered=bool(changed))


def _foreign(arrays: dict[str, str], folder: Path) -> list[str]:
    """Arrays that are there and are not those that were measured. Committed runs leave arrays out."""
    paths = {name: folder / f"{name}.npy" for name in arrays}
    return [
        f"{path.name} is not the file that was measured with this record; run the suite again to measure the cell anew"
        for name, path in paths.items()
        if path.exists() and sha256_file(path) != arrays[name]
    ]

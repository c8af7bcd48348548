"""A run as it lies on disk: what was planned, what came of it, and where."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqbench.core.codec import ITEMSIZE
from tqbench.core.errors import ConfigError, EditedError, TqbenchError
from tqbench.core.files import seal
from tqbench.core.gate import Gate
from tqbench.core.record import Cell, Record
from tqbench.importers.folder import find as imported
from tqbench.metrics.paired import ERROR
from tqbench.report.audit import settle

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = "tqbench.plan/1"
NOT_RUN = "not run"  # a planned cell without a record
UNSEALED = "the record has lost its seal, which every record of this run was written with: it was changed after it was measured"
ANEW = "run the suite again to write it anew"
BITS = ("bits", "bits_k", "bits_v", "bits_resident")
METRICS = (
    *("ppl", "base_ppl", "dppl", "ln_ratio"),
    *("kld", "kld_median", "kld_p90", "kld_p99", "kld_p999", "kld_worst_decile", "kld_max"),
    *("rms_dp", "top1", "top5", "recut"),
    *("kld_k", "kld_v", "kld_worst", "kld_sum", "kld_sum_k", "kld_sum_v", "kld_nothing"),
    *("decode_tps", "decode_ratio", "decode_ms_p50", "decode_ms_p90", "decode_ms_p99", "base_decode_tps"),
    *("captured_tps", "captured_ratio", "base_captured_tps"),
    *("prefill_tps", "prefill_ratio", "ttft_ms", "base_prefill_tps"),
    *("kv_bytes", "kv_bytes_per_token", "tokens_per_gib", "device_peak_allocated", "device_peak_reserved"),
    *("gpu_utilisation", "gpu_power_w", "joules_per_token", "base_joules_per_token", "host_waits"),
    *("step_ms", "marked_ms", "marks_cost", "explained"),
    *("stored_bytes", "stored_bytes_per_token", "stored_ratio", "entropy_gain"),
    *("save_ms", "load_ms", "save_mbps", "load_mbps", "ttft_load_ms", "ttft_recompute_ms", "ttft_gain"),
    *("needle_score", "needle_base", "needle_kept", "needle_first", "needle_nll", "needle_dnll", "needle_kld"),
    *("survival", "half_life", "forced_top1", "forced_kld", "forced_nll", "forced_dnll"),
    *("eval_score", "eval_base", "eval_delta", "eval_same", "eval_dnll", "eval_active"),
    *(f"{name}_{side}_{end}" for side in ("k", "v") for name, end in (("cos", "min"), ("cos", "p01"), ("err", "p99"), ("err", "max"))),
)


@dataclass(frozen=True)
class Run:
    """One run: its plan, and the records that exist, in the order of the plan."""

    folder: Path
    suite: str
    name: str
    command: str
    cells: tuple[Cell, ...]
    records: tuple[Record, ...]
    gates: tuple[Gate, ...]
    environment: dict[str, Any]
    source: str = ""  # the suite's file; empty in runs that are older than this
    lines: dict[Gate, int] = field(default_factory=dict)  # where its gates stand
    dropped: dict[str, str] = field(default_factory=dict)  # cells that a budget left out, by key, and why

    @property
    def title(self) -> str:
        """Its last two folders: the suite and the run, or where a committed run lies."""
        return f"{self.folder.absolute().parent.name}/{self.folder.absolute().name}"

    def record(self, cell: Cell) -> Record | None:
        """What came of a cell."""
        return next((record for record in self.records if record.cell == cell), None)

    def outcome(self, cell: Cell) -> str:
        """Its outcome, or that it has none."""
        record = self.record(cell)
        return record.outcome if record else NOT_RUN

    def only(self, cells: Iterable[Cell]) -> Run:
        """The part of a run that concerns these cells."""
        kept = {cell.key for cell in cells}
        mine = tuple(cell for cell in self.cells if cell.key in kept)
        gates = tuple(gate for gate in self.gates if any(cell.scheme and gate.covers(cell.label) for cell in mine))
        return replace(self, cells=mine, records=tuple(r for r in self.records if r.cell.key in kept), gates=gates)

    def settings(self) -> dict[str, list[Cell]]:
        """The cells that are compared with each other, in the order of the plan."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.setting, []).append(cell)
        return found

    def baseline(self, cell: Cell) -> Record | None:
        """The record of the model's own cache in the same setting, if it has numbers."""
        return next((r for r in self.records if r.cell.scheme is None and r.cell.setting == cell.setting and r.outcome == "ok"), None)

    def floor(self, record: Record) -> float | None:
        """The difference in ppl below which nothing is seen: the larger of the instrument's and the scheme's own."""
        base = self.baseline(record.cell)
        known = [record.floors.get("scheme"), record.floors.get("instrument"), base.floors.get("instrument") if base else None]
        return max((floor for floor in known if floor is not None), default=None)

    def rows(self) -> list[dict[str, Any]]:
        """Every planned cell as one flat row; figures are None unless the cell is ok."""
        return [self._row(cell) for cell in self.cells]

    def frame(self) -> DataFrame:
        """The rows as a pandas table."""
        import pandas as pd

        frame = pd.DataFrame(self.rows())
        return frame.astype(dict.fromkeys((name for name in (*_figures(None, None), *_levels(None)) if name in frame), float))

    def _row(self, cell: Cell) -> dict[str, Any]:
        record = self.record(cell)
        ok = record if record and record.outcome == "ok" else None
        return {
            "model": cell.model,
            "backend": cell.backend,
            "device": cell.device,
            "dtype": cell.dtype,
            "scheme": cell.label,
            "kernel": cell.kernel,
            "task": cell.task,
            "corpus": cell.corpus.get("name"),
            "recipe": cell.params.get("recipe"),
            "context": cell.params.get("context"),
            "outcome": self.outcome(cell),
            "reason": record.reason if record else self.dropped.get(cell.key),
            **_figures(ok, self.floor(ok) if ok else None),
            **_levels(ok),
            "disturbed": ok.timing.get("disturbed") if ok else None,
            **{op: ok.kernels.get(op) if ok else None for op in ("encode", "decode", "attend")},
            "cell": cell.key,
            "fingerprint": ok.fingerprint if ok else None,
        }


def _figures(record: Record | None, floor: float | None) -> dict[str, float | None]:
    """The columns that hold numbers."""
    bits = bits_of(record) if record else {}
    found: dict[str, float | None] = {
        "scored": record.text.get("scored") if record else None,
        **{name: bits.get(name) for name in BITS},
        "bytes_per_token": record.ledger.get("bytes_per_token") if record else None,
        "coverage": record.coverage if record else None,
    }
    for name in METRICS:
        estimate = record.metrics.get(name) if record else None
        found[name] = estimate.value if estimate else None
        found[f"{name}_low"] = estimate.low if estimate else None
        found[f"{name}_high"] = estimate.high if estimate else None
    return {**found, "floor": floor}


def _levels(record: Record | None) -> dict[str, float | None]:
    """Of the intervals in a row, and of those that tables show and gates judge: of what was looked at while it grew, wider ones."""
    share = record.text.get("look", {}).get("share", 1.0) if record else 1.0
    return {"level": 1 - ERROR if record else None, "level_judged": 1 - share * ERROR if record else None}


def bits_of(record: Record) -> dict[str, float]:
    """Bits per value of K, of V and in the mean; the baseline's are those of the model's dtype."""
    if record.cell.scheme is not None:
        return {name: bits for name in BITS if (bits := record.ledger.get(name)) is not None}
    size = ITEMSIZE.get(record.model.get("dtype", record.cell.dtype))
    return dict.fromkeys(BITS, 8.0 * size) if size else {}


def load(folder: Path) -> Run:
    """Read a run folder. What the records contradict, each for itself or together, has no numbers; where the plan is not the one that was
    written, or does not list all that was measured, nothing is read: what it leaves out might be what failed."""
    plan = _read(folder / "plan.json")
    if plan.get("schema") != SCHEMA:
        raise TqbenchError(f"{folder / 'plan.json'}: this is not a {SCHEMA} file")
    try:
        cells = tuple(Cell(**data) for data in plan["cells"])
        gates = tuple(Gate.of(data) for data in plan["gates"])
        suite, name, command = (str(plan[key]) for key in ("suite", "run", "command"))
        lines = dict(zip(gates, map(int, plan.get("lines") or ()), strict=False))
    except (KeyError, TypeError, ValueError) as error:
        raise TqbenchError(f"{folder / 'plan.json'}: {error}") from error
    machine = folder / "environment.json"
    environment = _read(machine) if machine.exists() else {}
    found = [record for cell in cells if (record := _record(folder, cell))]
    _check(folder, plan, {cell.key for cell in cells}, sealed=any(record.seal for record in found))
    if plan.get("sealed"):
        found = [record if record.seal else record.audited(UNSEALED, altered=True) for record in found]
    return Run(
        folder,
        suite,
        name,
        command,
        cells,
        tuple(settle(found)),
        gates,
        environment,
        source=str(plan.get("source") or ""),
        lines=lines,
        dropped=dict(plan.get("dropped") or {}),
    )


def _check(folder: Path, plan: dict[str, Any], keys: set[str], *, sealed: bool) -> None:
    """Whether the plan is the one that was written. Runs from before there were seals have none at all."""
    path, written = folder / "plan.json", plan.get("seal")
    if written is None and (sealed or plan.get("sealed")):
        raise EditedError(f"{path}: the plan has no seal, the records have: it was changed after it was written; {ANEW}")
    if written is not None and written != seal(plan):
        raise EditedError(f"{path}: the plan was changed after it was written: its content does not fit its seal; {ANEW}")
    stray = sorted(record.parent.name for record in folder.glob("cells/*/record.json") if record.parent.name not in keys)
    if stray:
        raise EditedError(f"{path}: the plan does not list what lies in cells/: {', '.join(stray)}; {ANEW}, or take that away")


def _record(folder: Path, cell: Cell) -> Record | None:
    path = folder / "cells" / cell.key / "record.json"
    if not path.exists():
        return None
    record = Record.read(path)
    if record.cell != cell:
        raise TqbenchError(f"{path}: this record belongs to another cell than the plan's")
    return record


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TqbenchError(f"{path}: not readable: {error}") from error
    if not isinstance(data, dict):
        raise TqbenchError(f"{path}: not a JSON object")
    return data


def find(ref: str, results: Path = Path("results")) -> Path:
    """The run folder meant by a folder, a record, or a suite's name (its latest run)."""
    for path in (Path(ref), results / ref):
        for folder in (path, *path.parents[:3]):  # a record lies three levels inside its run
            if path.exists() and (folder / "plan.json").is_file():
                return folder
        if runs := _runs(path):
            return _latest(ref, runs)
    if imported(ref, results):
        raise ConfigError(
            f"{ref!r} was measured by other tools: `tqbench report` shows it, nothing is compared with it and no gate judges it"
        )
    known = sorted(folder.name for folder in results.iterdir() if _runs(folder)) if results.is_dir() else []
    exists = "; ".join([*_directly(ref, results), *([f"it has: {', '.join(known)}"] if known else [])]) or "it has no runs yet"
    raise ConfigError(f"no run is called {ref!r}: give a run's folder, a record.json, or a suite with runs in {results} ({exists})")


def _directly(ref: str, results: Path) -> list[str]:
    """Where runs lie in `results` itself, in no suite's folder, as committed ones do: how to name one, best one of the suite."""
    runs = _runs(results)
    meant = [run for run in runs if _read(run / "plan.json").get("suite") == ref]
    return [f"runs lie in it directly: give one of them, as {(meant or runs)[-1].name}"] if runs else []


def taken(ref: str, run: Run, results: Path = Path("results")) -> str | None:
    """What a suite's name left open: which of several runs it stands for, and whether that one is partial. None where nothing was."""
    if run.folder.parent not in (Path(ref), results / ref):
        return None  # the run itself was named
    others = [folder for folder in _runs(run.folder.parent) if folder != run.folder]
    tried = sum(run.record(cell) is not None for cell in run.cells)
    partial = f" is partial, {tried} of {len(run.cells)} cells were run" if tried < len(run.cells) else ""
    if others:
        which = f"{run.folder} is taken, the newest of {len(others) + 1} runs{f', and{partial}' if partial else ''}"
        return f"{ref}: {which}; for another give its folder, as {others[-1]}"
    return f"{ref}: {run.folder}{partial}" if partial else None


def _latest(ref: str, runs: list[Path]) -> Path:
    """The latest of a suite's runs. A folder under another name than its runs' suite gathers them, and none of them is meant."""
    latest = runs[-1]
    if _read(latest / "plan.json").get("suite") not in (latest.parent.name, None):
        raise ConfigError(f"{ref!r} is no suite but a folder of runs; name one of them: {', '.join(map(str, runs))}")
    return latest


def _runs(folder: Path) -> list[Path]:
    """The runs of a suite's folder, oldest first."""
    plans = sorted(folder.glob("*/plan.json"), key=lambda plan: (plan.stat().st_mtime_ns, plan.parent.name))
    return [plan.parent for plan in plans]

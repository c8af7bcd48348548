"""Runs made of records, without a model."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from typing import Any

import pytest

from tqbench.core.files import seal
from tqbench.core.record import Cell, Estimate, Outcome, Record
from tqbench.report.run import Run, load

MODEL = {
    "name": "tiny",
    "architecture": "llama",
    "layers": 4,
    "kv_layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "vocab": 50000,
    "max_positions": 4096,
    "dtype": "float32",
    "device": "cpu",
    "weights": "random",
    "bos_token": None,
}
TEXT = {
    "corpus": "python-docs",
    "origin": "a test",
    "sha256": "5e" * 32,
    "ids_sha256": "1d" * 32,
    "recipe": "stream",
    "protocol": "strict",
    "windows": 64,
    "scored": 4000,
}


class Factory:
    """Cells and records that look like measured ones."""

    @staticmethod
    def cell(scheme: str | dict[str, Any] | None = "q8_0", context: int = 512, **other: Any) -> Cell:
        """A cell of perplexity, unless `task` and `params` say otherwise."""
        data = {"name": scheme, "k": {"codec": "block"}, "v": {"codec": "block"}} if isinstance(scheme, str) else scheme
        params = {"recipe": "stream", "context": context, "tokens": 4096, "warmup": 64, "chunk": 256}
        plain = {"model": "tiny", "backend": "transformers", "device": "cpu", "dtype": "float32", "kernel": "auto", "task": "perplexity"}
        return Cell(**{**plain, "scheme": data, "params": params, "corpus": {"name": "python-docs"}, **other})

    @staticmethod
    def baseline(context: int = 512, ppl: float = 20.0, **other: Any) -> Record:
        metrics = {"ppl": Estimate(ppl, 0.9 * ppl, 1.1 * ppl)}
        floors = {"instrument": 0.001}
        return Record(Factory.cell(None, context, **other), "ok", seconds=1.5, model=MODEL, text=TEXT, metrics=metrics, floors=floors)

    @staticmethod
    def record(
        cell: Cell, bits: tuple[float, float] = (8.5, 8.5), coverage: float = 1.0, text: dict[str, Any] = TEXT, **metrics: Estimate
    ) -> Record:
        """A measured scheme; metrics in the keywords replace the usual ones."""
        usual = {
            "ppl": Estimate(20.123456, 18.0, 22.0),
            "base_ppl": Estimate(20.0, 18.0, 22.0),
            "dppl": Estimate(0.123456, 0.101, 0.147),
            "ln_ratio": Estimate(0.006154, 0.005, 0.007),
            "kld": Estimate(0.01234, 0.0119, 0.0128),
            "kld_p99": Estimate(0.0987, 0.08, 0.12),
            "kld_max": Estimate(0.777),
            "top1": Estimate(0.9512, 0.945, 0.957),
            "top5": Estimate(0.9912, 0.985, 0.997),
        }
        found = {**usual, **metrics}
        base, ppl = found["base_ppl"].value, found["base_ppl"].value + found["dppl"].value
        follows = {"ppl": ppl, "ln_ratio": log(ppl / base) if ppl > 0 else 0.0}  # as audits want it
        found |= {name: dataclasses.replace(found[name], value=value) for name, value in follows.items() if name not in metrics}
        packed = 16384
        evidence = [
            {"layer": layer, "side": side, "codec": "block", "order": "native", "tokens": 512, "tokens_packed": 512, "tokens_declared": 512}
            | {"bytes_payload": packed // 10, "bytes_metadata": packed // 90, "bytes_declared": packed // 10 + packed // 90}
            | {"bytes_exact": 0, "bytes_slack": 0, "attended": 1000, "attended_packed": int(1000 * coverage), "error": 0.00042}
            | {"encode": "reference", "decode": "native", "attend": "torch", "passed_over": {}, "entered": {"attend": 1}, "lossless": False}
            for layer in range(4)
            for side in "kv"
        ]
        ledger = {"payload": packed, "metadata": 1024, "declared": packed + 1024, "exact": 256, "slack": 512, "tokens": 512}
        ledger |= {"bytes_per_token": 34.5, "bits_k": bits[0], "bits_v": bits[1], "bits": sum(bits) / 2, "bits_resident": sum(bits) / 2}
        return Record(
            cell,
            "ok",
            seconds=3.25,
            model=MODEL,
            text=text,
            metrics=found,
            positions=[{"from": 64, "to": 127, "tokens": 512, "dnll": 0.00321, "kld": 0.0111}],
            floors={"scheme": 0.01, "instrument": 0.001},
            coverage=coverage,
            ledger=ledger,
            kernels={"encode": "reference", "decode": "native", "attend": "torch", "passed_over": {}},
            evidence=evidence,
            fingerprint="f1" * 32,
            peak_bytes=123456789,
            tqbench="0.1.0",
        )

    @staticmethod
    def speed(cell: Cell, *, disturbed: bool = False, **metrics: Estimate) -> Record:
        """A cell of decode, prefill or memory, with figures of its task."""
        usual = {
            "decode": {"decode_tps": Estimate(12.5, 12.0, 13.0), "decode_ratio": Estimate(0.75, 0.73, 0.77)}
            | {f"decode_ms_p{q}": Estimate(80.0 + q / 10, 79.0, 91.0) for q in (50, 90, 99)},
            "prefill": {"prefill_tps": Estimate(321.0), "prefill_ratio": Estimate(0.8), "ttft_ms": Estimate(1595.0)},
            "memory": {"kv_bytes": Estimate(6e6), "kv_bytes_per_token": Estimate(12240.0), "tokens_per_gib": Estimate(87724.0)},
        }[cell.task]
        timing = {"repetitions": 3, "rounds": 6, "foreign_cores": 0.01, "disturbed": disturbed, "threads": "2", "waiting": "passive"}
        spent = {"whole": 0.9, "stages": {"model": 0.5, "append": 0.02, "encode": 0.03, "attend": 0.2, "decode": 0.1}}
        return dataclasses.replace(
            Factory.record(cell) if cell.scheme else Factory.baseline(),
            cell=cell,
            metrics={**usual, **metrics},
            positions=[],
            text={key: TEXT[key] for key in ("corpus", "origin", "sha256", "ids_sha256", "protocol")},
            timing=timing if cell.task != "memory" else {},
            stages={"moves": 10, "cell": spent} if cell.task != "memory" else {},
        )

    @staticmethod
    def stored(cell: Cell, *, disturbed: bool = False, **metrics: Estimate) -> Record:
        """A cell of storage."""
        figures = {"stored_bytes": 5_000_000.0, "stored_bytes_per_token": 4882.8125, "stored_ratio": 4.72, "entropy_gain": 1.087}
        figures |= {
            "save_ms": 210.0,
            "load_ms": 95.0,
            "save_mbps": 112.0,
            "load_mbps": 248.0,
            "ttft_load_ms": 160.0,
            "ttft_recompute_ms": 2480.0,
        }
        figures |= {"ttft_gain": 15.5, "cos_k_min": 0.97123, "cos_k_p01": 0.99312, "cos_v_min": 0.96321, "cos_v_p01": 0.98765}
        save = {"whole": 0.2, "stages": {"encode": 0.05, "gather": 0.001, "entropy": 0.12, "write": 0.02}, "disturbed": disturbed}
        load = {"whole": 0.15, "stages": {"read": 0.003, "entropy": 0.08, "restore": 0.01, "model": 0.05}}
        parts = {"payload": 4_500_000, "metadata": 400_000, "sinks": 0, "window": 80_000, "exact": 0}
        agreement = [
            {"layer": i, "side": s, "cos_min": 0.9 + i / 100, "cos_p01": 0.99, "err_p99": 0.1, "err_max": 0.25}
            for i in range(4)
            for s in "kv"
        ]
        record = Factory.speed(dataclasses.replace(cell, task="memory"))
        return dataclasses.replace(
            record,
            cell=cell,
            metrics={**{name: Estimate(value) for name, value in figures.items()}, **metrics},
            timing={"repetitions": 3, "rounds": 3, "foreign_cores": 0.01, "disturbed": disturbed, "threads": "2", "waiting": "passive"},
            stages={"moves": 1, "save": save, "load": load},
            storage={
                "coder": {"name": "zstd", "level": 3, "package": "zstandard 0.25.0"},
                "before": {name: size + 400_000 for name, size in parts.items()},
                "after": parts,
                "overhead": 20_000,
                "file": 5_000_000,
                "fp16": 23_600_000,
                "tables": 65_536,
                "tables_over": 1 << 20,
                "tables_share": 64.0,
                "tokens": 1024,
                "equal_steps": 8,
                "agreement": agreement,
            },
        )

    @staticmethod
    def looked(**named: Any) -> Record:
        """The baseline of a cell of sensitivity: traits that grow from layer to layer, and of values do not."""
        about = {"norm_mean": 10.0, "norm_max": 20.0, "norm_spread": 0.1, "kurtosis": 3.0, "kurtosis_rotated": 2.9, "channel_max": 4.0}
        layers = [
            {"layer": i, "side": side, **{name: x * (1 + i * (side == "k")) for name, x in about.items()}}
            | ({"bias": 0.0} if side == "k" else {})
            for i in range(8)
            for side in "kv"
        ]
        base = Factory.baseline()
        metrics = {**base.metrics, "kld_nothing": Estimate(1e-11, -1e-10, 1e-10)}
        return dataclasses.replace(base, cell=Factory.probed_cell(None), metrics=metrics, layers=layers, **named)

    @staticmethod
    def probed_cell(scheme: str | None) -> Cell:
        """A cell of sensitivity."""
        own = {} if scheme is None else {"probes": "layers"}
        params = {"recipe": "stream", "protocol": "strict", "context": 512, "tokens": 1024, "chunk": 512, **own}
        return Factory.cell(scheme, task="sensitivity", params=params)

    @staticmethod
    def probed(scheme: str, *, rising: bool = True) -> Record:
        """Keys hurt more from layer to layer, or less; values hurt a tenth of the first."""
        layers = []
        for i in range(8):
            for side in "kv":
                kld = 1e-3 * (2.0 ** (i if rising else -i)) if side == "k" else 1e-4 * (1 + i % 3)
                spread = {"kld": kld, "kld_low": 0.8 * kld, "kld_high": 1.3 * kld, "dnll": kld, "dnll_low": -kld, "dnll_high": 3 * kld}
                layers.append({"layer": i, "side": side, **spread, "first": float(side == "k" and i == 7 * rising)})
                layers[-1] |= {"attended_packed": 9, "error": 0.02}
        sums = {f"kld_sum_{side}": sum(row["kld"] for row in layers if row["side"] == side) for side in "kv"}
        worst = max(row["kld"] for row in layers)
        figures = sums | {"kld_sum": sum(sums.values()), "kld_worst": worst, "kld": 0.2, "kld_k": 0.19, "kld_v": 0.001, "ln_ratio": 0.21}
        metrics = {name: Estimate(x, 0.9 * x, 1.2 * x) for name, x in figures.items()} | {"base_ppl": Estimate(20.0, 18.0, 22.0)}
        return dataclasses.replace(Factory.record(Factory.probed_cell(scheme)), metrics=metrics, layers=layers, positions=[], floors={})

    @staticmethod
    def broken(cell: Cell, outcome: Outcome = "oom", reason: str = "it did not fit") -> Record:
        return Record(cell, outcome, reason, seconds=9.75)

    @staticmethod
    def gate(schemes: str, metric: str = "dppl", limit: float = 0.2, **other: Any) -> dict[str, Any]:
        return {"schemes": [schemes], "metric": metric, "limit": limit, **other}

    @staticmethod
    def plan(folder: Path, data: dict[str, Any]) -> None:
        """Write a plan, sealed."""
        (folder / "plan.json").write_text(json.dumps({**data, "seal": seal(data)}))

    @staticmethod
    def folder(
        root: Path, records: Sequence[Record], gates: Sequence[dict[str, Any]] = (), unrun: Sequence[Cell] = (), **named: str
    ) -> Path:
        """A run folder below `root`: the cells of the records, then `unrun` cells that have none; `named`: its suite and run."""
        plan = {"schema": "tqbench.plan/1", "suite": "suite", "run": "run", "command": "tqbench run suite.yaml"} | named
        folder = root / "results" / plan["suite"] / plan["run"]
        for record in records:
            record.write(folder / "cells" / record.cell.key)
        cells = [dataclasses.asdict(cell) for cell in (*(record.cell for record in records), *unrun)]
        folder.mkdir(parents=True, exist_ok=True)
        Factory.plan(folder, {**plan, "cells": cells, "gates": list(gates)})
        (folder / "environment.json").write_text(json.dumps({"schema": "tqbench.environment/1", "cpu": "a cpu", "memory_bytes": 2**30}))
        return folder


@pytest.fixture(scope="session")
def make() -> Factory:
    return Factory()


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder."""
    return functools.partial(Factory.folder, tmp_path)


@pytest.fixture
def run_of(write_run: Callable[..., Path]) -> Callable[..., Run]:
    """The same, loaded."""
    return lambda *args, **kwargs: load(write_run(*args, **kwargs))

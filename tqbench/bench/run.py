"""One benchmark from its plan: the ceiling, then group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from tqbench.bench import ablation, attend, ceiling, convert, kvtc
from tqbench.bench.plan import Plan
from tqbench.bench.race import race
from tqbench.bench.result import Bench, Ceiling, Group, Row
from tqbench.core.errors import ConfigError
from tqbench.kernels import native, triton
from tqbench.measure import environment, memory

NEEDS = 10  # times the float32 cache: exact copies in three types, the schemes' stores, and what decoding takes meanwhile
READING = ("attend", "ablation")  # what only reads; the ceiling is one of reading, so others have no share of it
ENTRIES: dict[str, Any] = {"attend": attend, "ablation": ablation, "encode": convert, "decode": convert, "kvtc": kvtc}


def run(plan: Plan, note: Callable[[str], None] = lambda _: None) -> Bench:
    """Measure everything. `note` is told what is being done."""
    _fits(plan)
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads or before)  # the OpenMP runtime that the native library uses as well
    try:
        return _run(plan, torch.get_num_threads(), note)
    finally:
        torch.set_num_threads(before)


def _run(plan: Plan, threads: int, note: Callable[[str], None]) -> Bench:
    note("reading memory as fast as it goes")
    top, groups = ceiling.measure(threads, plan.device), list[Group]()
    try:
        for tokens in plan.tokens:
            group = _group(plan, tokens, lambda text, tokens=tokens: note(f"{tokens:,} tokens: {text}"))  # type: ignore[misc]
            top = ceiling.measure(threads, plan.device, top)
            groups.append(group)
    except KeyboardInterrupt:  # a benchmark that is cut off keeps what it has found
        if not groups:
            raise
    left = plan.tokens[len(groups) :]
    if left:
        words = f"interrupted: {' and '.join(f'{tokens:,}' for tokens in left)} tokens were not measured"
        groups[-1] = replace(groups[-1], notes=(*groups[-1].notes, words))
    return Bench(
        plan.op,
        str(plan.geometry),
        plan.geometry.architecture,
        getattr(ENTRIES[plan.op], "DATA", plan.data),
        _machine(plan, threads),
        top,
        _against(groups, top) if plan.op in READING else tuple(groups),
        {words: name.replace("{form}", plan.form) for words, name in ENTRIES[plan.op].COMPARISONS.items()},
        left,
    )


def _group(plan: Plan, tokens: int, note: Callable[[str], None]) -> Group:
    """Its caches are gone before those of the next are made."""
    group = race(tokens, ENTRIES[plan.op].contenders(plan, tokens, note), plan.rounds, note, plan.device)
    return replace(group, notes=tuple(_cached(group, plan.device)))


def _cached(group: Group, device: str) -> Iterator[str]:
    """Which rows had too few copies."""
    names = [
        row.name
        for row in group.rows
        if row.timing and row.bytes_moved and not ceiling.uncached(row.timing.copies * row.bytes_moved, device)
    ]
    if names:
        size = f"{ceiling.cache_bytes(device) / 2**20:.0f} MiB"
        yield f"all copies together are less than twice the processor's cache of {size}, and may lie there, in {', '.join(names)}"


def _against(groups: list[Group], top: Ceiling) -> tuple[Group, ...]:
    """All rows against the same ceiling: the best that was seen."""
    return tuple(replace(group, rows=tuple(_row(row, top) for row in group.rows)) for group in groups)


def _row(row: Row, top: Ceiling) -> Row:
    if row.timing is None or not top.gbps or not row.bytes_moved:
        return row
    return replace(row, limit_ms=row.bytes_moved / 1e6 / top.gbps, timing=replace(row.timing, share=row.timing.gbps / top.gbps))


def _machine(plan: Plan, threads: int) -> dict[str, object]:
    isa = None if native.missing() else native.isa()
    about = {**environment.describe(), "threads": threads, "isa": isa, "last_level_cache_bytes": environment.last_level_cache()}
    return about if plan.device == "cpu" else about | {"device": triton.about(plan.device)}


def _fits(plan: Plan) -> None:
    """Refuse before the first minute what would not fit, or has nowhere to run."""
    if plan.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"--device {plan.device}: torch {torch.__version__} finds no such device here")
    g, free = plan.geometry, memory.available()
    needed = NEEDS * getattr(ENTRIES[plan.op], "LAYERS", 1) * 2 * 4 * g.batch * g.kv_heads * g.head_dim * max(plan.tokens)
    if needed > free:
        raise ConfigError(
            f"--tokens {max(plan.tokens):,}: about {needed / 1e9:.0f} GB of memory would be needed, {free / 1e9:.0f} GB are free"
        )

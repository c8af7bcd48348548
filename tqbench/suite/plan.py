"""A suite -> the cells that will be measured, and what they cost."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tqbench.core import registry
from tqbench.core.errors import ConfigError
from tqbench.core.files import sha256_file, short_hash
from tqbench.core.gate import Gate, matches
from tqbench.core.record import Cell
from tqbench.core.scheme import Scheme
from tqbench.kernels import native
from tqbench.measure import environment
from tqbench.models import resolve
from tqbench.suite.cost import Cost, Size, cost, startup
from tqbench.suite.history import NOTHING, History
from tqbench.suite.schema import LmEval, Perplexity, Sensitivity, Suite, Task, UntilDecided


@dataclass(frozen=True)
class Plan:
    """What will be measured, in order. `prices` are what the `cells` cost, one by one, whatever else is measured."""

    suite: str
    root: Path
    cells: tuple[Cell, ...]
    prices: tuple[Cost, ...]
    gates: tuple[Gate, ...]
    timeout: float
    trust_remote_code: bool
    only: frozenset[str] | None  # keys of the cells that `-k` leaves to be measured; None is all
    content: str  # hash of all cells of the suite, also of those that are not to be measured, and of the files they read
    priority: tuple[str, ...] = ()  # patterns, the most wanted first
    startups: Mapping[tuple[str, ...], float] = field(default_factory=dict)  # seconds until a group's worker measures
    limits: Mapping[str, str] = field(default_factory=dict)  # `budget` and `memory`, as the user wrote them
    dropped: Mapping[str, str] = field(default_factory=dict)  # cells that do not fit these, by key, and why
    done: frozenset[str] = frozenset()  # keys of the cells that need not be measured again
    source: str = ""  # the suite's file as it was named, and in it
    lines: tuple[int, ...] = ()  # the line of each gate
    hub: tuple[str, ...] = ()  # models that the hub has; which commit is known once they are here

    def identity(self) -> str:
        """The run's name: a hash of everything that decides its digits, so that the same command continues the same run."""
        revisions = {"revisions": [resolve.hub_commit(name) for name in self.hub]} if self.hub else {}
        return short_hash({"content": self.content, "numerics": environment.numerics(), "sources": self.code(), **revisions})

    @staticmethod
    def code() -> str:
        """The hash of the code that computes digits here, outside packages and the native library included."""
        library = native.path()
        return environment.sources([*registry.outside(), *([library] if library else [])])

    @property
    def chosen(self) -> list[Cell]:
        """The cells to be measured."""
        return [cell for cell in self.asked if cell.key not in self.dropped]

    @property
    def asked(self) -> list[Cell]:
        """The cells that `-k` leaves."""
        return [cell for cell in self.cells if self.only is None or cell.key in self.only]

    def startup(self, cells: Iterable[Cell]) -> float:
        """Seconds until workers have loaded the models of these cells."""
        return sum(self.startups.get(group, 0.0) for group in {cell.group for cell in cells})

    def cost(self, cell: Cell) -> Cost:
        """The guess for a cell, the baseline's pass beside it included if it is the one that brings that."""
        price = self.prices[self.cells.index(cell)]
        beside = price.beside if cell in self._first else 0.0
        return dataclasses.replace(price, seconds=None if price.seconds is None else price.seconds + beside, beside=0.0)

    @property
    def costs(self) -> tuple[Cost, ...]:
        """The guesses for all cells."""
        return tuple(self.cost(cell) for cell in self.cells)

    @cached_property
    def _first(self) -> list[Cell]:
        """Of each setting the scheme that will be measured first: neither what is left out nor what cannot run brings the baseline."""
        found: dict[str, Cell] = {}
        supported = {cell.key for cell, price in zip(self.cells, self.prices, strict=True) if not price.unsupported}
        for cell in self.chosen:
            if cell.scheme is not None and cell.key in supported - self.done:
                found.setdefault(cell.setting, cell)
        return list(found.values())

    def tokens(self, cell: Cell) -> int:
        """How many tokens a cell runs through the model."""
        return self.prices[self.cells.index(cell)].tokens


def plan(suite: Suite, history: History = NOTHING) -> Plan:
    """All cells of a suite: per model, backend, task and context first the baseline, then the schemes in their order."""
    settings, root = suite.settings, suite.root
    every = tuple(cells(suite))
    sizes = {model: Size.of(resolve.config(model, root)) for model in settings.model}
    return Plan(
        settings.name,
        root,
        every,
        tuple(_prices(every, sizes, root, history)),
        suite.gates,
        settings.timeout,
        settings.trust_remote_code,
        None,
        short_hash([[dataclasses.asdict(cell) for cell in every], _files(suite), *(["remote code"] if settings.trust_remote_code else [])]),
        priority=settings.priority,
        startups={cell.group: startup(sizes[cell.model], cell.dtype) for cell in every},
        source=suite.source,
        lines=suite.lines,
        hub=tuple(model for model in settings.model if resolve.on_hub(model, root)),
    )


def _prices(every: Sequence[Cell], sizes: dict[str, Size | None], root: Path, history: History) -> Iterator[Cost]:
    """What each cell costs; bringing a model here is the matter of the first cell that needs it."""
    models: set[str] = set()
    for cell in every:
        size = sizes[cell.model]
        found = history.cost(cell, size, cost(cell, size))
        if cell.model not in models:
            models.add(cell.model)
            found = _fetched(found, resolve.needs(cell.model, root), size)
        yield found


def _fetched(found: Cost, needs: resolve.Needs, size: Size | None) -> Cost:
    """The cost with that of bringing the model here."""
    disk = found.disk_bytes
    if disk is not None and size:
        disk += (needs.download_bytes or 0) + (size.weights("float32") if needs.conversion else 0)
    return dataclasses.replace(found, download_bytes=needs.download_bytes, disk_bytes=disk)


def select(plans: Sequence[Plan], only: str | None) -> list[Plan]:
    """What `-k` leaves: cells whose label or key matches one of the comma-separated patterns, with the baselines they need."""
    if only is None:
        return list(plans)
    patterns = [pattern.strip() for pattern in only.split(",") if pattern.strip()]
    everything = [cell for plan in plans for cell in plan.cells]
    labels = dict.fromkeys(cell.label for cell in everything)
    idle = [pattern for pattern in patterns if not any(_wanted(cell, [pattern]) for cell in everything)]
    if idle or not patterns:
        raise ConfigError(
            f"-k: {', '.join(map(repr, idle)) or repr(only)} selects nothing; "
            f"give labels or patterns such as '*turbo*', apart by commas (labels: {', '.join(labels)})"
        )
    return [left for plan in plans if (left := _left(plan, patterns)).chosen]


def cells(suite: Suite) -> Iterator[Cell]:
    """The grid, in the order in which it is measured."""
    settings = suite.settings
    groups = itertools.product(settings.model, settings.backend, settings.device)
    for (model, backend, device), (task, params) in itertools.product(groups, list(_apart(suite.tasks))):
        for context, scheme in itertools.product(params.context, (None, *suite.schemes)):
            yield Cell(
                model=model,
                backend=backend,
                device=device,
                dtype=settings.dtype,
                scheme=scheme.to_data() if scheme else None,
                kernel=settings.kernel if scheme else "auto",
                task=task,
                params=params.params(context) | (_of_scheme(suite, params, scheme) if scheme else {}),
                corpus=dict(settings.corpus),
            )


def _apart(tasks: Iterable[tuple[str, Task]]) -> Iterator[tuple[str, Task]]:
    """The tasks, those of lm-evaluation-harness one by one."""
    for kind, task in tasks:
        yield from ((kind, one) for one in (task.each() if isinstance(task, LmEval) else [task]))


def _of_scheme(suite: Suite, task: Task, scheme: Scheme) -> dict[str, Any]:
    """Parameters that the baseline does not share: what the scheme learns from, and what its windows are to decide."""
    found: dict[str, Any] = {}
    if scheme.calibrated:
        found["calibration"] = dataclasses.asdict(suite.calibration)
    if isinstance(task, Sensitivity):
        found["probes"] = task.probes(scheme.label)
    if isinstance(task, Perplexity) and isinstance(task.tokens, UntilDecided):
        gates = [gate for gate in suite.gates if gate.covers(scheme.label) and gate.measured_by("perplexity")]
        found["judging"] = {"beside": _judgements(suite), "gates": [dataclasses.asdict(gate) for gate in gates]}
    return found


def _judgements(suite: Suite) -> int:
    """How many verdicts rest on intervals: each may err with its share alone."""
    cells = ((kind, scheme) for kind, task in _apart(suite.tasks) for _ in task.context for scheme in suite.schemes)
    each = sum(gate.covers(scheme.label) and gate.measured_by(kind) for kind, scheme in cells for gate in suite.gates)
    return each * len(suite.settings.model) * len(suite.settings.backend) * len(suite.settings.device)


def _files(suite: Suite) -> list[Any]:
    """What tells whether the local files of a suite are still the same. Other corpora and models are named by hash or commit."""
    texts = [suite.settings.corpus.get("path")]
    if any(scheme.calibrated for scheme in suite.schemes):
        texts.append(suite.calibration.corpus.get("path"))
    found: list[Any] = [sha256_file(suite.root / Path(text).expanduser()) for text in texts if text]
    for folder in [task.include_path for _, task in suite.tasks if isinstance(task, LmEval) and task.include_path]:
        paths = sorted(path for path in (suite.root / Path(folder).expanduser()).rglob("*") if path.is_file() and path.suffix != ".pyc")
        found += [[path.name, sha256_file(path)] for path in paths]
    for model in suite.settings.model:
        path = resolve.local(model, suite.root)
        parts = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        found += [[part.name, part.stat().st_size, part.stat().st_mtime_ns] for part in parts]
    return found


def _wanted(cell: Cell, patterns: Sequence[str]) -> bool:
    """As `-k` and `priority` mean it."""
    return any(matches(pattern, name) for pattern in patterns for name in (cell.label, cell.key))


def _left(plan: Plan, patterns: Sequence[str]) -> Plan:
    chosen = [cell for cell in plan.cells if _wanted(cell, patterns)]
    settings = {cell.setting for cell in chosen}
    return dataclasses.replace(plan, only=frozenset(cell.key for cell in plan.cells if cell in chosen or _needed(cell, settings)))


def _needed(cell: Cell, settings: set[str]) -> bool:
    return cell.scheme is None and cell.setting in settings

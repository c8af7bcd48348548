"""The same cells on several devices, side by side: speed and use, perplexity against the floors, a step by its operations, and from which
size of model on a device pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tqbench.core.record import Cell, Record
from tqbench.models import random
from tqbench.report import speed
from tqbench.report.column import Figure
from tqbench.report.details import Grid
from tqbench.report.run import Run
from tqbench.report.table import label
from tqbench.report.text import NONE, bounds, number, plain, value

BASELINE = "baseline"


@dataclass(frozen=True)
class Twins:
    """A cell on every device of its run: its record where it has numbers, else what came of it."""

    run: Run
    name: str
    cells: dict[str, Cell]

    def record(self, device: str) -> Record | None:
        """The record, if it has numbers."""
        found = self.run.record(self.cells[device]) if device in self.cells else None
        return found if found and found.outcome == "ok" else None

    def outcome(self, device: str) -> str:
        """What came of it."""
        return self.run.outcome(self.cells[device]) if device in self.cells else NONE

    @property
    def example(self) -> Cell:
        """One of the cells."""
        return next(iter(self.cells.values()))


@dataclass(frozen=True)
class Quantity:
    """What stands in a row: how it is written, and how two of them compare. `better`: `high`, `low`, or "" where a ratio says nothing."""

    words: str
    show: Callable[[Record], Figure | None]
    better: str = ""


def _metric(name: str, scale: float = 1.0) -> Callable[[Record], Figure | None]:
    def show(record: Record) -> Figure | None:
        found = record.metrics.get(name)
        if found is None:
            return None
        shown = number(scale * found.value) if scale != 1 else value(found, name)
        return Figure(shown, bounds(found, name) if scale == 1 else "", scale * found.value)

    return show


def _cores(record: Record) -> Figure | None:
    cores = record.timing.get("cores", {}).get("cell")
    return None if cores is None else Figure(f"{cores:.2f}", order=cores)


def _waits(record: Record) -> Figure | None:
    found = record.device.get("steps", {}).get("cell", {})
    waits = found.get("host_waits")
    return None if waits is None else Figure(number(waits), ", ".join(found.get("places", {})), waits)


def _attention(record: Record) -> Figure | None:
    forms = record.device.get("steps", {}).get("cell", {}).get("attention")
    return Figure(" + ".join(forms)) if forms else None


QUANTITIES: dict[str, tuple[Quantity, ...]] = {
    "perplexity": (Quantity("ppl", _metric("ppl")),),
    "prefill": (
        Quantity("tok/s", _metric("prefill_tps"), "high"),
        Quantity("first token ms", _metric("ttft_ms"), "low"),
        Quantity("torch's attention", _attention),
    ),
    "decode": (
        Quantity("tok/s", _metric("decode_tps"), "high"),
        Quantity("p50 ms", _metric("decode_ms_p50"), "low"),
        Quantity("cores busy", _cores),
        Quantity("GPU use %", _metric("gpu_utilisation", 100)),
        Quantity("GPU power W", _metric("gpu_power_w", 1)),
        Quantity("J/token of the GPU", _metric("joules_per_token", 1)),
        Quantity("waits for the device per token", _waits),
        Quantity("torch's attention", _attention),
    ),
    "breakdown": (Quantity("step ms", _metric("step_ms"), "low"), Quantity("in named operations %", _metric("explained", 100))),
}


def grids(run: Run) -> list[Grid]:
    """Nothing where there is one device."""
    devices = list(dict.fromkeys(cell.device for cell in run.cells))
    if len(devices) < 2:
        return []
    families: dict[tuple[str, ...], list[Twins]] = {}
    for one in _twins(run):
        cell = one.example
        families.setdefault((cell.model, cell.backend, cell.dtype, str(cell.corpus.get("name"))), []).append(one)
    found = []
    for where, twins in families.items():
        if not where[0].startswith(random.PREFIX):
            found += [_beside(run, " · ".join(where), twins, devices), *_operations(" · ".join(where), twins, devices)]
    return [*found, *_crossover(families, devices)]


def _twins(run: Run) -> list[Twins]:
    found: dict[str, Twins] = {}
    for cell in run.cells:
        same = found.setdefault(replace(cell, device="").key, Twins(run, label(run, cell), {}))
        same.cells[cell.device] = cell
    return list(found.values())


def _beside(run: Run, where: str, twins: Sequence[Twins], devices: Sequence[str]) -> Grid:
    rows = []
    for one in twins:
        for quantity in QUANTITIES.get(one.example.task, ()):
            known = [record for device in devices if (record := one.record(device))]
            if any(map(quantity.show, known)) or not known:
                shown = [_shown(one, quantity, device) for device in devices]
                title = f"{one.name} · {_what(one.example)} · {quantity.words}"
                rows.append((title, (*shown, *_against(run, one, quantity, devices))))
    first, *others = devices
    head = (*devices, *(f"{other} against {first}" for other in others))
    says = "the same cells on each device. Against: × as fast; of ppl the difference, held against the larger of the two floors."
    return Grid("Across devices", plain(f"{where}: {says}{_missing(twins, devices)}"), "cell", head, tuple(rows))


def _what(cell: Cell) -> str:
    return f"{cell.params['recipe']} {cell.params['context']}" if cell.task == "perplexity" else speed.heading(cell)


def _missing(twins: Sequence[Twins], devices: Sequence[str]) -> str:
    """Why there are no figures of a device, once."""
    reasons = dict.fromkeys(
        f" {device}: {record.outcome}, {record.reason}."
        for device in devices
        for one in twins
        if device in one.cells and (record := one.run.record(one.cells[device])) and record.outcome != "ok" and record.reason
    )
    return "".join(reasons)


def _shown(one: Twins, quantity: Quantity, device: str) -> Figure:
    record = one.record(device)
    return (quantity.show(record) or Figure(NONE)) if record else Figure(one.outcome(device))


def _against(run: Run, one: Twins, quantity: Quantity, devices: Sequence[str]) -> list[Figure]:
    first, *others = devices
    base = one.record(first)
    pairs = [(base, one.record(other)) for other in others]
    return [_compared(run, quantity, a, b) if a and b else Figure(NONE) for a, b in pairs]


def _compared(run: Run, quantity: Quantity, a: Record, b: Record) -> Figure:
    x, y = quantity.show(a), quantity.show(b)
    if not (x and y and x.order is not None and y.order is not None):
        return Figure(NONE)
    if quantity.words == "ppl":
        return _difference(y.order - x.order, [floor for floor in (run.floor(a), run.floor(b)) if floor is not None])
    if not quantity.better or not x.order or not y.order:
        return Figure(NONE)
    return _times(y.order / x.order if quantity.better == "high" else x.order / y.order)


def _times(ratio: float) -> Figure:
    return Figure(f"{number(ratio)}×", order=ratio)


def _difference(gap: float, floors: Sequence[float]) -> Figure:
    shown = f"{'+' if gap > 0 else ''}{number(gap, 2)}" if gap else "0"
    if not floors:
        return Figure(shown, "no floor was measured", gap)
    return Figure(shown, f"{'≤' if abs(gap) <= max(floors) else 'beyond the'} floor {number(max(floors), 2)}", gap)


def _operations(where: str, twins: Sequence[Twins], devices: Sequence[str]) -> list[Grid]:
    """A step by its operations, in milliseconds."""
    return [_step(where, one, devices) for one in twins if one.example.task == "breakdown"]


def _step(where: str, one: Twins, devices: Sequence[str]) -> Grid:
    spent = {device: speed.per_move(record, "cell") if (record := one.record(device)) else {} for device in devices}
    names = [name for name in speed.STAGES if any(name in own for own in spent.values())]
    rows = [(name, _row([spent[device].get(name) for device in devices], one, devices)) for name in names]
    whole = [sum(spent[device].values()) if spent[device] else None for device in devices]
    says = "; ".join(f"{name}: {speed.meaning(one.example, name)}" for name in names)
    caption = f"{where} · {one.name} · {_what(one.example)}: milliseconds of a step. {says}."
    caption += "".join(_marks(device, record) for device in devices if (record := one.record(device)))
    first, *others = devices
    head = (*devices, *(f"{other} against {first}" for other in others))
    return Grid("Operations", plain(caption + _missing([one], devices)), "operation", head, (*rows, ("whole", _row(whole, one, devices))))


def _marks(device: str, record: Record) -> str:
    """What the marks cost, and whether others used the machine."""
    cost = record.metrics.get("marks_cost")
    disturbed = ", and others used the machine meanwhile" if speed.disturbed_stages(record) else ""
    return f" On {device} a step with marks takes {1 + cost.value:.2f}× as long as one without{disturbed}." if cost else ""


def _row(milliseconds: Sequence[float | None], one: Twins, devices: Sequence[str]) -> tuple[Figure, ...]:
    shown = [
        Figure(number(ms, 2), order=ms) if ms is not None else Figure(NONE if one.record(device) else one.outcome(device))
        for ms, device in zip(milliseconds, devices, strict=True)
    ]
    base = milliseconds[0]
    return (*shown, *(_times(base / ms) if base and ms else Figure(NONE) for ms in milliseconds[1:]))


def _crossover(families: dict[tuple[str, ...], list[Twins]], devices: Sequence[str]) -> list[Grid]:
    """Decoding by the size of random models: where the second device begins to be faster than the first."""
    sizes: dict[str, list[Twins]] = {}
    for twins in families.values():
        for one in twins:
            cell = one.example
            if cell.model.startswith(random.PREFIX) and cell.task == "decode" and one.name == BASELINE:
                sizes.setdefault(f"{cell.backend} · {cell.dtype} · {speed.heading(cell)}", []).append(one)
    return [_by_size(where, sorted(found, key=_hidden), devices) for where, found in sizes.items()]


def _hidden(one: Twins) -> int:
    return int(random.config(one.example.model)["hidden_size"])


def _by_size(where: str, found: Sequence[Twins], devices: Sequence[str]) -> Grid:
    tokens = Quantity("tok/s", _metric("decode_tps"), "high")
    shown = [[_shown(one, tokens, device) for device in devices] for one in found]
    ratios = [[_ratio(figures[0], figure) for figure in figures[1:]] for figures in shown]
    first, *others = devices
    says = " ".join(
        f"{other}: {crossing([(_hidden(one), own[i]) for one, own in zip(found, ratios, strict=True)])}." for i, other in enumerate(others)
    )
    rows = tuple(
        (f"{_hidden(one)} channels, {random.config(one.example.model)['num_hidden_layers']} layers", (*figures, *map(_or_none, own)))
        for one, figures, own in zip(found, shown, ratios, strict=True)
    )
    caption = f"{where}: tok/s of random Llama models by their hidden size, the model's own cache. Faster than {first}? {says}"
    head = (*devices, *(f"{other} against {first}" for other in others))
    return Grid("Crossover", plain(caption + _missing(found, devices)), "model", head, rows)


def _ratio(base: Figure, other: Figure) -> float | None:
    return other.order / base.order if base.order and other.order else None


def _or_none(ratio: float | None) -> Figure:
    return Figure(NONE) if ratio is None else _times(ratio)


def crossing(ratios: Sequence[tuple[int, float | None]]) -> str:
    """From which size on a device is faster, in words; sizes ascend."""
    if any(ratio is None for _, ratio in ratios):
        return "not known, because there are no figures of it at every size"
    faster = [ratio is not None and ratio > 1 for _, ratio in ratios]
    if all(faster) or not any(faster):
        return "at every size measured" if all(faster) else "at no size measured"
    at = faster.index(True)
    if not all(faster[at:]):
        return "at some sizes and not at larger ones, so there is no single crossover"
    return f"from between {ratios[at - 1][0]} and {ratios[at][0]} channels on"

"""The same cells on two devices, side by side; without the second device, why there are no figures of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tqbench.core.record import Estimate, Record
from tqbench.report import devices, markdown, page, terminal
from tqbench.report.conclusion import conclude
from tqbench.report.details import Grid
from tqbench.report.run import Run

DECODE: dict[str, Any] = {"task": "decode", "params": {"context": 512, "new": 64, "repetitions": 3, "protocol": "strict"}}
STEP: dict[str, Any] = {"task": "breakdown", "params": {"context": 512, "new": 32, "repetitions": 3, "protocol": "strict"}}
ABSENT = "while loading the model: device 'cuda' is not here: no GPU with a driver is seen here"


def decoded(make: Any, where: str, tps: float, model: str = "tiny", scheme: str | None = None, **other: Any) -> Record:
    record = make.speed(make.cell(scheme, **DECODE, device=where, model=model), decode_tps=Estimate(tps))
    timing = record.timing | {"cores": {"own": 1.5, "cell": 1.75}}
    return dataclasses.replace(record, timing=timing, **other)


def gone(record: Record) -> Record:
    return Record(dataclasses.replace(record.cell, device="cuda"), "unsupported", ABSENT)


def rows(grid: Grid) -> dict[str, list[str]]:
    return {title: [" ".join((figure.text, figure.detail)).strip() for figure in figures] for title, figures in grid.rows}


def test_one_device_has_no_such_table(make: Any, run_of: Any) -> None:
    assert devices.grids(run_of([decoded(make, "cpu", 10.0)])) == []


def test_speed_use_and_waits_stand_side_by_side(make: Any, run_of: Any) -> None:
    on = {"steps": {"cell": {"tokens": 1, "attention": {"flash": 30}, "host_waits": 1.0, "places": {"session.py:9 x.item()": 1.0}}}}
    gpu = {"gpu_utilisation": Estimate(0.42), "joules_per_token": Estimate(0.25)}
    fast = decoded(make, "cuda", 50.0, device=on)
    fast = dataclasses.replace(fast, metrics=fast.metrics | gpu | {"decode_ms_p50": Estimate(20.0)})
    slow = decoded(make, "cpu", 10.0, device={"steps": {"cell": {"tokens": 1, "attention": {"flash (CPU)": 30}, "host_waits": None}}})
    slow = dataclasses.replace(slow, metrics=slow.metrics | {"decode_ms_p50": Estimate(100.0)})
    (grid,) = devices.grids(run_of([slow, fast]))
    assert grid.head == ("cpu", "cuda", "cuda against cpu")
    at = "baseline · tg64 @ d512 · "
    assert rows(grid) == {
        f"{at}tok/s": ["10.0", "50.0", "5.00×"],
        f"{at}p50 ms": ["100", "20.0", "5.00×"],
        f"{at}cores busy": ["1.75", "1.75", "–"],
        f"{at}GPU use %": ["–", "42.0", "–"],
        f"{at}J/token of the GPU": ["–", "0.250", "–"],
        f"{at}waits for the device per token": ["–", "1.00 session.py:9 x.item()", "–"],
        f"{at}torch's attention": ["flash (CPU)", "flash", "–"],
    }


@pytest.mark.parametrize(("ppl", "says"), [(20.004, "+0.0040 ≤ floor 0.010"), (20.4, "+0.40 beyond the floor 0.010")])
def test_perplexities_are_held_against_the_larger_floor(make: Any, run_of: Any, ppl: float, says: str) -> None:
    a, b = make.baseline(), make.baseline(ppl=ppl, device="cuda")
    a, b = (dataclasses.replace(one, floors={"instrument": floor}) for one, floor in ((a, 0.002), (b, 0.01)))
    (grid,) = devices.grids(run_of([a, b]))
    assert rows(grid)["baseline · stream 512 · ppl"][2] == says


def test_an_absent_device_has_a_column_and_its_reason(make: Any, run_of: Any) -> None:
    there = decoded(make, "cpu", 10.0)
    run = run_of([there, gone(there)])
    (grid,) = devices.grids(run)
    found = rows(grid)
    assert found["baseline · tg64 @ d512 · tok/s"] == ["10.0", "unsupported", "–"]
    assert not [title for title in found if "GPU" in title]  # no device has any of it
    assert grid.caption.endswith(f"cuda: unsupported, {ABSENT}.")
    _shown_everywhere(run, "Across devices")


def _shown_everywhere(run: Run, title: str) -> None:
    found = conclude(run)
    assert title in markdown.render(run, found)
    html = page.render(run, found, [])
    assert f"<strong>{title}</strong>" in html
    assert 'href="#devices-1"' in html
    assert any(title in str(part) for part in terminal.render(run))


def step(make: Any, device: str, times: float) -> Record:
    cell = make.cell(None, **STEP, device=device)
    spent = {"qkv": 0.2, "ffn": 0.5, "attend": 0.1, "model": 0.05}
    staged = {"whole": 1.0 * times, "stages": {name: x * times for name, x in spent.items()}, "disturbed": False}
    metrics = {
        "step_ms": Estimate(80.0 * times),
        "marked_ms": Estimate(100 * times),
        "marks_cost": Estimate(0.25),
        "explained": Estimate(0.8),
    }
    return dataclasses.replace(decoded(make, device, 1.0), cell=cell, metrics=metrics, stages={"moves": 10, "cell": staged})


def test_a_step_is_told_apart_on_both_and_adds_up(make: Any, run_of: Any) -> None:
    beside, operations = devices.grids(run_of([step(make, "cpu", 1.0), step(make, "cuda", 0.2)]))
    assert rows(beside)["baseline · step @ d512 · in named operations %"][:2] == ["80.0", "80.0"]
    found = rows(operations)
    assert list(found) == ["model", "qkv", "attend", "ffn", "unexplained", "whole"]
    assert found["ffn"] == ["50", "10", "5.00×"]
    assert found["unexplained"] == ["15", "3.0", "5.00×"]
    assert found["whole"] == ["100", "20", "5.00×"]
    assert "On cpu a step with marks takes 1.25× as long as one without. On cuda a step with marks takes 1.25×" in operations.caption
    assert "model: positions, masks, and the loop over layers;" in operations.caption


@pytest.mark.parametrize(
    ("cuda", "says"),
    [
        ((5, 20, 80), "from between 64 and 128 channels on"),
        ((20, 20, 20), "at every size measured"),
        ((1, 1, 1), "at no size measured"),
        ((20, 1, 20), "at some sizes and not at larger ones, so there is no single crossover"),
        ((None, 20, 20), "not known, because there are no figures of it at every size"),
    ],
)
def test_the_crossover_is_read_off_random_models_by_their_size(make: Any, run_of: Any, cuda: Any, says: str) -> None:
    names = ["random:256x4", "random:64x4", "random:128x4"]
    base = [decoded(make, "cpu", 10.0, name) for name in names]
    beside = [
        decoded(make, "cuda", float(tps), name) if tps else gone(one)
        for tps, name, one in zip(cuda[2:] + cuda[:2], names, base, strict=True)
    ]
    (grid,) = devices.grids(run_of([*base, *beside]))
    assert [title for title, _ in grid.rows] == [f"{hidden} channels, 4 layers" for hidden in (64, 128, 256)]
    assert f"cuda: {says}." in grid.caption

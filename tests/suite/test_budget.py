"""What limits leave of a suite: the most wanted cells that fit, with the baselines they need, and a reason for each of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tqbench.cli.plan import Wanted, show
from tqbench.core.errors import ConfigError
from tqbench.core.quantity import duration, read_duration, read_size, size
from tqbench.suite.budget import ALONE, Limits, trim
from tqbench.suite.load import load
from tqbench.suite.plan import Plan, plan, select

SUITE = """\
model: smollm2-135m-instruct-q4_1
corpus: python-docs
schemes: [q8_0, turbo4, turbo3]
tasks:
  - perplexity: {context: [512, 4k], tokens: 8k}
  - memory: {context: 512}
"""
CELL, BASE, START = 10.0, 4.0, 6.0  # seconds


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    """A plan whose schemes take 10 s and a GiB each, baselines 4 s, workers 6 s, and cells at 4k three GiB."""

    def make(more: str = "", text: str = SUITE) -> Plan:
        path = tmp_path / "suite.yaml"
        path.write_text(text + more)
        found = plan(load([path])[0])
        peaks = [(3 if cell.params["context"] == 4096 else 1) << 30 for cell in found.cells]
        costs = [
            dataclasses.replace(cost, seconds=CELL if cell.scheme else BASE, peak_bytes=peak)
            for cell, cost, peak in zip(found.cells, found.costs, peaks, strict=True)
        ]
        return dataclasses.replace(found, prices=tuple(costs), startups=dict.fromkeys(found.startups, START))

    return make


def kept(found: Plan) -> list[tuple[str, str, int]]:
    return [(cell.label, cell.task, cell.params["context"]) for cell in found.chosen]


def test_no_limit_leaves_everything(planned) -> None:
    (found,) = trim([planned()], Limits())
    assert found.chosen == list(found.cells)
    assert found.dropped == found.limits == {}


def test_the_budget_takes_the_order_of_the_suite_and_counts_worker_and_baseline(planned) -> None:
    (found,) = trim([planned()], Limits(budget=f"{START + BASE + 2 * CELL:g}s"))
    assert kept(found) == [(label, "perplexity", 512) for label in ("baseline", "q8_0", "turbo4")]
    assert found.limits == {"budget": "30s"}
    reasons = {
        (cell.label, cell.task, cell.params["context"]): found.dropped[cell.key] for cell in found.cells if cell.key in found.dropped
    }
    assert len(reasons) == len(found.cells) - 3
    assert reasons["turbo3", "perplexity", 512] == "it takes about 10 s, 0 s of the budget are left"
    assert reasons["q8_0", "memory", 512] == "it takes about 14 s with its baseline, 0 s of the budget are left"
    assert reasons["baseline", "memory", 512] == ALONE


def test_a_second_less_is_a_cell_less(planned) -> None:
    (found,) = trim([planned()], Limits(budget="29s"))
    assert kept(found) == [(label, "perplexity", 512) for label in ("baseline", "q8_0")]


def test_priority_comes_before_the_order_of_the_suite(planned) -> None:
    (found,) = trim([planned("priority: ['*-memory-*', turbo3]\n")], Limits(budget=f"{START + 2 * BASE + 4 * CELL:g}s"))
    assert kept(found) == [
        *(("baseline", "perplexity", 512), ("turbo3", "perplexity", 512)),
        *((label, "memory", 512) for label in ("baseline", "q8_0", "turbo4", "turbo3")),
    ]


def test_a_cell_that_does_not_fit_leaves_room_for_those_behind_it(planned) -> None:
    found = planned("priority: [turbo3]\n")
    costs = tuple(
        dataclasses.replace(c, seconds=1000.0) if cell.label == "turbo3" else c for cell, c in zip(found.cells, found.costs, strict=True)
    )
    (found,) = trim([dataclasses.replace(found, prices=costs)], Limits(budget="25s"))
    assert kept(found) == [("baseline", "perplexity", 512), ("q8_0", "perplexity", 512)]


def test_the_budget_counts_the_pass_of_the_baseline_once_for_whatever_is_kept_of_a_setting(planned) -> None:
    found = planned("priority: [turbo4, q8_0]\n")
    found = dataclasses.replace(found, prices=tuple(dataclasses.replace(price, beside=3.0) for price in found.prices))
    (left,) = trim([found], Limits(budget=f"{START + BASE + 2 * CELL + 3:g}s"))
    assert kept(left) == [(label, "perplexity", 512) for label in ("baseline", "q8_0", "turbo4")]
    assert sum(left.cost(cell).seconds for cell in left.chosen) == BASE + 2 * CELL + 3
    (left,) = trim([found], Limits(budget=f"{START + BASE + 2 * CELL + 2:g}s"))
    assert kept(left) == [(label, "perplexity", 512) for label in ("baseline", "turbo4")]
    (left,) = trim([found], Limits(budget=f"{CELL + START + 2:g}s"), {found.cells[0].key, found.cells[2].key})  # turbo4 has run, before
    assert kept(left) == [(label, "perplexity", 512) for label in ("baseline", "turbo4")]


def test_priority_does_not_name_the_run(planned) -> None:
    assert planned("priority: turbo3\n").identity() == planned().identity()


def test_memory_leaves_out_what_needs_more(planned) -> None:
    (found,) = trim([planned()], Limits(memory="2g"))
    assert {cell.params["context"] for cell in found.chosen} == {512}
    whys = {why for cell in found.cells if cell.scheme and (why := found.dropped.get(cell.key))}
    assert whys == {"baseline needs about 3.0 GiB of memory, allowed are 2.0 GiB"}


def test_what_is_measured_is_free(planned) -> None:
    whole = planned()
    done = {cell.key for cell in whole.cells[:3]}
    (found,) = trim([whole], Limits(budget=f"{START + CELL:g}s"), done)
    assert kept(found) == [(label, "perplexity", 512) for label in ("baseline", "q8_0", "turbo4", "turbo3")]
    (found,) = trim([whole], Limits(budget="1s"), done)
    assert kept(found) == [(label, "perplexity", 512) for label in ("baseline", "q8_0", "turbo4")]


def test_the_budget_is_for_all_suites_together(planned) -> None:
    one, two = planned(), planned()
    (first, second) = trim([one, two], Limits(budget=f"{2 * START + 5 * BASE + 10 * CELL:g}s"))
    assert len(first.chosen) == len(one.cells)
    assert kept(second) == [(label, "perplexity", 512) for label in ("baseline", "q8_0")]


def test_a_suite_that_nothing_is_left_of_still_says_what_is_left_out(planned) -> None:
    one, two = planned(), planned()
    first, second = trim([one, two], Limits(budget=f"{START + BASE + CELL:g}s"))
    assert kept(first) == [(label, "perplexity", 512) for label in ("baseline", "q8_0")]
    assert kept(second) == []
    assert second.dropped.keys() == {cell.key for cell in two.cells}


def test_it_works_on_what_k_leaves(planned) -> None:
    (some,) = select([planned()], "turbo*")
    (found,) = trim([some], Limits(budget=f"{START + BASE + CELL:g}s"))
    assert kept(found) == [(label, "perplexity", 512) for label in ("baseline", "turbo4")]
    (bases,) = select([planned()], "baseline")
    (found,) = trim([bases], Limits(budget=f"{START + 2 * BASE:g}s"))
    assert kept(found) == [("baseline", "perplexity", 512), ("baseline", "perplexity", 4096)]


def test_what_is_not_known_is_left_out_and_says_how_to_know_it(planned) -> None:
    found = planned()
    costs = tuple(
        dataclasses.replace(c, seconds=None, peak_bytes=None) if cell.label == "q8_0" else c
        for cell, c in zip(found.cells, found.costs, strict=True)
    )
    unknown = dataclasses.replace(found, prices=costs)
    for limits in (Limits(budget="1h"), Limits(memory="99g")):
        (left,) = trim([unknown], limits)
        assert "q8_0" not in {cell.label for cell in left.chosen}
        assert all("measure it once with -k" in why for why in left.dropped.values())


def test_nothing_left_is_an_error_that_says_what_would_fit(planned) -> None:
    with pytest.raises(ConfigError) as caught:
        trim([planned()], Limits(budget="5s", memory="9g"))
    first, *whys = caught.value.problems
    assert first == "--budget 5s --memory 9g leaves nothing to measure; give more, or make cells smaller with --set"
    assert whys[0].endswith(": it takes about 20 s with its baseline, 5 s of the budget are left")


def without(found: Plan, *labels: str) -> Plan:
    """The plan on a model that these schemes do not fit."""
    pairs = zip(found.cells, found.prices, strict=True)
    return dataclasses.replace(
        found, prices=tuple(dataclasses.replace(cost, unsupported="no") if cell.label in labels else cost for cell, cost in pairs)
    )


def test_what_a_budget_leaves_out_is_not_called_unable_to_run(planned, capsys) -> None:
    """Only what cannot run fits; the others could."""
    text = SUITE.replace("[512, 4k]", "512").replace("  - memory: {context: 512}\n", "")
    lame = without(planned(text=text), "q8_0")
    (enough,) = trim([lame], Limits(budget=f"{START + BASE + CELL:g}s"))  # what cannot run takes no time from what can
    assert [cell.label for cell in enough.chosen] == ["baseline", "q8_0", "turbo4"]
    assert show(Wanted(trim([lame], Limits(budget=f"{START + BASE:g}s")))) == 5
    said = capsys.readouterr().out
    assert "suite: nothing that --budget 10s leaves (it leaves out 2 cells that could) can run here; `tqbench run` would end with" in said
    assert show(Wanted(trim([without(planned(text=text), "q8_0", "turbo4", "turbo3")], Limits(budget="20s")))) == 5
    assert "suite: nothing of it can run here" in capsys.readouterr().out


def test_limits_that_cannot_be_read_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Limits(budget="20", memory="much").read()
    one, two = caught.value.problems
    assert one == "--budget: '20' is no time; write a number with its unit, as 90s, 20m, 1.5h or 1h30m"
    assert two.startswith("--memory: 'much' is no size; write a number with its unit, as 512m, 16g or 16GiB")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("20min", 1200), ("1.5h", 5400), ("1h30m", 5400), ("1d", 86400)])
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert read_duration(text) == read_duration(f" {text.upper()} ") == seconds


@pytest.mark.parametrize("text", ["", "m", "20 m", "-1h", "1e3s", "5x", "1h 30m", "٣m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        read_duration(text)


@pytest.mark.parametrize(
    ("text", "count"), [("512m", 512 << 20), ("16g", 16 << 30), ("16GiB", 16 << 30), ("1.5GB", 3 << 29), ("2T", 2 << 40)]
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert read_size(text) == count


@pytest.mark.parametrize("text", ["", "16", "g", "-1g", "16 g", "1e3g"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        read_size(text)


@pytest.mark.parametrize(("read", "text", "said"), [(read_duration, "0s", "0s' leaves no time"), (read_size, "0g", "0g' leaves no room")])
def test_nothing_is_told_from_what_cannot_be_read(read: Callable[[str], float], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"{said} for anything; give more than 0, as "):
        read(text)


def test_amounts_are_written_for_people() -> None:
    assert [duration(s) for s in (0.4, 89, 100, 5000, 9000)] == ["0 s", "89 s", "2 min", "83 min", "2.5 h"]
    assert [size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]


def test_a_priority_that_matches_nothing_is_refused_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"{SUITE}priority:\n  - q8_0\n  - q9\n")
    with pytest.raises(ConfigError) as caught:
        load([path])
    (line,) = caught.value.problems
    assert line.startswith(f"{path}:9: 'q9' matches no cell; give a scheme (baseline, q8_0, turbo4, turbo3)")

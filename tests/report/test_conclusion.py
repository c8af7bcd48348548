"""One conclusion for all who tell it: what counts, what does not, and that text and exit code say the same."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest

from tqbench.core.record import Estimate
from tqbench.report import github, junit, markdown, page, terminal
from tqbench.report.conclusion import conclude

INSIDE, NEAR = Estimate(0.05, 0.03, 0.07), Estimate(0.15, 0.105, 0.195)  # of the limit, 0.2; NEAR alone is inside it, among four it is not


def told(run, found):
    """The exit code in each text about a run."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(terminal.verdicts(run, found))
    texts = [console.file.getvalue(), markdown.render(run, found), page.render(run, found, []), github.summary(run, found)]
    return {int(code) for text in texts for code in re.findall(r"exit code (\d+)", text)}


def test_what_only_shows_a_run_says_whose_exit_code_it_is(make, run_of):
    run = run_of([make.baseline(), make.broken(make.cell("lost"))])
    found = conclude(run)
    assert found.reported == "a required cell did not complete (tqbench run ends with exit code 3 here)"
    assert found.reported in markdown.render(run, found)
    assert "<code>tqbench run</code> ends with exit code 3 here" in page.render(run, found, [])


def kinds(run, found):
    """What JUnit says of cells, by their outcome."""
    return dict(re.findall(r"<(error|failure|skipped) type=\"([^\"]+)\"", junit.render(run, found)))


@pytest.mark.parametrize(("outcome", "code"), [("timeout", 3), ("inactive", 4), ("altered", 4), ("failed", 3)])
def test_what_limits_leave_out_counts_by_the_record_that_it_has(make, run_of, outcome, code):
    cell = make.cell("bad")
    records = [make.baseline(), make.record(make.cell("good"), dppl=INSIDE), make.broken(cell, outcome)]
    run = dataclasses.replace(run_of(records, [make.gate("*")]), dropped={cell.key: "it takes about 10 s, 0 s of the budget are left"})
    found = conclude(run, asked=run.cells)
    assert found.code == code
    assert [verdict.status for verdict in found.verdicts] == ["pass", "fail"]


@pytest.mark.parametrize(("required", "status", "code"), [(True, "inconclusive", 5), (False, "skipped", 0)])
def test_what_limits_leave_out_without_a_record_is_not_judged(make, run_of, required, status, code):
    cell, why = make.cell("later"), "it takes about 10 s, 0 s of the budget are left"
    gates = [make.gate("good"), make.gate("later", required=required)]
    run = run_of([make.baseline(), make.record(make.cell("good"), dppl=INSIDE)], gates, unrun=[cell])
    assert conclude(run).code == (3 if required else 0)
    run = dataclasses.replace(run, dropped={cell.key: why})
    found = conclude(run)
    assert (found.code, found.verdicts[1].status, found.verdicts[1].reason) == (code, status, f"left out: {why}")
    assert "error" not in re.sub(r"<testsuite name=\"gates.*", "", junit.render(run, found), flags=re.DOTALL).replace('errors="0"', "")
    assert not any(line.startswith("::error") for line in github.notices(run, found))


def test_what_was_not_asked_for_does_not_count_and_the_sentence_says_so(make, run_of):
    lost = make.cell("lost")
    run = run_of([make.baseline(), make.record(make.cell("good"), dppl=INSIDE), make.broken(lost)], [make.gate("*")], [make.cell("later")])
    found = conclude(run, asked=run.cells[:2])
    assert [verdict.who for verdict in found.verdicts] == ["good"]
    assert (found.code, found.sentence) == (0, "passed; 2 of 4 cells were asked for (exit code 0)")
    assert (told(run, found), kinds(run, found), github.notices(run, found)) == ({0}, {"skipped": "not run"}, [])
    whole = conclude(run)
    assert (whole.code, told(run, whole), len(github.notices(run, whole))) == (3, {3}, 2)


def test_a_cell_is_judged_among_all_of_the_plan_however_few_are_measured_or_asked_for(make, run_of):
    near, others = make.record(make.cell("near"), dppl=NEAR), [make.cell(name) for name in "abc"]
    alone = conclude(run_of([make.baseline(), near], [make.gate("*")], run="alone"))
    assert alone.verdicts[0].status == "pass"
    few = run_of([make.baseline(), near], [make.gate("*")], unrun=others, run="few")
    (verdict,) = conclude(few, asked=few.cells[:2]).verdicts
    assert verdict.status == "inconclusive"
    every = run_of([make.baseline(), near, *(make.record(cell, dppl=Estimate(0.19, 0.15, 0.23)) for cell in others)], [make.gate("*")])
    (again,) = conclude(every, asked=few.cells[:2]).verdicts
    assert again == verdict
    assert conclude(every).verdicts[0] == verdict


@pytest.mark.parametrize("gated", [True, False])
def test_only_gates_that_judged_nothing_are_not_green(make, run_of, gated):
    foreign = make.broken(make.cell("foreign"), "unsupported")
    run = run_of([make.baseline(), make.record(make.cell("good")), foreign], [make.gate("foreign", required=False)])
    found = conclude(run, gated=gated)
    assert [verdict.status for verdict in found.verdicts] == ["skipped"]
    assert found.sentence == "nothing was judged, every gate was skipped (exit code 5)"
    assert told(run, found) == {5}


def test_without_gates_a_run_is_not_judged_and_a_gate_is_not_green(make, run_of):
    run = run_of([make.baseline(), make.record(make.cell())])
    for gated, code in ((False, 0), (True, 5)):
        found = conclude(run, gated=gated)
        assert (found.code, told(run, found)) == (code, {code})
        assert found.says == "nothing was judged, there are no gates"
    nothing = run_of([make.baseline()], run="nothing")
    assert conclude(nothing, gated=True).sentence == "inconclusive, or nothing was measured (exit code 5)"


def test_a_record_that_was_changed_is_not_called_a_scheme_that_did_not_run(make, run_of):
    changed, idle = (make.broken(make.cell(outcome), outcome, "why") for outcome in ("altered", "inactive"))
    good = [make.baseline(), make.record(make.cell("good"))]
    found = conclude(run_of([*good, changed]))
    assert (found.code, found.says) == (4, "an audit failed: a record is not what was measured")
    both = conclude(run_of([*good, changed, idle], run="both")).says
    assert "a scheme did not do what it declares" in both
    assert "a record is not what was measured" in both
    assert "record" not in conclude(run_of([*good, idle], run="idle")).says
    assert kinds(run_of([*good, changed]), found) == {"failure": "altered"}

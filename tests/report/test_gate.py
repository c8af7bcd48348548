"""Limits to verdicts to exit codes."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tqbench.core.gate import POINTS, RATIOS, TASK_OF
from tqbench.core.record import Estimate
from tqbench.report.gate import exit_code, judge

INSIDE, ACROSS, ABOVE = Estimate(0.05, 0.03, 0.07), Estimate(0.19, 0.15, 0.23), Estimate(0.5, 0.4, 0.6)
BELOW = Estimate(-0.5, -0.6, -0.4)


def verdict(make, run_of, dppl, **gate):
    cell = make.cell("q8_0")
    run = run_of([make.baseline(), make.record(cell, dppl=dppl)], [make.gate("q8_0", **gate)])
    (found,) = judge(run)
    return found


@pytest.mark.parametrize(
    ("dppl", "sided", "expect", "status"),
    [
        (INSIDE, "two", "pass", "pass"),
        (INSIDE, "one", "pass", "pass"),
        (ABOVE, "two", "pass", "fail"),
        (ABOVE, "one", "pass", "fail"),
        (BELOW, "two", "pass", "fail"),  # a perplexity that improves beyond the limit is a fault too
        (BELOW, "one", "pass", "pass"),
        (ACROSS, "two", "pass", "inconclusive"),
        (ACROSS, "one", "pass", "inconclusive"),
        (INSIDE, "two", "fail", "fail"),  # a control that passes: the instrument is blind
        (ABOVE, "two", "fail", "pass"),
        (ACROSS, "two", "fail", "inconclusive"),
        (Estimate(0.0, 0.0, 0.0), "two", "pass", "pass"),
        (Estimate(0.2, 0.2, 0.2), "two", "pass", "pass"),  # the limit itself is allowed
        (Estimate(0.1), "two", "pass", "inconclusive"),  # without an interval there is nothing to judge by
        (Estimate(0.3), "two", "fail", "inconclusive"),
    ],
)
def test_only_a_whole_interval_decides(make, run_of, dppl, sided, expect, status):
    assert verdict(make, run_of, dppl, sided=sided, expect=expect).status == status


def test_a_verdict_says_that_its_limit_holds_to_both_sides(make, run_of):
    said = {name: verdict(make, run_of, dppl).reason for name, dppl in {"above": ABOVE, "below": BELOW, "inside": INSIDE}.items()}
    assert said["below"].endswith("is outside ±0.2: it is lower, and this limit holds to both sides")
    assert said["above"].endswith("is outside ±0.2")
    assert said["inside"].endswith("is within ±0.2")
    kld = verdict(make, run_of, INSIDE, metric="kld", limit=0.002).reason  # which is never below 0
    assert kld.endswith("is above 0.002")


@pytest.mark.parametrize(
    ("top1", "status"),
    [(Estimate(0.97, 0.96, 0.98), "pass"), (Estimate(0.9, 0.89, 0.91), "fail"), (Estimate(0.95, 0.94, 0.96), "inconclusive")],
)
def test_where_high_is_good_the_limit_is_a_lower_bound(make, run_of, top1, status):
    run = run_of([make.baseline(), make.record(make.cell(), top1=top1)], [make.gate("q8_0", "top1", 0.951)])
    assert judge(run)[0].status == status


def test_exactly_zero_passes_a_limit_of_zero(make, run_of):
    assert verdict(make, run_of, Estimate(0.0, 0.0, 0.0), limit=0.0).status == "pass"


def test_inconclusive_says_how_many_tokens_would_decide(make, run_of):
    found = verdict(make, run_of, Estimate(0.18, 0.14, 0.22))  # half-width 0.04, room 0.02: four times the 4000 tokens
    assert found.tokens == 16000
    assert "16,000" in found.reason


def test_a_value_on_the_limit_is_never_decided(make, run_of):
    found = verdict(make, run_of, Estimate(0.2, 0.1, 0.3))
    assert (found.status, found.tokens) == ("inconclusive", None)
    assert "no number of tokens" in found.reason


def test_few_blocks_decide_nothing(make, run_of):
    short = make.record(make.cell(), dppl=INSIDE, text=make.baseline().text | {"scored": 640, "windows": 10})
    (found,) = judge(run_of([make.baseline(), short], [make.gate("q8_0")]))
    assert (found.status, found.tokens) == ("inconclusive", 1920 + 80)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_fails(make, run_of, value):
    run = run_of([make.baseline(), make.record(make.cell())], [make.gate("q8_0")])
    object.__setattr__(run, "records", (run.records[0], make.record(make.cell(), dppl=Estimate(value, value, value))))
    assert (judge(run)[0].status, exit_code(run, judge(run))) == ("fail", 1)


def test_what_is_yet_to_be_measured_takes_its_share_of_the_error(make, run_of):
    run = run_of([make.baseline(), make.record(make.cell(), dppl=Estimate(0.15, 0.105, 0.195))], [make.gate("q8_0")])
    assert judge(run)[0].status == "pass"
    (found,) = judge(run, among=3)
    assert (found.status, "may or may not be" in found.reason) == ("inconclusive", True)


def test_a_missing_metric_fails_also_where_failing_is_expected(make, run_of):
    run = run_of([make.baseline(), make.record(make.cell())], [make.gate("q8_0", "needles", expect="fail")])
    assert judge(run)[0].status == "fail"
    assert "needles" in judge(run)[0].reason


def test_a_gate_that_matches_nothing_fails_unless_it_is_optional(make, run_of):
    gates = [make.gate("turbo9*"), make.gate("turbo9*", required=False)]
    run = run_of([make.baseline(), make.record(make.cell())], gates)
    assert [v.status for v in judge(run)] == ["fail", "skipped"]
    assert exit_code(run, judge(run)) == 1


def test_a_cell_without_numbers_fails_a_gate_with_its_reason(make, run_of):
    cells = [make.cell("a"), make.cell("b"), make.cell("c")]
    run = run_of(
        [make.baseline(), make.broken(cells[0]), make.broken(cells[1], "unsupported", "no such head_dim")], [make.gate("?")], cells[2:]
    )
    assert [v.status for v in judge(run)] == ["fail"] * 3
    assert ["it did not fit" in judge(run)[0].reason, "no such head_dim" in judge(run)[1].reason, "not run" in judge(run)[2].reason] == [
        True
    ] * 3


@pytest.mark.parametrize("ppl", [1.2, 30000.0])
def test_a_baseline_that_cannot_be_fails_every_gate_of_its_setting_only(make, run_of, ppl):
    base = {"base_ppl": Estimate(ppl)}
    records = [make.baseline(512, ppl), make.record(make.cell(context=512), dppl=INSIDE, **base)]
    records += [make.baseline(1024), make.record(make.cell(context=1024), dppl=INSIDE)]
    assert [v.status for v in judge(run_of(records, [make.gate("*")]))] == ["fail", "pass"]


def test_brackets_in_patterns_are_literal_and_the_baseline_is_never_judged(make, run_of):
    identity = make.cell({"name": "turbo4", "bypass": "identity", "k": {}, "v": {}})
    records = [make.baseline(), make.record(identity), make.record(make.cell("turbo4i")), make.record(make.cell("q8_0"))]
    run = run_of(records, [make.gate("turbo4[identity]"), make.gate("*[identity]"), make.gate("*")])
    judged = [[v.who for v in judge(run) if v.gate is gate] for gate in run.gates]
    assert judged == [["turbo4[identity]"], ["turbo4[identity]"], ["turbo4[identity]", "turbo4i", "q8_0"]]


def test_exit_codes_the_worst_wins(make, run_of):
    good, bad, unclear = (make.record(make.cell(name), dppl=dppl) for name, dppl in (("good", INSIDE), ("bad", ABOVE), ("unclear", ACROSS)))
    lost, idle = make.broken(make.cell("lost")), make.broken(make.cell("idle"), "inactive", "nothing was packed")
    foreign, base = make.broken(make.cell("foreign"), "unsupported"), make.baseline()

    def code(*records, gates=("good", "bad", "unclear")):
        names = {record.cell.label for record in records}
        run = run_of([base, *records], [make.gate(name) for name in gates if name in names], run="-".join(names) or "none")
        return exit_code(run, judge(run))

    assert code(good) == 0
    assert code() == 5  # nothing was measured
    assert code(good, unclear) == 5
    assert code(good, unclear, bad) == 1
    assert code(good, unclear, bad, lost) == 3
    assert code(good, unclear, bad, lost, idle) == 4
    assert code(good, foreign) == 0
    assert code(good, foreign, gates=("foreign",)) == 3  # a required gate needs it
    assert code(foreign) == 5


def test_an_audit_counts_even_if_the_record_claims_to_be_ok(make, run_of):
    import dataclasses

    run = run_of([make.baseline(), dataclasses.replace(make.record(make.cell()), audits=["2 layers of 4"])])
    assert exit_code(run, judge(run)) == 4


def test_a_planned_cell_without_a_record_is_incomplete(make, run_of):
    run = run_of([make.baseline(), make.record(make.cell())], unrun=[make.cell("later")])
    assert exit_code(run, []) == 3


SPEED = {"task": "decode", "params": {"context": 512, "new": 8, "repetitions": 3, "protocol": "strict"}}


@pytest.mark.parametrize(
    ("metric", "limit", "status"),
    [
        ("decode_ratio", 0.8, "pass"),
        ("decode_ratio", 0.95, "fail"),
        ("decode_ratio", 0.9, "inconclusive"),
        ("decode_ms_p50", 60, "pass"),
        ("decode_ms_p50", 40, "fail"),
    ],
)
def test_speed_has_a_better_side_and_needs_no_perplexity(make, run_of, metric, limit, status):
    figures = {"decode_ratio": Estimate(0.9, 0.85, 0.93), "decode_ms_p50": Estimate(50.0, 48.0, 52.0)}
    fast = make.speed(make.cell("q8_0", **SPEED), **figures)
    (found,) = judge(run_of([make.baseline(), make.record(make.cell()), fast], [make.gate("q8_0", metric, limit)]))
    assert (found.status, found.cell.task) == (status, "decode")  # the cell of perplexity has no such metric, and is not judged


def test_a_gate_on_quality_leaves_speed_alone(make, run_of):
    fast = make.speed(make.cell("q8_0", **SPEED))
    found = judge(run_of([make.baseline(), make.record(make.cell(), dppl=INSIDE), fast], [make.gate("q8_0")]))
    assert [(v.cell.task, v.status) for v in found] == [("perplexity", "pass")]


@pytest.mark.parametrize(
    ("task", "metric", "limit", "says"),
    [
        ("prefill", "prefill_tps", 100, "no interval from 3 repetitions; 6 or more give one"),
        ("prefill", "ttft_ms", 9999, "no interval from 3 repetitions; 6 or more give one"),
        ("storage", "save_ms", 1, "no interval from 3 repetitions; 6 or more give one"),
        ("decode", "decode_ms_p99", 9999, "no interval from 3 repetitions; 125 or more give one"),  # of 8 tokens; 1000 samples
    ],
)
def test_a_time_without_an_interval_decides_nothing(make, run_of, task, metric, limit, says):
    params = {"context": 512, "new": 8, "repetitions": 3, "protocol": "strict", "entropy": "zstd", "level": None}
    cell = make.cell("q8_0", task=task, params=params)
    record = make.stored(cell) if task == "storage" else make.speed(cell, **{metric: Estimate(1.0)})
    for expect in ("pass", "fail"):
        (found,) = judge(run_of([make.baseline(), record], [make.gate("q8_0", metric, limit, expect=expect)]))
        assert found.status == "inconclusive"
        assert says in found.reason


@pytest.mark.parametrize(
    ("task", "metric", "limit"),
    [
        ("memory", "kv_bytes_per_token", 13000),
        ("memory", "tokens_per_gib", 80000),
        *(("storage", metric, 1) for metric in ("stored_ratio", "entropy_gain")),
        *(("storage", f"cos_{side}_min", 0.95) for side in "kv"),
    ],
)
def test_what_is_counted_needs_no_interval(make, run_of, task, metric, limit):
    params = {"context": 512, "protocol": "strict", "repetitions": 3, "entropy": "zstd", "level": None}
    cell = make.cell("q8_0", task=task, params=params)
    record = make.stored(cell, disturbed=True) if task == "storage" else make.speed(cell)
    assert judge(run_of([make.baseline(), record], [make.gate("q8_0", metric, limit)]))[0].status == "pass"


@pytest.mark.parametrize(("metric", "limit", "status"), [("decode_tps", 1, "inconclusive"), ("decode_ratio", 0.1, "pass")])
def test_on_a_disturbed_machine_only_ratios_decide(make, run_of, metric, limit, status):
    for disturbed in (False, True):
        fast = make.speed(make.cell("q8_0", **SPEED), disturbed=disturbed)
        (found,) = judge(run_of([make.baseline(), fast], [make.gate("q8_0", metric, limit)], run=f"run-{disturbed}"))
        assert found.status == (status if disturbed else "pass")
        assert ("while other processes used the machine" in found.reason) == disturbed
    assert ("time it again on a quiet one" in found.reason) == (status == "inconclusive")


@pytest.mark.parametrize("within", [False, True])
def test_captured_steps_are_disturbed_by_what_happened_while_they_were_timed(make, run_of, within):
    """Others have a time of their own."""
    figures = {"captured_tps": Estimate(180.0, 179.0, 181.0), "captured_ratio": Estimate(1.2, 1.19, 1.21)}
    fast = make.speed(make.cell("q8_0", **SPEED), disturbed=not within, **figures)
    fast = dataclasses.replace(fast, device={"captured": {"disturbed": within}})
    gates = [make.gate("q8_0", metric, 1.0) for metric in ("captured_tps", "decode_tps", "captured_ratio")]
    inside, outside, ratio = judge(run_of([make.baseline(), fast], gates))
    assert (inside.status, outside.status) == (("inconclusive", "pass") if within else ("pass", "inconclusive"))
    assert (ratio.status, "other processes" in ratio.reason) == ("pass", within)
    assert "other processes" in (inside if within else outside).reason


@pytest.mark.parametrize(("required", "status", "code"), [(True, "fail", 1), (False, "skipped", 0)])
def test_a_gate_on_steps_that_no_graph_can_hold_says_why(make, run_of, required, status, code):
    fast = dataclasses.replace(make.speed(make.cell("q8_0", **SPEED)), device={"captured": {"missing": "a step waits for the device"}})
    run = run_of([make.baseline(), fast], [make.gate("q8_0", "captured_ratio", 1.0, required=required)])
    (found,) = judge(run)
    assert (found.status, exit_code(run, [found])) == (status, code)
    assert found.reason == "was not measured, because its steps are not in graphs: a step waits for the device"


def test_every_metric_of_a_gate_is_a_point_or_has_an_interval():
    """A new metric must say which."""
    estimated = {"ppl", "dppl", "ln_ratio", "kld", "kld_p99", "kld_worst_decile", "rms_dp", "top1", "top5", "decode_tps", "prefill_tps"}
    estimated |= {"captured_tps"}
    estimated |= {"decode_ms_p50", "decode_ms_p90", "decode_ms_p99", "ttft_ms", "save_ms", "load_ms", "ttft_load_ms"}
    estimated |= {"needle_score", "needle_kept", "needle_first", "needle_nll", "needle_dnll", "needle_kld", "survival", "forced_top1"}
    estimated |= {"forced_kld", "forced_dnll", "eval_score", "eval_delta", "eval_same"}
    assert set(TASK_OF) == estimated | POINTS | RATIOS
    assert not estimated & (POINTS | RATIOS)


SMALL = {"dppl": Estimate(0.003, 0.002, 0.004), "ln_ratio": Estimate(0.00015, 0.0001, 0.0002)}


@pytest.mark.parametrize(
    ("metric", "floor", "limit", "expect", "status", "names"),
    [
        ("dppl", 0.001, 0.01, "pass", "pass", False),
        ("dppl", 0.05, 0.01, "pass", "pass", True),  # it did not move by the limit, and could not have been seen to
        ("dppl", 0.05, 0.1, "pass", "pass", False),
        ("dppl", 0.05, 0.0005, "pass", "inconclusive", True),  # it moved, but so it would have without the scheme
        ("dppl", 0.05, 0.0005, "fail", "inconclusive", True),  # a control must be seen to fail
        ("dppl", 0.001, 0.0005, "pass", "fail", False),
        ("ln_ratio", 0.05, 0.0005, "pass", "pass", True),  # 0.05 of 20 ppl are 0.0025 nats
        ("ln_ratio", 0.05, 0.00005, "pass", "inconclusive", True),
        ("ln_ratio", 0.001, 0.00005, "pass", "fail", False),
    ],
)
def test_a_change_below_the_floor_fails_nobody(make, run_of, metric, floor, limit, expect, status, names):
    record = dataclasses.replace(make.record(make.cell(), **SMALL), floors={"scheme": floor})
    (found,) = judge(run_of([make.baseline(), record], [make.gate("q8_0", metric, limit, expect=expect)]))
    assert (found.status, "the floor" in found.reason) == (status, names)


def test_the_floor_is_that_of_tables_and_exact_zeros_have_none(make, run_of):
    """The larger of both; and what is equal in every token needs no excuse."""
    record = dataclasses.replace(make.record(make.cell(), **SMALL), floors={"scheme": None})
    base = dataclasses.replace(make.baseline(), floors={"instrument": 0.05})
    same = make.record(make.cell("f16"), dppl=Estimate(0.0, 0.0, 0.0))
    found = judge(run_of([base, record, same], [make.gate("*", limit=0.0005)]))
    assert [one.status for one in found] == ["inconclusive", "pass"]
    assert "the floor is 0.050" in found[0].reason
    assert "floor" not in found[1].reason


def test_a_cell_whose_gates_do_without_it_is_not_required(make, run_of):
    """Nobody else says that a cell may be missing: without a gate, or with one that needs it, it must be there."""
    good, lost = make.record(make.cell("good"), dppl=INSIDE), make.broken(make.cell("lost"))

    def code(*gates):
        run = run_of([make.baseline(), good, lost], [make.gate("good"), *gates], run="-".join(gate["metric"] for gate in gates) or "none")
        return exit_code(run, judge(run))

    spared, needed = make.gate("lost", required=False), make.gate("lost", "kld", required=True)
    assert code() == 3
    assert code(spared) == 0
    assert code(spared, needed) == 3


@pytest.mark.parametrize("metric", ["kld_p99", "kld_worst_decile"])
def test_what_few_tokens_decide_needs_more_windows(make, run_of, metric):
    for windows, status in ((99, "inconclusive"), (100, "pass")):
        text = make.baseline().text | {"windows": windows, "scored": 100 * windows}
        record = make.record(make.cell(), text=text, **{metric: Estimate(0.05, 0.04, 0.06)})
        (found,) = judge(run_of([make.baseline(), record], [make.gate("q8_0", metric, 0.1)], run=f"run-{windows}"))
        assert found.status == status
    assert judge(run_of([make.baseline(), make.record(make.cell())], [make.gate("q8_0", "kld", 0.1)], run="kld"))[0].status == "pass"

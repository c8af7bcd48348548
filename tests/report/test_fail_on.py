"""Limits from the command line: what they mean, and what is said about those that mean nothing."""

from __future__ import annotations

import pytest

from tqbench.core.errors import ConfigError
from tqbench.report.fail_on import gates


@pytest.fixture
def run(make, run_of):
    names = ("q8_0", "turbo4", "peer:quanto4", "destructive")
    records = [make.baseline(), *(make.record(make.cell(name)) for name in names)]
    return run_of(records, [make.gate("destructive", "dppl", 0.1, expect="fail")])


@pytest.mark.parametrize(
    ("text", "schemes", "metric", "limit"),
    [
        ("dppl>0.01", ("q8_0", "turbo4", "peer:quanto4"), "dppl", 0.01),  # the control is judged by the suite
        ("q8_0:dppl>0.01", ("q8_0",), "dppl", 0.01),
        (" turbo* : kld > 1e-3 ", ("turbo*",), "kld", 0.001),
        ("peer:quanto4:top1<.95", ("peer:quanto4",), "top1", 0.95),
        ("*:dppl>5", ("*",), "dppl", 5.0),
        ("decode_ratio<0.5", ("q8_0", "turbo4", "peer:quanto4"), "decode_ratio", 0.5),
    ],
)
def test_a_limit_is_a_gate(run, text, schemes, metric, limit):
    ((gate,),) = gates([text], [run])
    assert (gate.schemes, gate.metric, gate.limit) == (schemes, metric, limit)
    assert (gate.sided, gate.expect, gate.required) == ("two", "pass", True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dpl>0.01", "unknown metric 'dpl'; did you mean 'dppl'?"),
        ("q8_O:dppl>0.01", "unknown scheme 'q8_O'; did you mean 'q8_0'?"),
        ("dppl<0.01", "dppl fails where it changed by more, up or down; the limit itself is allowed: write dppl>0.01"),
        ("dppl>=0.01", "write dppl>0.01"),
        ("top1>0.9", "top1 fails below its limit; the limit itself is allowed: write top1<0.9"),
        ("kld<0.9", "kld fails above its limit; the limit itself is allowed: write kld>0.9"),
        ("dppl>-0.01", "'-0.01' is no limit: a number, 0 or more; dppl may change by so much to either side"),
        ("top1<99.9", "the limit 99.9 is more than all of it; write 0.999 for 99.9 %"),
        ("dppl>nan", "'nan' is no limit"),
        ("dppl>", "'' is no limit"),
        ("dppl", "write [SCHEME:]METRIC>NUMBER"),
        ("", "write [SCHEME:]METRIC>NUMBER"),
        (">1", "no metric stands before '>1': write [SCHEME:]METRIC>NUMBER"),
        ("q8_0>0", "'q8_0' names a scheme where a metric belongs: write 'q8_0:METRIC>0' (measured here: ppl, dppl, "),
    ],
)
def test_a_mistake_says_what_is_allowed(run, text, said):
    with pytest.raises(ConfigError) as error:
        gates([text], [run])
    assert str(error.value).startswith(f"--fail-on {text!r}: ")
    assert said in str(error.value)


def test_all_mistakes_at_once(run):
    with pytest.raises(ConfigError) as error:
        gates(["x>1", "dppl>0.01", "kld<1"], [run])
    assert len(error.value.problems) == 2

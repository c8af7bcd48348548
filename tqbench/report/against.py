"""A run held against another: the suite's limits on what may change, on the difference between the two runs' perplexities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from tqbench.core.errors import ConfigError
from tqbench.core.gate import Gate
from tqbench.core.record import Cell
from tqbench.report.gate import Verdict, absent, judged, measured
from tqbench.report.pairing import Pair, pairs
from tqbench.report.run import Run
from tqbench.report.text import title

METRICS = ("dppl", "ln_ratio")  # what is subtracted token by token; other metrics keep no value per token


def judge(run: Run, reference: Run, more: Sequence[Gate] = ()) -> list[Verdict]:
    """Every limit on a change of perplexity, on the change since the reference. A control that must fail is judged in its own run alone."""
    gates = [gate for gate in (*run.gates, *more) if gate.metric in METRICS and gate.expect == "pass"]
    if not gates:
        raise ConfigError(
            f"--against {reference.title}: {run.title} has no limit to hold the difference to, which must be on {' or '.join(METRICS)}; "
            "add one with --fail-on 'dppl>0.01'"
        )
    alike = {pair.cell.key: pair for pair in pairs(reference, run) if pair.other}
    return [verdict for gate in gates for verdict in _verdicts(run, reference, gate, alike)]


def _verdicts(run: Run, reference: Run, gate: Gate, alike: dict[str, Pair]) -> Iterator[Verdict]:
    for cell in judged(run, gate):
        pair = alike.get(cell.key)
        if pair is None:  # its own gate says why it has no record
            yield _refused(gate, cell, reference, f"there is no result ({run.outcome(cell)})")
        elif pair.how == "refused":
            yield _refused(gate, cell, reference, pair.why)
        else:
            yield _measured(gate, pair, reference)


def _refused(gate: Gate, cell: Cell, reference: Run, why: str) -> Verdict:
    return Verdict(gate, cell, absent(gate), f"not comparable with {reference.title} because {why}", against=reference.title)


def _measured(gate: Gate, pair: Pair, reference: Run) -> Verdict:
    assert pair.other  # noqa: S101 - for the type checker: what is refused never comes here
    assert pair.metrics  # noqa: S101
    how = {"equal": f"all {pair.tokens:,} scores equal", "paired": f"{pair.tokens:,} tokens paired"}.get(pair.how, "not paired")
    found = measured(gate, pair.other, pair.metrics[gate.metric], f"{title(gate.metric)} against {reference.title} ({how})")
    advice = ""
    if pair.how == "unpaired":
        advice = "; with nll.npy beside the records of both runs it would be paired token by token" if found.status != "pass" else ""
    return dataclasses.replace(found, against=reference.title, reason=found.reason + advice)

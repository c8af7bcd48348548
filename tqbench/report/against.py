"""A run held against another: the suite's limits on what may change, on the difference between the two runs' perplexities."""

from __future__ import annotations

from collections.abc import Sequence

from tqbench.core.errors import ConfigError
from tqbench.core.gate import Gate
from tqbench.core.record import Cell
from tqbench.report.gate import Open, Verdict, absent, judged, judgement
from tqbench.report.pairing import Pair, pairs
from tqbench.report.run import Run
from tqbench.report.text import title

METRICS = ("dppl", "ln_ratio")  # what is subtracted token by token; other metrics keep no value per token


def judgements(run: Run, reference: Run, more: Sequence[Gate] = ()) -> list[Verdict | Open]:
    """Every limit on a change of perplexity, on the change since the reference. A control that must fail is judged in its own run alone."""
    gates = [gate for gate in (*run.gates, *more) if gate.metric in METRICS and gate.expect == "pass"]
    if not gates:
        raise ConfigError(
            f"--against {reference.title}: {run.title} has no limit to hold the difference to, which must be on {' or '.join(METRICS)}; "
            "add one with --fail-on 'dppl>0.01'"
        )
    alike = {pair.cell.key: pair for pair in pairs(reference, run) if pair.other}
    return [found for gate in gates for cell in judged(run, gate) for found in [_judge(run, reference, gate, cell, alike.get(cell.key))]]


def _judge(run: Run, reference: Run, gate: Gate, cell: Cell, pair: Pair | None) -> Verdict | Open:
    if pair is None or pair.other is None or pair.metrics is None:  # without a record, its own gate says why it has none
        why = pair.why if pair else f"there is no result ({run.outcome(cell)})"
        return Verdict(gate, cell, absent(gate), f"not comparable with {reference.title} because {why}", against=reference.title)
    how = {"equal": f"all {pair.tokens:,} scores equal", "paired": f"{pair.tokens:,} tokens paired"}.get(pair.how, "not paired")
    what = f"{title(gate.metric)} against {reference.title} ({how})"
    advice = "; with nll.npy beside the records of both runs it would be paired token by token" if pair.how == "unpaired" else ""
    return judgement(Open(gate, pair.other, pair.metrics[gate.metric], what, reference.title, advice, pair.floor))

"""`--fail-on 'q8_0:dppl>0.01'`: a gate from the command line, judged as those of suites are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tqbench.core.errors import ConfigError, unknown
from tqbench.core.gate import METRICS, TASK_OF, Gate, matches, too_large
from tqbench.report.gate import SIZES
from tqbench.report.run import Run

FORM = re.compile(r"(?:(?P<pattern>.+):)?(?P<metric>[^<>=:]*)(?P<sign>[<>=]+)(?P<number>[^<>=]*)")
NUMBER = re.compile(r"(?=\.?[0-9])[0-9]*\.?[0-9]*(?:[eE][-+]?[0-9]{1,2})?")
HOW = "write [SCHEME:]METRIC>NUMBER, or < where high is good: 'dppl>0.01', 'q8_0:kld>0.002', '*turbo*:top1<0.95'"


@dataclass(frozen=True)
class FailOn:
    """A limit, and the schemes that it is for; without a pattern, all that are not declared to fail."""

    text: str
    pattern: str | None
    metric: str
    limit: float

    def gate(self, run: Run) -> Gate:
        """The gate on this run. A control that the suite declares to fail is judged by that alone."""
        controls = [gate for gate in run.gates if gate.expect == "fail"]
        labels = dict.fromkeys(cell.label for cell in run.cells if cell.scheme is not None)
        rest = tuple(label for label in labels if not any(gate.covers(label) for gate in controls))
        return Gate((self.pattern,) if self.pattern else rest or ("*",), self.metric, self.limit)


def gates(texts: Sequence[str], runs: Sequence[Run]) -> list[list[Gate]]:
    """Per run, a gate for each text. ConfigError names every mistake."""
    labels = dict.fromkeys(cell.label for run in runs for cell in run.cells if cell.scheme is not None)
    found, wrong = [], []
    for text in texts:
        try:
            one = _parse(text, runs)
            if one.pattern and not any(matches(one.pattern, label) for label in labels):
                raise ConfigError(f"{unknown('scheme', one.pattern, labels)}; * and ? are wildcards")
            found.append(one)
        except ConfigError as error:
            wrong.append(f"--fail-on {text!r}: {error}")
    if wrong:
        raise ConfigError(wrong)
    return [[one.gate(run) for one in found] for run in runs]


def _no_metric(word: str, rest: str, runs: Sequence[Run]) -> str:
    """What is wrong about it: nothing, a scheme, or a word that nobody knows stands where a metric belongs."""
    cells = [cell for run in runs for cell in run.cells if cell.scheme is not None]
    here = ", ".join(dict.fromkeys(metric for cell in cells for metric in METRICS.get(cell.task, {})))
    if not word:
        return f"no metric stands before {rest!r}: {HOW} (measured here: {here})"
    if any(matches(word, cell.label) for cell in cells):
        return f"{word!r} names a scheme where a metric belongs: write '{word}:METRIC{rest}' (measured here: {here})"
    return unknown("metric", word, TASK_OF)


def _parse(text: str, runs: Sequence[Run]) -> FailOn:
    form = FORM.fullmatch(text.strip())
    if form is None:
        raise ConfigError(HOW)
    metric, sign, number = (form[name].strip() for name in ("metric", "sign", "number"))
    if metric not in TASK_OF:
        raise ConfigError(_no_metric(metric, f"{sign}{number}", runs))
    better = METRICS[TASK_OF[metric]][metric]
    needed = "<" if better == "high" else ">"
    one = better is not None or metric in SIZES
    fails = ("below its limit" if better == "high" else "above its limit") if one else "where it changed by more, up or down"
    if sign != needed:
        raise ConfigError(f"{metric} fails {fails}; the limit itself is allowed: write {metric}{needed}{number}")
    if not NUMBER.fullmatch(number):
        both = "" if one else f"; {metric} may change by so much to either side"
        raise ConfigError(f"{number!r} is no limit: a number, 0 or more{both}; {HOW}")
    if wrong := too_large(metric, float(number)):
        raise ConfigError(wrong)
    return FailOn(text, (form["pattern"] or "").strip() or None, metric, float(number))

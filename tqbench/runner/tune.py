"""The cheapest mix of schemes that keeps a limit: searched by KLD on one text, confirmed by Δppl on another.

All layers of one scheme, the smallest, are probed one by one; of the others K, V and both as a whole. What a mix should cost follows by
adding up; the cheapest that should keep the limit is measured whole, the sum corrected by what it really costs, and again. What comes out
is scored on other text beside the best scheme that is the same in all layers, each attempt on text that nothing was chosen by. All of it
are cells of ordinary runs, so that a search that was interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import log1p
from pathlib import Path
from typing import Any, Literal

from tqbench.core.errors import ConfigError, TqbenchError
from tqbench.core.gate import Gate
from tqbench.core.quantity import duration
from tqbench.core.record import Record
from tqbench.core.scheme import Scheme
from tqbench.metrics.paired import ENOUGH
from tqbench.models import resolve
from tqbench.report.gate import Verdict, judge
from tqbench.report.run import Run
from tqbench.runner.folder import Folder
from tqbench.runner.mixing import Palette, per_token, unmixable
from tqbench.runner.run import REPORTS, RESULTS, run_plan
from tqbench.suite.cost import Size
from tqbench.suite.history import History
from tqbench.suite.plan import Plan, plan
from tqbench.suite.schema import TASKS, Perplexity, Sensitivity, Suite, UntilDecided

Sided = Literal["one", "two"]
ATTEMPTS = 3  # at a confirmation, each with a share of the 5 % and on text of its own
MIXES = 3  # that are usually measured whole
ROUNDS = 5  # of measuring a mix and correcting the sum
AIM = 0.8  # of the limit: what the search leaves the other text to differ by, and intervals to be wide
NEAR = 0.9  # of what was aimed at: closer is near enough
BETTER = 0.7  # of the limit: while the interval ends below that, a cheaper mix is worth an attempt
GLANCE = 2048  # tokens of the other text that its baseline's perplexity is read from


@dataclass(frozen=True)
class Goal:
    """What the mix must keep: Δppl on the other text with all of its interval."""

    max_dppl: float
    confirm: dict[str, Any]  # the other corpus
    sided: Sided = "two"
    thorough: bool = False  # probe the layers of every scheme

    def gate(self, name: str) -> Gate:
        """As a gate on a scheme."""
        return Gate((name,), "dppl", self.max_dppl, self.sided)


@dataclass(frozen=True)
class Mix:
    """A mix that was measured on the searched text."""

    scheme: Scheme
    record: Record
    expected: float  # KLD by adding up

    @property
    def kld(self) -> float:
        """Measured whole."""
        return self.record.metrics["kld"].value

    @property
    def bytes(self) -> float:
        """Per token."""
        return per_token(self.record)


@dataclass(frozen=True)
class Trial:
    """A scheme on the other text."""

    name: str
    bytes: float
    record: Record
    verdict: Verdict
    skip: int  # tokens of that text before the first that were scored


@dataclass
class Tuned:
    """What a search found, and on what grounds."""

    goal: Goal
    uniform: list[tuple[Scheme, Record]]  # as searched, from the fewest bytes to the most
    reference: str
    left_out: dict[str, str]  # schemes that no mix has, and why
    target: float = 0.0  # the KLD that the limit amounts to
    base_ppl: float = 0.0  # of the other text, from a glance
    ratio: float = 1.0  # ln ratio by KLD on the searched text
    mixes: list[Mix] = field(default_factory=list)
    trials: list[tuple[Mix, Trial]] = field(default_factory=list)
    rivals: list[Trial] = field(default_factory=list)  # schemes that are the same in all layers
    best: Mix | None = None

    @property
    def trial(self) -> Trial | None:
        """Of the best mix, or else the last."""
        return next((trial for mix, trial in self.trials if mix is self.best), self.trials[-1][1] if self.trials else None)

    @property
    def rival(self) -> Trial | None:
        """The cheapest scheme for all layers that keeps the limit too."""
        return next((trial for trial in self.rivals if trial.verdict.status == "pass"), None)

    @property
    def code(self) -> int:
        """0 confirmed, 1 not, 5 undecided."""
        trial = self.trial
        return 1 if trial is None else {"pass": 0, "fail": 1}.get(trial.verdict.status, 5)


def tune(
    suite: Suite,
    goal: Goal,
    *,
    results: Path = RESULTS,
    reports: Path = REPORTS,
    command: str = "",
    note: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Search and confirm."""
    return _Search(suite, goal, results, reports, command, note).run()


class _Search:
    """One search: the suite cut into runs, and what they found so far."""

    def __init__(self, suite: Suite, goal: Goal, results: Path, reports: Path, command: str, note: Callable[[str], None]):
        self.suite, self.goal, self.results, self.reports, self.command, self.note = suite, goal, results, reports, command, note
        self.history = History.read(results)
        self.probe, self.score = _tasks(suite)
        self.factor = 1.0  # what mixes cost, by what they should

    def run(self) -> Tuned:
        """Measure the schemes, then mixes of them, then the best on other text."""
        smallest = _smallest(self.suite)
        self.note(self._about(smallest))
        self.note(f"1. K, V and both of {len(self.suite.schemes)} schemes on the searched text; layer by layer of {smallest.name}")
        found = self._uniform(smallest)
        self.note("2. the baseline of the other text, for what the limit amounts to")
        self._aim(found)
        palette = self._palette(found, smallest)
        target = AIM * found.target
        for attempt in range(ATTEMPTS):
            self.note(f"3. mixes up to a KLD of {target:.2g} on the searched text")
            mix = self._mix(found, palette, target)
            if mix is None or (found.best and mix.bytes >= found.best.bytes) or any(mix.scheme == old.scheme for old, _ in found.trials):
                break
            self.note(f"4. {mix.bytes:,.0f} bytes per token on the other text, attempt {attempt + 1} of at most {ATTEMPTS}")
            status, share = self._confirm(found, mix, attempt)
            if status == "pass" and share >= BETTER:
                break
            target = mix.kld * (min(2.0, AIM / share) if status == "pass" else min(AIM, max(0.25, AIM / share)))
        return found

    def _about(self, smallest: Scheme) -> str:
        """How long it takes, as plans know it: the schemes, a few mixes, and one confirmation of a mix beside a rival."""
        two = list(self.suite.schemes[:2])
        parts = [
            self._plan("search", self.suite.schemes, self._labelled(smallest)),
            *[self._plan("mix", two[:1], dataclasses.replace(self.probe, layers=()))] * MIXES,
            self._plan("confirm", two, self.score, self.goal.confirm),
        ]
        left = [(part, cell) for part in parts for cell in part.cells if not Folder.of(part, self.results, fresh=False).finished(cell)]
        seconds = [part.cost(cell).seconds for part, cell in left]
        if None in seconds:
            return "how long it takes is not known before something has been measured here"
        total = sum(one or 0.0 for one in seconds) + sum(part.startup(part.cells) for part in parts)
        return f"at most about {duration(total)} if the first mix is confirmed; every attempt more takes as long as the last step"

    def _labelled(self, smallest: Scheme) -> Sensitivity:
        return dataclasses.replace(self.probe, layers=("*",) if self.goal.thorough else (smallest.label,))

    def _plan(self, name: str, schemes: Sequence[Scheme], task: Sensitivity | Perplexity, corpus: dict[str, Any] | None = None) -> Plan:
        """A part of the search as a suite of its own."""
        own: dict[str, Any] = {
            "name": f"{self.suite.settings.name[:50]}-{name}",
            "corpus": corpus or self.suite.settings.corpus,
            "priority": (),
        }
        settings, kind = dataclasses.replace(self.suite.settings, **own), next(k for k, cls in TASKS.items() if isinstance(task, cls))
        part = dataclasses.replace(self.suite, settings=settings, schemes=tuple(schemes), tasks=((kind, task),), gates=(), lines=())
        return plan(part, self.history)

    def _measure(self, name: str, schemes: Sequence[Scheme], task: Sensitivity | Perplexity, corpus: dict[str, Any] | None = None) -> Run:
        run = run_plan(self._plan(name, schemes, task, corpus), self.results, self.reports, command=self.command).run
        _, base = next(_records(run, None))
        if base is None:
            cell = next(cell for cell in run.cells if cell.scheme is None)
            record = run.record(cell)
            raise TqbenchError(f"{run.title}: the baseline has no result ({run.outcome(cell)}): {record.reason if record else ''}")
        return run

    def _uniform(self, smallest: Scheme) -> Tuned:
        """All given schemes, each the same in all layers."""
        run = self._measure("search", self.suite.schemes, self._labelled(smallest))
        left = {scheme.label: why for scheme in self.suite.schemes if (why := unmixable(scheme))}
        found = []
        for scheme in self.suite.schemes:
            (cell, record), *_ = _records(run, scheme.label)
            if record:
                found.append((scheme, record))
            else:
                failed = run.record(cell)
                left[scheme.label] = f"{run.outcome(cell)}: {failed.reason if failed else ''}"
        if smallest.label in left:
            raise TqbenchError(f"{smallest.label} has to be probed layer by layer, and could not: {left[smallest.label]}; leave it out")
        found.sort(key=lambda pair: per_token(pair[1]))
        return Tuned(self.goal, found, smallest.label, left)

    def _aim(self, found: Tuned) -> None:
        """The KLD on the searched text that the limit on the other amounts to."""
        context = self.score.context[0]
        glance = dataclasses.replace(self.score, tokens=max(GLANCE, context), skip=None)
        run = self._measure("glance", (), glance, self.goal.confirm)
        (_, base), *_ = _records(run, None)
        ln, kld = (sum(record.metrics[name].value for _, record in found.uniform) for name in ("ln_ratio", "kld"))
        found.base_ppl = base.metrics["ppl"].value  # type: ignore[union-attr]
        found.ratio = ln / kld if ln > 0 < kld else 1.0
        found.target = log1p(self.goal.max_dppl / found.base_ppl) / found.ratio

    def _palette(self, found: Tuned, smallest: Scheme) -> Palette:
        mixable = [(scheme, record) for scheme, record in found.uniform if scheme.label not in found.left_out]
        reference = next(record for scheme, record in mixable if scheme.label == smallest.label)
        return Palette.of(mixable, reference)

    def _mix(self, found: Tuned, palette: Palette, target: float) -> Mix | None:
        """The cheapest mix that was measured to keep the target: what the sum says, corrected by what the last one really cost."""
        seen: list[Scheme] = []
        for _ in range(ROUNDS):
            made = palette.mix(target / self.factor)
            if made is None or made[0] in seen:
                break
            mix = self._measured(found, *made)
            seen.append(mix.scheme)
            self.factor = mix.kld / made[1] if made[1] and mix.kld > 0 else 1.0
            if NEAR * target <= mix.kld <= target:
                break
        kept = [mix for mix in found.mixes if mix.kld <= target]
        return min(kept, key=lambda mix: mix.bytes, default=None)

    def _measured(self, found: Tuned, scheme: Scheme, expected: float) -> Mix:
        """A mix as a whole on the searched text, once."""
        mix = next((old for old in found.mixes if old.scheme == scheme), None)
        if mix is None:
            run = self._measure("mix", (scheme,), dataclasses.replace(self.probe, layers=()))
            (_, record), *_ = _records(run, scheme.label)
            if record is None:
                raise TqbenchError(f"{run.title}: a mix has no result; see its record")
            mix = Mix(scheme, record, expected)
            found.mixes.append(mix)
            self.note(f"   {mix.bytes:,.0f} bytes per token: KLD {mix.kld:.2g}, {expected * self.factor:.2g} was expected")
        return mix

    def _confirm(self, found: Tuned, mix: Mix, attempt: int) -> tuple[str, float]:
        """The mix on the next stretch of the other text, beside the cheapest scheme for all layers that may keep the limit and has not
        been tried; the verdict, and how much of the limit its interval takes."""
        tried = {trial.name for trial in found.rivals}
        fitting = [pair for pair in found.uniform if pair[1].metrics["kld"].value <= found.target and pair[0].label not in tried]
        rival = fitting[:1] if not found.rival else []
        skip = attempt * (int(self.score.tokens) + self.score.context[0])
        task = dataclasses.replace(self.score, skip=skip or None)
        run = self._measure("confirm", (mix.scheme, *(scheme for scheme, _ in rival)), task, self.goal.confirm)
        trial = self._judged(run, mix.scheme.label, mix.bytes, skip, among=ATTEMPTS - 1)
        found.trials.append((mix, trial))
        found.rivals += [self._judged(run, scheme.label, per_token(record), skip) for scheme, record in rival]
        status, estimate = trial.verdict.status, trial.verdict.estimate
        if status == "pass":
            found.best = mix
        return status, max(0.05, estimate.ends[1] / self.goal.max_dppl) if estimate and self.goal.max_dppl else 1.0

    def _judged(self, run: Run, label: str, size: float, skip: int, among: int = 0) -> Trial:
        (verdict,) = judge(run, [self.goal.gate(label)], among=among)
        (cell, record), *_ = _records(run, label)
        if record is None:
            raise TqbenchError(f"{run.title}: {label} has no result ({run.outcome(cell)}): {verdict.reason}")
        self.note(f"   {label}: {verdict.status}: {verdict.reason}")
        return Trial(label, size, record, verdict, skip)


def _records(run: Run, label: str | None) -> Iterator[tuple[Any, Record | None]]:
    """The cells of a scheme, None being the baseline, with their records where they have numbers."""
    for cell in run.cells:
        if (cell.scheme is None) if label is None else (cell.scheme is not None and cell.label == label):
            record = run.record(cell)
            yield cell, record if record and record.outcome == "ok" else None


def _tasks(suite: Suite) -> tuple[Sensitivity, Perplexity]:
    """How schemes are probed, and how the mix is confirmed."""
    probes = [task for _, task in suite.tasks if isinstance(task, Sensitivity)]
    scores = [task for _, task in suite.tasks if isinstance(task, Perplexity)]
    problems = []
    if len(suite.settings.model) != 1 or len(suite.settings.backend) != 1:
        problems.append("a mix is for one model on one backend; name one of each")
    if len(probes) != 1 or len(scores) != 1:
        problems.append("tune needs a `sensitivity` task, which says how schemes are probed, and a `perplexity` task, which confirms")
    elif len(scores[0].context) != 1 or scores[0].context != probes[0].context:
        problems.append("bytes per token and damage depend on the context: give both tasks the same one")
    elif isinstance(scores[0].tokens, UntilDecided) or scores[0].recipe != "stream" or scores[0].protocol != "strict":
        problems.append("the confirmation is of a fixed number of tokens, by recipe stream and in protocol strict")
    elif scores[0].tokens // scores[0].context[0] < ENOUGH:
        problems.append(f"a verdict needs {ENOUGH} windows: perplexity.tokens must be at least {ENOUGH * scores[0].context[0]}")
    if sum(unmixable(scheme) is None for scheme in suite.schemes) < 2:
        problems.append("a mix needs two schemes without rules of their own")
    if problems:
        raise ConfigError([f"{suite.source or suite.settings.name}: {text}" for text in problems])
    return probes[0], scores[0]


def _smallest(suite: Suite) -> Scheme:
    """Of those that can be mixed the one of the fewest bits: its damage is the clearest."""
    size = Size.of(resolve.config(suite.settings.model[0], suite.root))
    head_dim = size.head_dim if size else 128
    return min((scheme for scheme in suite.schemes if unmixable(scheme) is None), key=lambda scheme: sum(scheme.bits(head_dim)))

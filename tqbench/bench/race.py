"""Correctness first, then time: all contenders in turn in the same rounds, so that what disturbs the machine meets all of them.

Under foreign load long calls are preempted and short ones are not, so ratios come out in favour of the short. A round in which others used
the processor is therefore repeated, up to as many times as there are rounds, and figures come from quiet rounds where there are any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tqbench.bench.contender import Contender, attempt
from tqbench.bench.result import BEST, Group, Round, Row, Timing
from tqbench.measure import clock, stages
from tqbench.measure.noise import Watch
from tqbench.metrics.timing import Ratio, Spread, ratio, spread

STRETCH = 0.02  # seconds of one sample: far above the clock's grain, and a round lasts long enough to see who else runs
MOST_CALLS = 2000
SLOW = 0.5  # seconds of a call that needs no more warm-up than one
STAGED = 3  # calls with marks
SHORT = 0.1  # seconds of a sample; in a round with longer ones, those below it are watched by themselves
WATCHED = 0.3  # seconds that others must be watched for: the system counts processor time in hundredths
BUDGET, FEW = 10.0, 2  # a row may take so many seconds of rounds, and then runs in fewer, but in so many at least


@dataclass
class Lane:
    """A contender on the track: how often it is called for one sample, and what was seen."""

    contender: Contender
    calls: int = 1
    every: int = 1  # takes part in each so-manieth round
    turn: int = 0
    lasts: float = 0.0  # seconds of a sample, about
    output: Any = None
    device: str = "cpu"
    samples: dict[int, float] = field(default_factory=dict)  # round -> seconds per call

    @property
    def wait(self) -> Callable[[], None] | None:
        """What waits for the device."""
        return clock.waiter(self.device)

    def sample(self) -> None:
        """One sample: calls over the copies in turn."""
        copies = self.contender.calls
        for _ in range(self.calls):
            self.output = copies[self.turn % len(copies)]()
            self.turn += 1

    def start(self, rounds: int) -> bool:
        """Whether it ran and what it put out is right. Then how many calls make a sample is settled, and how many rounds it runs in."""
        if self.contender.row.outcome != "ok":
            return False
        one = clock.timed(self._first, self.wait)
        if self.contender.row.outcome == "ok" and (reason := self.contender.judge(self.output)):
            self.contender.drop("wrong", reason)
        if self.contender.row.outcome == "ok":
            self._pace(one, rounds)
        return self.contender.row.outcome == "ok"

    def _first(self) -> None:
        self.output = attempt(self.contender)

    def _pace(self, one: float, rounds: int) -> None:
        """The first call of a slow one is warm-up enough."""
        if one < SLOW:
            one = clock.timed(self.sample, self.wait)
            self.calls = max(1, min(MOST_CALLS, round(STRETCH / max(one, 1e-7))))
            self.sample()
        fitting = max(FEW, int(BUDGET / (one * self.calls)))
        self.every, self.lasts = -(-rounds // min(rounds, fitting)), one * self.calls


def race(tokens: int, contenders: list[Contender], rounds: int, note: Callable[[str], None], device: str = "cpu") -> Group:
    """Judge, time and judge again."""
    note(f"checking {len(contenders)} rows")
    lanes = [lane for lane in (Lane(contender, device=device) for contender in contenders) if lane.start(rounds)]
    seen = _run(lanes, rounds, note)
    for lane in lanes:
        if reason := lane.contender.judge(lane.output):
            lane.contender.drop("wrong", f"on a call that was timed, {reason}")
    fit = {lane.contender.row.name: lane for lane in lanes if lane.contender.row.outcome == "ok"}  # a rival that was wrong is none
    best = _best(fit, seen) if any(BEST in lane.contender.rivals for lane in lanes) else None
    rivals = fit | ({BEST: fit[best]} if best else {})
    rows = {name: replace(_row(lane, rivals, seen), stages=_stages(lane)) for name, lane in fit.items()}
    return Group(tokens, tuple(rows.get(c.row.name, c.row) for c in contenders), tuple(seen), best)


def _best(fit: dict[str, Lane], seen: list[Round]) -> str | None:
    """The fastest baseline that decodes no scheme."""
    shared = {name: lane for name, lane in fit.items() if lane.contender.row.role == "baseline" and not lane.contender.row.scheme}
    return min(shared, key=lambda name: _figures(shared[name], seen).median, default=None)


def _run(lanes: list[Lane], rounds: int, note: Callable[[str], None]) -> list[Round]:
    """The rounds in order; a disturbed one is run again at once, while any repeats are left."""
    seen: list[Round] = []
    again = rounds
    for turn in range(rounds):
        while True:
            note(f"round {turn + 1} of {rounds}")
            seen.append(_round(lanes, turn, len(seen)))
            if not seen[-1].disturbed or not again:
                break
            again -= 1
    return seen


def _round(lanes: list[Lane], turn: int, number: int) -> Round:
    """Each lane of this turn once; the order alternates."""
    step = -1 if number % 2 else 1
    watches = [_block(lanes[::step], number) for lanes in _blocks([lane for lane in lanes if turn % lane.every == 0])[::step]]
    worst = max(watches, key=lambda watch: watch.foreign or 0.0, default=Watch())
    return Round(worst.foreign, worst.disturbed)


def _blocks(lanes: list[Lane]) -> list[list[Lane]]:
    """Short lanes apart from long ones: what others use on average of a long round may all have been used during its short lanes."""
    parts = [[lane for lane in lanes if (lane.lasts < SHORT) == short] for short in (True, False)]
    return parts if all(sum(lane.lasts for lane in part) >= WATCHED for part in parts) else [lanes]


def _block(lanes: list[Lane], number: int) -> Watch:
    with Watch() as watch:
        seconds = clock.interleaved(
            {str(i): lane.sample for i, lane in enumerate(lanes)}, rounds=1, warmup=0, wait=lanes[0].wait if lanes else None
        )
    for lane, (sample,) in zip(lanes, seconds.values(), strict=True):
        lane.samples[number] = sample / lane.calls
    return watch


def _row(lane: Lane, fit: dict[str, Lane], seen: list[Round]) -> Row:
    row, quiet, figures = lane.contender.row, _quiet(lane, seen), _figures(lane, seen)
    timing = Timing(
        calls=lane.calls,
        copies=len(lane.contender.calls),
        samples=tuple(1e3 * sample for sample in lane.samples.values()),
        rounds=tuple(lane.samples),
        quiet=len(quiet),
        spread=figures,
        gbps=(row.bytes_moved or 0) / 1e6 / figures.median,
        ratios={name: _ratio(fit[name], lane, seen) for name in lane.contender.rivals if name in fit and fit[name] is not lane},
    )
    return replace(row, timing=timing)


def _figures(lane: Lane, seen: list[Round]) -> Spread:
    return spread([1e3 * lane.samples[i] for i in _quiet(lane, seen) or lane.samples])


def _stages(lane: Lane) -> dict[str, float] | None:
    """Where the time of a call goes, apart from the rounds: marks cost time. The call whose whole is the median; slow ones run once."""
    if not lane.contender.staged:
        return None
    runs = []
    for _ in range(1 if min(lane.samples.values()) > SLOW else STAGED):
        with stages.timed(clock.marks(lane.device)) as found:
            whole = clock.timed(lane.contender.calls[0], lane.wait)
        spent = {name: 1e3 * seconds for name, seconds in found.seconds.items()}
        runs.append((whole, {**spent, "unexplained": 1e3 * whole - sum(spent.values())}))
    return sorted(runs, key=lambda run: run[0])[len(runs) // 2][1]


def _quiet(lane: Lane, seen: list[Round]) -> list[int]:
    return [i for i in lane.samples if not seen[i].disturbed]


def _ratio(rival: Lane, lane: Lane, seen: list[Round]) -> Ratio:
    """How many times as long the rival takes, over the rounds that both ran in."""
    both = [i for i in lane.samples if i in rival.samples]
    chosen = [i for i in both if not seen[i].disturbed] or both
    return ratio([rival.samples[i] for i in chosen], [lane.samples[i] for i in chosen])

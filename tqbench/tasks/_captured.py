"""The same decoding steps in captured graphs, for both lanes: what is left of a step once Python asks for none of its launches.

The model's own cache is kept in place here, as `Stretch.name` says, because copying all of it for every token would flatter every scheme.
Nothing is read back between the steps of a round, whose tokens are the text's own; each step still chooses its next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tqbench.core.errors import Unsupported
from tqbench.core.evidence import audit
from tqbench.core.record import Cell, Estimate
from tqbench.core.session import Stretch
from tqbench.measure import clock, graphs
from tqbench.measure.noise import Watch
from tqbench.metrics import timing
from tqbench.tasks._race import Race

LANES = ("own", "cell")
UNTIMED = 4  # times that all tokens run: twice uncaptured, while they are captured, and once to see what comes out


@dataclass(frozen=True)
class Captured:
    """Seconds [repetitions, 2, rounds], own cache first, the tokens of each round, and what the record says; without seconds, why."""

    seconds: Any
    sizes: list[int]
    about: dict[str, Any]
    audits: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, Estimate]:
        """As those of uncaptured steps."""
        if self.seconds is None:
            return {}
        own, rounds = (self.seconds[:, lane].ravel() for lane in (0, 1))
        tokens = np.tile(np.array(self.sizes, dtype=np.float64), len(self.seconds))
        return {
            "captured_tps": timing.rate(tokens, rounds),
            "captured_ratio": timing.ratio(own, rounds).estimate,
            "base_captured_tps": timing.rate(tokens, own),
        }

    def arrays(self) -> dict[str, Any]:
        """Every sample."""
        return {} if self.seconds is None else {"captured": self.seconds}


def steps(cell: Cell, before: int) -> int:
    """How many tokens that is, in both lanes, where there are graphs."""
    new, repetitions = int(cell.params["new"]), int(cell.params["repetitions"])
    return 2 * (before + new * (UNTIMED + repetitions)) if cell.device.startswith("cuda") else 0


def measure(race: Race, context: int, new: int, together: int, repetitions: int, before: int) -> Captured:
    """Capture both lanes, time them in turn, then check what came out."""
    sizes = [min(together, new - first) for first in range(0, new, together)]
    try:
        lanes = {name: _stretch(race, name, context, new, together, before) for name in LANES}
    except Unsupported as why:
        return Captured(None, sizes, {"missing": str(why)})
    for stretch in lanes.values():
        _through(stretch)
    race.job.progress(2 * (before + UNTIMED * new))
    with Watch() as watch:
        seconds = [_timed(race, lanes) for _ in range(repetitions)]
    about: dict[str, Any] = {name: {"cache": one.name, "attention": one.attention} for name, one in lanes.items()}
    about |= {"together": together, "disturbed": watch.disturbed}
    return Captured(np.array(seconds), sizes, about, _contradictions(race, lanes["cell"]))


def _stretch(race: Race, name: str, context: int, new: int, together: int, before: int) -> Stretch:
    """A lane, captured, after tokens `before` that are not."""
    recorder = graphs.recorder(race.device)
    lane = race.lane(name, context)
    lane.start(before)
    tokens = lane.tokens[before : before + new]
    return lane.session.stretch(tokens, lane.cache, together, recorder)


def _through(stretch: Stretch) -> None:
    stretch.begin()
    for number in range(stretch.rounds):
        stretch.replay(number)
    stretch.check()


def _timed(race: Race, lanes: dict[str, Stretch]) -> list[list[float]]:
    """Seconds of every round of each lane, one run through both in turn."""
    numbers = {name: iter(range(stretch.rounds)) for name, stretch in lanes.items()}
    rounds = {name: lambda name=name: lanes[name].replay(next(numbers[name])) for name in lanes}
    for stretch in lanes.values():
        stretch.begin()
    found = clock.interleaved(rounds, lanes["own"].rounds, 0, clock.waiter(race.device))
    race.job.progress(2 * int(race.job.cell.params["new"]))
    for stretch in lanes.values():
        stretch.check()
    return [found[name] for name in LANES]


def _contradictions(race: Race, stretch: Stretch) -> list[str]:
    """What the captured cell's evidence contradicts. Whether the scheme had an effect is seen by scores, which the uncaptured one has."""
    if race.scheme is None:
        return []
    layers = race.job.session.info.kv_layers
    return [f"captured: {text}" for text in audit(stretch.evidence(), layers, lossless=True, identical=False, covered=True)]

"""The same decoding steps in captured graphs, for both lanes: what is left of a step once Python asks for none of its launches.

The model's own cache is kept in place here, as `Stretch.name` says, because copying all of it for every token would flatter every scheme.
Nothing is read back between the steps of a round, whose tokens are the text's own; each step still chooses its next one.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tqbench.core.errors import Unsupported
from tqbench.core.record import Cell, Estimate
from tqbench.core.session import Stretch
from tqbench.measure import clock, graphs, memory
from tqbench.measure.noise import Watch
from tqbench.metrics import timing
from tqbench.tasks._proof import Witness
from tqbench.tasks._race import Race

LANES = ("own", "cell")
NO_ROOM = "the device has no memory for both lanes in graphs"
UNTIMED = 4  # times that all tokens run: twice uncaptured, while they are captured, and once to see what comes out


@dataclass(frozen=True)
class Captured:
    """Seconds [repetitions, 2, rounds], own cache first, the tokens of each round, and what the record says; without seconds, why."""

    seconds: Any
    sizes: list[int]
    about: dict[str, Any]
    audits: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, Estimate]:
        """Of all rounds together, the ratio too: its median would leave out the few in which schemes that pack many tokens at once do so,
        and graphs have no hiccups of the host that it must be spared."""
        if self.seconds is None:
            return {}
        own, rounds = self.seconds[:, 0], self.seconds[:, 1]
        tokens = np.tile(np.array(self.sizes, dtype=np.float64), (len(self.seconds), 1))
        return {
            "captured_tps": timing.rate_again(tokens, rounds),
            "captured_ratio": timing.rate_again(own, rounds),
            "base_captured_tps": timing.rate_again(tokens, own),
        }

    def arrays(self) -> dict[str, Any]:
        """Every sample."""
        return {} if self.seconds is None else {"captured": self.seconds}


def steps(cell: Cell, before: int) -> int:
    """How many tokens that is, in both lanes, where there are graphs."""
    new, repetitions = int(cell.params["new"]), int(cell.params["repetitions"])
    return 2 * (before + new * (UNTIMED + repetitions)) if cell.device.startswith("cuda") else 0


def measure(race: Race, context: int, new: int, together: int, repetitions: int, before: int) -> Captured:
    """Capture both lanes, time them in turn, then check what came out; what cannot be is missing with the reason, and nothing else is."""
    sizes = [min(together, new - first) for first in range(0, new, together)]
    gc.collect()  # earlier graphs have memory of their own
    try:
        return _measured(race, context, new, sizes, repetitions, before)
    except Unsupported as error:
        why = str(error)
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        why = NO_ROOM
    gc.collect()  # what was made of the lanes: the rest of the cell needs its memory
    return Captured(None, sizes, {"missing": why})


def _measured(race: Race, context: int, new: int, sizes: list[int], repetitions: int, before: int) -> Captured:
    lanes = {name: _stretch(race, name, context, new, sizes[0], before) for name in LANES}
    for stretch in lanes.values():
        _through(stretch)
    race.job.progress(2 * (before + UNTIMED * new))
    with Watch() as watch:
        seconds = [_timed(race, lanes) for _ in range(repetitions)]
    about: dict[str, Any] = {name: _about(one) for name, one in lanes.items()}
    about |= {"together": sizes[0], "disturbed": watch.disturbed}
    return Captured(np.array(seconds), sizes, about, _contradictions(race, lanes["cell"]))


def _about(stretch: Stretch) -> dict[str, Any]:
    packed = {"packed": stretch.packed} if stretch.packed else {}
    return {"cache": stretch.name, "attention": stretch.attention, "off": stretch.off, **packed}


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
    witness = Witness(race.scheme, race.job.session.info)
    witness.see(stretch.evidence())
    return [f"captured: {text}" for text in witness.found]

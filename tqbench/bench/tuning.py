"""The best configuration of Triton's attention on the GPU that is here, found in a time that is set beforehand.

From the configuration in use each axis is walked outwards as long as that gets faster: what is larger than a size that was slower, or that
had no room in shared memory, is not compiled. What a configuration puts out is compared with what the one in use does before it may be
timed. The fastest few then run in turn with the one in use, and one takes its place if the whole interval of the ratio is above 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from tqbench.bench import attend
from tqbench.bench.ceiling import copies
from tqbench.bench.contender import relative
from tqbench.bench.data import vectors
from tqbench.bench.device import repeated
from tqbench.bench.plan import Geometry, Plan
from tqbench.core.errors import ConfigError, EvidenceError
from tqbench.core.presets import preset
from tqbench.kernels.attend import OP, _triton
from tqbench.kernels.triton import Config, Work, configuration
from tqbench.measure import clock
from tqbench.metrics.timing import Ratio, ratio

BUDGET = 150.0  # seconds
SCHEMES = ("turbo4", "turbo3", "q8_0", "bf16", "turbo2")  # one for each number of bits, the most wanted first
USES = ((128, True), (128, False), (64, True), (256, True), (64, False), (256, False))  # head_dim, and whether it decodes
AXES = {"programs": (1, 2, 3, 4, 6, 8), "tokens": (16, 32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2, 3), "rows": (8, 16, 32, 64, 128)}
PROMPT = 512  # queries of a prefill
CALLS, REPEATS = 20, 5  # of a first look
FINALISTS, ROUNDS = 3, 15

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Found:
    """What came of one kind of work."""

    work: Work
    used: Config  # before
    config: Config  # the fastest, or the one in use
    ratio: Ratio | None = None  # how many times as long the one in use takes; None: nothing else was fast enough to be held against it
    tried: int = 0
    wrong: tuple[tuple[Config, float], ...] = ()  # what computed something else, and how far off it was

    @property
    def better(self) -> bool:
        """Whether it is to take the place of the one in use."""
        return self.ratio is not None and self.ratio.low > 1


@dataclass
class Track:
    """One kind of work, and how fast it was done so far."""

    work: Work
    run: Callable[[Config], list[Call]]  # on as many copies as it takes to read from memory
    expected: Tensor
    tolerance: float
    device: str
    seconds: dict[Config, float | None] = field(default_factory=dict)  # None: it does not run, or not rightly
    wrong: dict[Config, float] = field(default_factory=dict)

    def look(self, config: Config) -> float | None:
        """Seconds of a call, the best of a few; None where it has no room or computes something else."""
        if config not in self.seconds:
            calls = self._sound(config)
            self.seconds[config] = None if calls is None else self._time(calls)
        return self.seconds[config]

    def _sound(self, config: Config) -> list[Call] | None:
        """What does the work, once every copy has been done rightly."""
        try:
            calls = self.run(config)
            error = max(relative(call(), self.expected) for call in calls)
        except Exception as reason:
            if type(reason).__module__.startswith("triton"):  # too much shared memory, too many registers: its errors share no class
                return None
            raise
        if error > self.tolerance:
            self.wrong[config] = error
            return None
        return calls

    def _time(self, calls: list[Call]) -> float:
        wait = clock.waiter(self.device)
        return min(clock.timed(partial(_often, calls, CALLS), wait) / CALLS for _ in range(REPEATS))

    def race(self, used: Config, rivals: list[Config]) -> dict[Config, Ratio]:
        """Each in turn with the one in use."""
        lanes = {str(i): partial(_often, self.run(config), CALLS) for i, config in enumerate((used, *rivals))}
        seconds = clock.interleaved(lanes, ROUNDS, wait=clock.waiter(self.device))
        return {config: ratio(seconds["0"], seconds[str(i)]) for i, config in enumerate(rivals, 1)}


def tune(tokens: int, budget: float = BUDGET, device: str = "cuda") -> Iterator[Found]:
    """What was found for each kind of work, the most wanted first, until the time is over."""
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} finds no CUDA device here, and configurations are tuned on the GPU that is to use them"
        )
    end = clock.seconds() + budget
    for head_dim, decoding in USES:
        for name in SCHEMES:
            if clock.seconds() >= end:
                return
            plan = Plan("attend", Geometry(head_dim=head_dim), (tokens,), (preset(name),), device=device)
            yield best(track(plan, decoding=decoding), end)


def best(of: Track, end: float) -> Found:
    """The fastest that is right, if it is faster than the one in use beyond doubt."""
    used = configuration(of.work)
    seconds = _walk(of, used, end)
    rivals = sorted((config for config in seconds if seconds[config] < seconds[used]), key=lambda config: seconds[config])
    ratios = of.race(used, rivals[:FINALISTS]) if rivals else {}
    winner = max(ratios, key=lambda config: ratios[config].low, default=used)
    return Found(of.work, used, winner, ratios.get(winner), len(of.seconds), tuple(of.wrong.items()))


def _walk(of: Track, used: Config, end: float) -> dict[Config, float]:
    """Seconds of what was tried and is right."""
    if (least := of.look(used)) is None:
        raise EvidenceError(f"attend/triton with {used} does not compute the same on every copy of the same data")
    here, moved = used, True
    axes = [axis for axis in AXES if axis != "rows" or not of.work.decoding]  # a few queries take the smallest block anyway
    while moved:
        moved = False
        for axis, step in product(axes, (1, -1)):
            while (there := _beside(here, axis, step)) is not None and there not in of.seconds and clock.seconds() < end:
                seconds = of.look(there)
                if seconds is None or seconds >= least:
                    break
                here, least, moved = there, seconds, True
    return {config: seconds for config, seconds in of.seconds.items() if seconds is not None}


def _beside(config: Config, axis: str, step: int) -> Config | None:
    """The configuration one size further along an axis, if there is one."""
    sizes, now = AXES[axis], getattr(config, axis)
    further = [size for size in sizes[::step] if (size - now) * step > 0]
    return replace(config, **{axis: further[0]}) if further else None


def track(plan: Plan, *, decoding: bool) -> Track:
    """What is to be done, and what the configuration in use makes of it."""
    given = vectors("gaussian", plan.geometry, plan.tokens[0]).at(plan.place)
    held = attend.Held.of(attend.filled(plan.schemes[0], plan, given), given, attend.exact(given))
    pairs, q = held.sides[: copies(held.moved, plan.device)], given.q
    if not decoding:
        g = plan.geometry
        prompt = min(PROMPT, plan.tokens[0])
        q = torch.randn(g.batch, g.heads, prompt, g.head_dim, generator=torch.Generator().manual_seed(1)).to(q)
        ends = list(range(plan.tokens[0] - prompt + 1, plan.tokens[0] + 1))
        pairs = tuple((replace(k, bounds=ends), replace(v, bounds=ends)) for k, v in pairs)
    start = plan.tokens[0] - q.shape[2]

    def run(config: Config | None) -> list[Call]:
        ready = [_triton.prepare(_triton.Switches(config=config), q, *pair, start) for pair in pairs]
        return [repeated(partial(one.run, q, given.scale), plan.device) for one in ready]

    off = next(impl for impl in OP.impls if impl.name == "triton").off(plan.place.dtype)
    expected = run(None)[0]().clone()
    work = _triton.prepare(_triton.Switches(), q, *pairs[0], start).work
    return Track(work, run, expected, attend.tolerance(plan.place, off), plan.device)


def _often(calls: list[Call], count: int) -> Any:
    """The copies in turn."""
    for i in range(count):
        calls[i % len(calls)]()

"""The best configuration of Triton's attention on the GPU that is here, by trying all that compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import torch

from tqbench.bench import attend
from tqbench.bench.ceiling import copies
from tqbench.bench.data import Vectors, vectors
from tqbench.bench.device import repeated
from tqbench.bench.plan import Geometry, Plan
from tqbench.core.presets import preset
from tqbench.kernels.attend import _triton
from tqbench.kernels.triton import Config, Work, configuration
from tqbench.measure import clock

SCHEMES = ("turbo4", "turbo3", "turbo2", "q8_0", "bf16")  # one for each number of bits
HEAD_DIMS = (64, 128, 256)
GRID = {"tokens": (16, 32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2, 3), "programs": (2, 4, 8)}
ROWS = {True: (16,), False: (32, 64, 128)}  # of a block: decoding, prefill
PROMPT = 512  # queries of a prefill
CALLS, REPEATS = 20, 5

Told = Callable[[Work, Config, float], None]


def tune(tokens: int, told: Told, device: str = "cuda") -> Iterator[tuple[Work, Config]]:
    """For each width, scheme and way of use, the fastest; what does not compile or does not fit is passed over."""
    for head_dim, name, decoding in product(HEAD_DIMS, SCHEMES, (True, False)):
        plan = Plan("attend", Geometry(head_dim=head_dim), (tokens,), (preset(name),), device=device)
        work, run = _calls(plan, decoding=decoding)
        times = {config: seconds for config in _configs(decoding=decoding) if (seconds := _time(run, config, device)) is not None}
        default = _time(run, configuration(replace(work, device="none")), device)
        if times:
            best = min(times, key=lambda config: times[config])
            told(work, best, (default or float("nan")) / times[best])
            yield work, best


def _configs(*, decoding: bool) -> Iterator[Config]:
    for rows, *rest in product(ROWS[decoding], *GRID.values()):
        yield Config(rows, *rest)


def _calls(plan: Plan, *, decoding: bool) -> tuple[Work, Callable[[Config], list[Callable[[], object]]]]:
    """What is to be done, and what does it with a configuration, on as many copies as it takes to read from memory."""
    given: Vectors = vectors("gaussian", plan.geometry, plan.tokens[0]).at(plan.place)
    store = attend.filled(plan.schemes[0], plan, given)
    held = attend.Held.of(store, given, attend.exact(given))
    pairs = held.sides[: copies(held.moved, plan.device)]
    q = given.q if decoding else torch.randn(*given.q.shape[:2], PROMPT, plan.geometry.head_dim).to(given.q)
    start = plan.tokens[0] - q.shape[2]
    if not decoding:
        ends = [start + i + 1 for i in range(PROMPT)]
        pairs = tuple((replace(k, bounds=ends), replace(v, bounds=ends)) for k, v in pairs)
    work = _triton.prepare(_triton.Switches(), q, *pairs[0], start).work

    def run(config: Config) -> list[Callable[[], object]]:
        ready = [_triton.prepare(_triton.Switches(config=config), q, *pair, start) for pair in pairs]
        return [repeated(lambda one=one: one.run(q, given.scale), plan.device) for one in ready]  # type: ignore[misc]

    return work, run


def _time(run: Callable[[Config], list[Callable[[], object]]], config: Config, device: str) -> float | None:
    """Seconds of a call, the best of a few; None where it does not run."""
    try:
        calls = run(config)
        for call in calls:
            call()
        wait = clock.waiter(device)
        return min(clock.timed(lambda: [calls[i % len(calls)]() for i in range(CALLS)], wait) / CALLS for _ in range(REPEATS))
    except Exception as error:
        if type(error).__module__.startswith("triton"):  # too much shared memory, too many registers: its errors share no class
            return None
        raise

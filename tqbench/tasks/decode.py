"""Decoding at depth: tokens per second and latency of single tokens after a context of so many ("tg128 @ d4096").

The context's keys and values come from the model's own prefill and are then packed by the scheme. Every token is the text's own next
one, so that all schemes run the same tokens at the same positions; the most likely one is chosen and read back all the same, as a step
needs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tqbench.core.record import Cell, Estimate
from tqbench.metrics import timing
from tqbench.tasks import Job, Result, _captured
from tqbench.tasks._race import SCORED, Race, metered, samples

ROUND = 8  # tokens that one cache decodes before it is the other's turn, at most; few tokens still make four rounds
STAGED = 16  # tokens of the repetition that times stages
TRACED = 1  # token of the step that is looked into
BEFORE = 1  # tokens on each cache before the timed ones: its buffers grow by doubling, and the first step after a context would pay for all


def steps(cell: Cell) -> int:
    """How many tokens are decoded, in both lanes and all repetitions."""
    new, repetitions = int(cell.params["new"]), int(cell.params["repetitions"])
    return 2 * (repetitions * (BEFORE + new) + BEFORE + min(STAGED, new) + TRACED + SCORED) + _captured.steps(cell, BEFORE)


def run(job: Job) -> Result:
    """Time the steps, then say where their time goes."""
    context, new, repetitions = (job.cell.params[name] for name in ("context", "new", "repetitions"))
    race = Race.of(job, context + BEFORE + new + SCORED)
    lanes = race.lanes(context)
    staged = race.staged(lanes, [1] * min(STAGED, new), BEFORE)  # first: it also warms up
    steps = race.traced(lanes, TRACED)
    turns = [race.timed(context, [1] * new, together(new), BEFORE) for _ in range(repetitions)]
    arrays, metering = samples(turns), race.metered(context, [1] * new, BEFORE)
    captured = _captured.measure(race, context, new, together(new), repetitions, BEFORE)
    device = {"steps": steps, "metered": metering, "captured": captured.about}
    fields = race.fields(turns, staged, device)
    found = {"metrics": metrics(arrays, new) | captured.metrics() | metered(device)}
    return Result(fields | found | {"audits": [*fields.get("audits", []), *captured.audits]}, arrays | captured.arrays())


def together(new: int) -> int:
    """The tokens of a round."""
    return max(1, min(ROUND, new // 4))


def metrics(arrays: dict[str, Any], new: int) -> dict[str, Estimate]:
    """From seconds [repetitions, 2, …], the model's own cache first."""
    own, rounds = (arrays["rounds"][:, lane].ravel() for lane in (0, 1))
    size = together(new)
    sizes = np.array([min(size, new - first) for first in range(0, new, size)], dtype=np.float64)
    tokens = np.tile(sizes, len(arrays["rounds"]))
    latency = arrays["moves"][:, 1].ravel()
    return {
        "decode_tps": timing.rate(tokens, rounds),
        **{f"decode_ms_p{round(100 * q)}": timing.quantile(latency, q, 1e3) for q in (0.5, 0.9, 0.99)},
        "decode_ratio": timing.ratio(own, rounds).estimate,
        "base_decode_tps": timing.rate(tokens, own),
    }

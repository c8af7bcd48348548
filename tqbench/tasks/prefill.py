"""Prefill: a text of so many tokens through an empty cache, in chunks; tokens per second, and the time until the first new token is known.

Protocol deploy: the tokens of a chunk attend to each other exact, as engines have it. Protocol strict: each sees what the scheme would hold
in decoding. Stages are those of one more chunk behind the whole text.
"""

from __future__ import annotations

from typing import Any

from tqbench.core.record import Cell, Estimate
from tqbench.metrics import timing
from tqbench.tasks import Job, Result
from tqbench.tasks._race import SCORED, Race, metered, samples


def pieces(params: dict[str, Any]) -> list[int]:
    """The chunks of the text."""
    context, chunk = params["context"], params["chunk"]
    return [min(chunk, context - first) for first in range(0, context, chunk)]


def tokens(cell: Cell) -> int:
    """How many tokens run through the model, in both lanes and all repetitions, besides the context of the stages."""
    context, chunk = int(cell.params["context"]), int(cell.params["chunk"])
    return 2 * (context * int(cell.params["repetitions"]) + 2 * chunk + SCORED)


def run(job: Job) -> Result:
    """Time the chunks, then say where their time goes."""
    params = job.cell.params
    moves, context = pieces(params), params["context"]
    race = Race.of(job, context + max(SCORED, moves[0]))
    steps = race.traced(race.lanes(0), moves[0])  # warms up, too
    turns = [race.timed(0, moves, 1, 0) for _ in range(params["repetitions"])]
    staged = race.staged(race.lanes(context), moves[:1], 0)
    arrays, device = samples(turns), {"steps": steps, "metered": race.metered(0, moves, 0)}
    return Result(race.fields(turns, staged, device) | {"metrics": metrics(arrays, context) | metered(device)}, arrays)


def metrics(arrays: dict[str, Any], context: int) -> dict[str, Estimate]:
    """From seconds [repetitions, 2, chunks], the model's own cache first. Chunks grow dearer with what is before them, so each is compared
    with its own twin and speeds are of the whole."""
    own, whole = (arrays["moves"][:, lane].sum(-1) for lane in (0, 1))
    ratios = timing.ratio(*(arrays["rounds"][:, lane].ravel() for lane in (0, 1))).estimate
    return {
        "prefill_tps": timing.mean(context / whole),
        "ttft_ms": timing.mean(1e3 * whole),
        "prefill_ratio": ratios,
        "base_prefill_tps": timing.mean(context / own),
    }

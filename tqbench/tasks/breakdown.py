"""A decoding step by the operations of the forward pass: how long each takes, and what no operation explains.

The marks at both ends of every operation cost time themselves, so the step is timed without them, too; how much longer it takes with them
stands beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tqbench.core.record import Cell, Estimate
from tqbench.metrics import timing
from tqbench.tasks import Job, Result
from tqbench.tasks._race import SCORED, Race, samples
from tqbench.tasks.decode import BEFORE, together

OUTSIDE = "model"  # what the model does between its operations: positions, masks, the loop over its layers


def tokens(cell: Cell) -> int:
    """How many tokens are decoded, in both lanes and all repetitions."""
    return 2 * (2 * int(cell.params["repetitions"]) * (BEFORE + int(cell.params["new"])) + SCORED)


def run(job: Job) -> Result:
    """Time steps without marks, then with them."""
    context, new, repetitions = (job.cell.params[name] for name in ("context", "new", "repetitions"))
    race = Race.of(job, context + BEFORE + new + SCORED)
    with job.session.operations():
        marked = [race.staged(race.lanes(context), [1] * new, BEFORE) for _ in range(repetitions)]  # first: it also warms up
    turns = [race.timed(context, [1] * new, together(new), BEFORE) for _ in range(repetitions)]
    staged, arrays = _sum(marked), samples(turns)
    return Result(race.fields(turns, staged) | {"metrics": metrics(arrays, staged)}, arrays)


def _sum(repetitions: list[dict[str, Any]]) -> dict[str, Any]:
    """All repetitions as one."""
    found: dict[str, Any] = {"moves": sum(one["moves"] for one in repetitions)}
    for lane in repetitions[0].keys() - {"moves"}:
        own = [one[lane] for one in repetitions]
        names = dict.fromkeys(name for one in own for name in one["stages"])
        found[lane] = {
            "whole": sum(one["whole"] for one in own),
            "stages": {name: sum(one["stages"].get(name, 0.0) for one in own) for name in names},
            "disturbed": None if all(one["disturbed"] is None for one in own) else any(one["disturbed"] for one in own),
        }
    return found


def metrics(arrays: dict[str, Any], staged: dict[str, Any]) -> dict[str, Estimate]:
    """From seconds [repetitions, 2, steps], and the stages of marked steps."""
    own = staged["cell"]
    named = sum(seconds for name, seconds in own["stages"].items() if name != OUTSIDE)
    step = timing.quantile(arrays["moves"][:, 1].ravel(), 0.5, 1e3)
    whole = 1e3 * own["whole"] / staged["moves"]
    return {
        "step_ms": step,
        "marked_ms": Estimate(whole),
        "marks_cost": Estimate(whole / (1e3 * float(np.mean(arrays["moves"][:, 1]))) - 1),
        "explained": Estimate(named / own["whole"]),
    }

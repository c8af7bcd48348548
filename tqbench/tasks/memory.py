"""Memory of a cache at a depth: bytes by part, bytes per token, how many tokens fit a gibibyte, and the peak of the process while it
decodes, beside it on CUDA that of the device's allocator: what tensors took, and what the allocator held.

Bytes are those of the arrays that exist, held against what the layouts declare. Nothing is timed.
"""

from __future__ import annotations

from typing import Any

from tqbench.core.record import Estimate
from tqbench.measure import memory
from tqbench.tasks import Job, Result
from tqbench.tasks._proof import GIB, fitting
from tqbench.tasks._race import SCORED, Race, Turn

PROVED = 2  # steps: their attention is the proof that what is held is what is read
STEPS = 2 * (PROVED + SCORED)  # tokens that run through the model besides the context


def run(job: Job) -> Result:
    """Fill the cache, decode a little, count."""
    context = job.cell.params["context"]
    race = Race.of(job, context + SCORED)
    held = race.context(context - PROVED)
    aside = sum(other.kv_bytes() for other in job.contexts.values())  # for the cells to come, not for this one
    lanes = race.lanes(context - PROVED)
    device = job.session.info.device
    memory.reset_peak(device)
    for _ in range(PROVED):
        lanes["cell"].move(1)
    peak, device_peak = memory.peak(), memory.device_peak(device)
    for _ in range(PROVED):
        lanes["own"].move(1)
    aside += held.kv_bytes()  # the model's own cache beside this one
    figures = _figures(lanes["cell"].cache, context)
    # What tensors took can be told apart; how much more of the device the allocator holds cannot.
    figures |= {f"device_peak_{name}": Estimate(float(most - aside * (name == "allocated"))) for name, most in device_peak.items()}
    fields = race.fields([Turn({"cell": []}, {}, None, None, lanes)], {})
    on_host = 0 if device_peak else aside
    return Result(fields | {"metrics": figures, "peak_bytes": None if peak is None else peak - on_host, "timing": {}}, {})


def _figures(cache: Any, context: int) -> dict[str, Estimate]:
    evidence, held = cache.evidence(), cache.kv_bytes()
    room = fitting(evidence) if evidence else GIB * context / held
    metrics = {"kv_bytes": held, "kv_bytes_per_token": held / context, "tokens_per_gib": room}
    return {name: Estimate(float(value)) for name, value in metrics.items()}

"""Any task of lm-evaluation-harness under a scheme, through its own API: it builds the requests and computes the scores, a session of ours
answers (`_harness.py`). Each request has its own proof: how much of what its answer attended was packed is counted request by request, and
one in which nothing was, because it is shorter than the scheme's window, is counted apart and shown.

The baseline answers the same requests in the same pieces, so that documents are paired and the identity control is equal to the last bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from tqbench.core.errors import Unsupported
from tqbench.core.presets import read
from tqbench.core.record import Cell, Estimate
from tqbench.metrics.paired import Bootstrap, blocks
from tqbench.metrics.shares import Z, share, share_change
from tqbench.tasks import Job, Result
from tqbench.tasks._terms import learned

DOCUMENTS, EACH = (
    1000,
    400,
)  # a first guess at a task whose definition is not read before it runs: documents, and tokens of all requests of one


def tokens(cell: Cell) -> int:
    """How many tokens run through the model, as a first guess; what such cells took here corrects it."""
    return int(cell.params["limit"] or DOCUMENTS) * min(EACH, 2 * int(cell.params["context"]))


def run(job: Job) -> Result:
    """Evaluate the cell, and the baseline if no cell of its setting was measured by this worker yet."""
    try:
        release = version("lm-eval")
    except PackageNotFoundError:
        raise Unsupported('tasks of lm-evaluation-harness need lm-eval; install with: pip install "tqbench[eval]"') from None
    from tqbench.tasks import _harness

    scheme = None if job.cell.scheme is None else read(job.cell.scheme)
    if scheme is not None and "documents" not in job.beside:
        job.beside["documents"] = _harness.evaluate(job, None).documents
    found = _harness.evaluate(job, scheme)
    job.beside.setdefault("documents", found.documents)
    scores, served = found.scores, found.served
    covered = np.array(served.coverage)
    fields: dict[str, Any] = {
        "model": dataclasses.asdict(job.session.info),
        "text": {
            "corpus": f"lm-eval {job.cell.params['task']}",
            "ids_sha256": served.fingerprint,
            "protocol": job.cell.params["protocol"],
            "requests": served.requests,
            "scored": len(scores.nll),
        },
        "harness": {"version": release, **found.facts},
        "metrics": metrics(found.score, found.documents, job.beside["documents"], scheme is None),
        "fingerprint": hashlib.sha256(scores.nll.tobytes()).hexdigest(),
    }
    if scheme is not None and served.witness is not None:
        fields["harness"] |= {"active": int((covered > 0).sum()), "least_coverage": float(covered.min())}
        fields["metrics"] |= {"eval_active": Estimate(float((covered > 0).mean()))}
        if len(scores.base_nll):
            fields["metrics"] |= {"eval_dnll": _dnll(scores, served.where)}
        fields |= {"calibration": learned(served.terms, served.about), **served.witness.prove(scores)}
    arrays = {"nll": scores.nll.astype(np.float32), "documents": found.documents}
    return Result(fields, arrays | ({"coverage": covered} if scheme is not None else {}))


def _dnll(scores: Any, where: Any) -> Estimate:
    """How much less likely each token of the answers became, in nats."""
    return Bootstrap(blocks(where)).estimate(scores.nll - scores.base_nll)


def metrics(score: tuple[float, float | None], documents: Any, base: Any, baseline: bool) -> dict[str, Estimate]:
    """The score with its interval: Wilson's where documents are right or wrong, else lm-eval's standard error. Against the baseline
    documents are paired: those that a scheme gained and lost."""
    value, stderr = score
    binary = len(documents) > 0 and bool(np.isin(documents, (0.0, 1.0)).all()) and math.isclose(value, documents.mean(), abs_tol=1e-9)
    if binary:
        found = {"eval_score": share(float(documents.sum()), len(documents))}
    else:
        found = {"eval_score": Estimate(value, *((value - Z * stderr, value + Z * stderr) if stderr else (None, None)))}
    if baseline or len(base) != len(documents) or not len(documents):
        return found
    same = documents == base
    if binary and bool(np.isin(base, (0.0, 1.0)).all()):
        delta = share_change(int((documents > base).sum()), int((documents < base).sum()), len(documents))
    else:
        delta = Bootstrap(blocks(np.arange(len(documents)))).estimate(documents - base)
    return found | {"eval_base": Estimate(float(base.mean())), "eval_delta": delta, "eval_same": share(float(same.sum()), len(same))}

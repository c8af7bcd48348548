"""The terms of a cell: kernel, protocol, and what its codecs have learned from text that it does not run."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from tqbench import corpora
from tqbench.core.scheme import Scheme
from tqbench.core.session import Ids, Terms
from tqbench.corpora._held_out import held_out
from tqbench.tasks import Job


def terms(job: Job, texts: list[Ids], scheme: Scheme | None, *, quiet: bool = False) -> tuple[Terms, dict[str, Any]]:
    """The terms, and the record of the text that codecs learn from: none of `texts`, which the cell runs."""
    found = Terms(job.cell.kernel, job.cell.params["protocol"], quiet=quiet)
    if scheme is None or not scheme.calibrated:
        return found, {}
    wanted = job.cell.params["calibration"]
    text = corpora.load(wanted["corpus"], job.root)
    stretches = held_out(job.session.tokenize(text.text), texts, wanted["tokens"], wanted["seed"])
    about = {
        "corpus": text.name,
        "sha256": text.sha256,
        "ids_sha256": hashlib.sha256(np.concatenate(stretches).astype("<i8").tobytes()).hexdigest(),
        "tokens": sum(map(len, stretches)),
        "seed": wanted["seed"],
    }
    return dataclasses.replace(found, calibration=job.session.calibrate(stretches)), about


def learned(terms: Terms, about: dict[str, Any]) -> dict[str, Any]:
    """What the record says of the calibration, once codecs have been fitted."""
    return about | {"learned_sha256": terms.calibration.sha256()} if terms.calibration else {}

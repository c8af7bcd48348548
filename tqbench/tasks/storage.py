"""Storage: the cache of a context packed, saved to a file, and taken back: bytes by part before and after the entropy stage, the time that
takes, and the time to the first token after it, in turn with computing the context anew.

What was taken back goes on beside a cache that was never saved: their logits must be equal to the last bit, or there are no figures. How
far what it holds is from the exact keys and values is told per layer and vector (a token of a head), by the worst ones, not by one mean.
Files are read back while the system still holds them in memory: figures are those of a warm store, not of a disk.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tqbench.cache.storage import Origin, Saved, load, save
from tqbench.core.files import cache_root
from tqbench.core.record import Cell, Estimate
from tqbench.core.state import Agreement
from tqbench.kernels import entropy
from tqbench.measure import clock, stages
from tqbench.measure.noise import Watch
from tqbench.metrics import timing
from tqbench.tasks import Job, Result
from tqbench.tasks._race import SCORED, Lane, Race, Turn

EXACT = 8  # tokens that a cache from a file and one that was never saved run beside each other
TABLES_OVER = 1 << 20  # tokens: what codecs have learned is there once, whatever is saved, and counted as if so many tokens were
TIMED = ("recompute", "save", "load", "first")


def tokens(cell: Cell) -> int:
    """How many tokens run through the model besides the first prefill of the context."""
    repetitions = int(cell.params["repetitions"])
    return repetitions * (int(cell.params["context"]) + 2) + 1 + 3 * EXACT + 2 * SCORED


@dataclass
class Shelf:
    """A file, and the caches that go into it and come from it."""

    race: Race
    path: Path
    context: int
    origin: Origin
    coder: str
    level: int | None
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def held(self) -> Any:
        """The context in the model's own cache, prefilled once."""
        return self.race.context(self.context)

    def packed(self) -> Any:
        """The cell's cache of the context; the baseline's is there already."""
        race = self.race
        return self.held if race.scheme is None else race.job.session.new_cache(race.scheme, race.terms, self.held)

    def save(self, cache: Any = None) -> Saved:
        """From the exact context to the file; or a cache that is packed already."""
        return save(self.path, (cache or self.packed()).state(), self.origin, self.coder, self.level)

    def load(self) -> Any:
        """From the file to a cache."""
        return self.race.job.session.new_cache(self.race.scheme, self.race.terms, load(self.path, self.origin))

    def first(self) -> None:
        """Load, and run the first token after the context."""
        found: list[Any] = []
        self.seconds.setdefault("load", []).append(clock.timed(lambda: found.append(self.load()), self._wait))
        self._step(found[0])

    def recompute(self) -> None:
        """The same without a file: the context through the model's own cache, and the first token after it."""
        self._step(self.race.job.session.context(self.race.ids[: self.context]))

    def _step(self, cache: Any) -> None:
        session = self.race.job.session
        session.choose(session.forward(self.race.ids[self.context : self.context + 1], cache, last=True))

    @property
    def _wait(self) -> Any:
        return clock.waiter(self.race.job.session.info.device)

    def staged(self) -> dict[str, Any]:
        """Where the time of saving, and of loading up to the first token, goes."""
        found: dict[str, Any] = {"moves": 1}
        for name, run in (("save", self.save), ("load", self.first)):
            with Watch() as watch, stages.timed(clock.marks(self.race.job.session.info.device)) as marked:
                whole = clock.timed(run, self._wait)
            found[name] = {"whole": whole, "stages": marked.seconds, "disturbed": watch.disturbed}
        return found

    def timed(self, repetitions: int) -> Turn:
        """All of it in turn."""
        self.seconds.clear()
        with Watch() as watch:
            rounds = clock.interleaved({"recompute": self.recompute, "save": self.save, "first": self.first}, repetitions, 0, self._wait)
        self.seconds |= rounds
        return Turn({"cell": rounds["first"]}, {}, watch.foreign, watch.disturbed, {})


def run(job: Job) -> Result:
    """Save, load, compare, then time."""
    params = job.cell.params
    context, repetitions = params["context"], params["repetitions"]
    race = Race.of(job, context + EXACT + SCORED)
    held = race.context(context)
    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        origin = Origin.of(job.session, race.scheme, race.ids[:context])
        shelf = Shelf(race, Path(folder) / "cache.tqc", context, origin, params["entropy"], params["level"])
        never_saved = job.session.new_cache(None, context=held) if race.scheme is None else shelf.packed()
        never_saved.verify()
        saved, loaded = shelf.save(never_saved), shelf.load()
        agreements = loaded.agreement(held)
        equal = _equal(shelf, never_saved, loaded)
        staged = shelf.staged()
        turn = shelf.timed(repetitions)
    job.progress(tokens(job.cell))
    fields = race.fields([dataclasses.replace(turn, lanes=_lanes(shelf, loaded))], staged)
    fields["timing"] |= {"repetitions": repetitions}
    fields["audits"] = [*fields.get("audits", []), *([] if equal else [DIFFER])]
    fields["storage"] = _storage(shelf, saved, agreements, fields)
    return Result(
        fields | {"metrics": metrics(fields["storage"], shelf.seconds, agreements)},
        {"seconds": np.array([shelf.seconds[name] for name in TIMED])},
    )


DIFFER = "the logits of a cache that was taken back from its file differ from those of the same cache that was never saved"


def _folder() -> Path:
    """On the disk of the model cache: temporary folders may lie in memory."""
    cache_root().mkdir(parents=True, exist_ok=True)
    return cache_root()


def _equal(shelf: Shelf, never_saved: Any, loaded: Any) -> bool:
    """Whether both give the same logits for the next tokens, to the last bit."""
    session, ids = shelf.race.job.session, shelf.race.ids
    equal = True
    for at in range(shelf.context, shelf.context + EXACT):
        one, two = (session.forward(ids[at : at + 1], cache) for cache in (never_saved, loaded))
        equal &= bool((one == two).all())
    return equal


def _lanes(shelf: Shelf, loaded: Any) -> dict[str, Lane]:
    """The model's own cache and the one from the file, at the same place in the text: what follows is scored."""
    session, rest = shelf.race.job.session, shelf.race.ids[shelf.context :]
    own = Lane(session, session.new_cache(None, context=shelf.held), rest, None)
    own.move(EXACT)
    return {"own": own, "cell": Lane(session, loaded, rest, None, at=EXACT)}


def _storage(shelf: Shelf, saved: Saved, agreements: list[Agreement], fields: dict[str, Any]) -> dict[str, Any]:
    """Bytes of the file by part, and how well each layer agrees with the exact keys and values."""
    chosen, tables = entropy.coder(shelf.coder), fields.get("ledger", {}).get("tables", 0)
    values = shelf.race.job.session.info.head_dim * sum(len(one.cosine) for one in agreements)
    return {
        "coder": {"name": shelf.coder, "level": chosen.check(shelf.level), "package": chosen.described},
        "before": dict(saved.before),
        "after": dict(saved.after),
        "overhead": saved.overhead,
        "file": saved.nbytes,
        "fp16": 2 * values,
        "tables": tables,
        "tables_over": TABLES_OVER,
        "tables_share": tables * shelf.context / TABLES_OVER,
        "tokens": shelf.context,
        "equal_steps": EXACT,
        "agreement": [{"layer": one.layer, "side": one.side, **_worst([one])} for one in agreements],
    }


def _worst(agreements: list[Agreement]) -> dict[str, float]:
    """The worst vectors, and what one in a hundred falls short of."""
    cosine, error = (np.concatenate([getattr(one, name) for one in agreements]) for name in ("cosine", "error"))
    return {
        "cos_min": float(cosine.min()),
        "cos_p01": float(np.quantile(cosine, 0.01)),
        "err_p99": float(np.quantile(error, 0.99)),
        "err_max": float(error.max()),
    }


def metrics(stored: dict[str, Any], seconds: dict[str, list[float]], agreements: list[Agreement]) -> dict[str, Estimate]:
    """The figures. Ratios are against the same tokens in 16 bits; megabytes per second count these, too, so that schemes compare."""
    recompute, saving, loading, first = (np.array(seconds[name]) for name in TIMED)
    worst = {side: _worst([one for one in agreements if one.side == side]) for side in ("k", "v")}
    return {
        "stored_bytes": Estimate(float(stored["file"])),
        "stored_bytes_per_token": Estimate(stored["file"] / stored["tokens"]),
        "stored_ratio": Estimate(stored["fp16"] / (stored["file"] + stored["tables_share"])),
        "entropy_gain": Estimate(sum(stored["before"].values()) / sum(stored["after"].values())),
        "save_ms": timing.mean(1e3 * saving),
        "load_ms": timing.mean(1e3 * loading),
        "save_mbps": timing.mean(stored["fp16"] / 1e6 / saving),
        "load_mbps": timing.mean(stored["fp16"] / 1e6 / loading),
        "ttft_load_ms": timing.mean(1e3 * first),
        "ttft_recompute_ms": timing.mean(1e3 * recompute),
        "ttft_gain": timing.ratio(recompute, first).estimate,
        **{f"{name.replace('_', f'_{side}_')}": Estimate(value) for side, found in worst.items() for name, value in found.items()},
    }

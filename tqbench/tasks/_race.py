"""The model's own cache and a scheme's, timed in turn on the same tokens of a real text, so that what disturbs the machine meets both.

A cell of the baseline races the model's own cache against itself: what that shows is the instrument.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import read
from tqbench.core.record import Estimate
from tqbench.core.scheme import Scheme
from tqbench.core.session import Ids, Session, Terms, TokenScores
from tqbench.measure import clock, environment, gpu, memory, stages, trace
from tqbench.measure.noise import Watch
from tqbench.tasks import Job
from tqbench.tasks._proof import prove
from tqbench.tasks._terms import learned
from tqbench.tasks._terms import terms as terms_of

SCORED = 8  # tokens that follow what was timed, scored beside the model's own cache: did the scheme have an effect?
CONTEXT_BYTES = 1 << 30  # of contexts that are kept for the cells to come
ROOM = 8  # on a CUDA device: contexts may take one part in so many of what is free beside them, because lanes take several times as much
METERED = 2.0  # seconds that a GPU's power and use are read for
STRETCHES = 64  # repetitions for that, at most
HOST = "reference (host)"


@dataclass
class Lane:
    """A cache on its way through the text, with the seconds of each of its moves."""

    session: Session
    cache: Any
    tokens: Ids
    wait: Callable[[], None] | None
    rounds: list[Sequence[int]] = field(default_factory=list)  # to come: how many tokens each move of a round takes
    at: int = 0
    moves: list[float] = field(default_factory=list)
    busy: float = 0.0  # seconds of processor time that the moves took

    def move(self, count: int) -> None:
        """Run the next tokens and choose what would follow."""
        piece = self.tokens[self.at : self.at + count]
        self.at += count
        run = lambda: self.session.choose(self.session.forward(piece, self.cache, last=True))  # noqa: E731 - what is timed, in one line
        before = clock.processor()
        self.moves.append(clock.timed(run, self.wait))
        self.busy += clock.processor() - before

    def start(self, before: int) -> None:
        """Tokens that are not timed: buffers find their size."""
        if before:
            self.move(before)
        self.moves.clear()
        self.busy = 0.0

    def round(self) -> None:
        """The moves of the next round."""
        for count in self.rounds.pop(0):
            self.move(count)


@dataclass(frozen=True)
class Turn:
    """One repetition: seconds by round and by move of each lane, and how many cores others used meanwhile."""

    rounds: dict[str, list[float]]
    moves: dict[str, list[float]]
    foreign: float | None
    disturbed: bool | None
    lanes: dict[str, Lane]

    def cores(self) -> dict[str, float]:
        """How many cores each lane kept busy."""
        return {name: lane.busy / sum(lane.moves) for name, lane in self.lanes.items() if sum(lane.moves)}


@dataclass(frozen=True)
class Race:
    """Both lanes of a cell, as often as they are wanted."""

    job: Job
    scheme: Scheme | None
    terms: Terms
    about: dict[str, Any]  # the text that codecs learned from
    ids: Ids  # of the context and everything after it

    @staticmethod
    def of(job: Job, tokens: int) -> Race:
        """The race of a cell over so many tokens of its text."""
        params, info = job.cell.params, job.session.info
        if params["context"] > info.max_positions:
            raise ConfigError(f"context {params['context']} is longer than the {info.max_positions} positions of {info.name}")
        ids = job.session.tokenize(job.text.text)[: tokens + 1]
        if len(ids) <= tokens:
            raise ConfigError(f"the text has {len(ids)} tokens, this cell needs {tokens + 1}")
        scheme = None if job.cell.scheme is None else read(job.cell.scheme)
        terms, about = terms_of(job, [ids], scheme, quiet=True)
        race = Race(job, scheme, terms, about, ids)
        race._check_forms()
        return race

    def _check_forms(self) -> None:
        """What crosses to another framework and back is timed for nobody's good."""
        for e in () if self.scheme is None else self.job.session.new_cache(self.scheme, self.terms).evidence():
            if slow := [op for op in ("encode", "decode", "attend") if getattr(e, op) == HOST]:
                raise Unsupported(
                    f"{' and '.join(slow)} of codec {e.codec!r} runs as {HOST} here, whose speed says nothing about the scheme"
                )

    def context(self, tokens: int) -> Any:
        """K and V after the first tokens of the text, prefilled once per worker; None if there are none."""
        if not tokens:
            return None
        key, kept = hashlib.sha256(self.ids[:tokens].tobytes()).hexdigest(), self.job.contexts
        if key not in kept:
            found = self.job.session.context(self.ids[:tokens])
            self.job.progress(tokens)
            if found.kv_bytes() + sum(other.kv_bytes() for other in kept.values()) > self._room():
                kept.clear()
            kept[key] = found
        return kept[key]

    def _room(self) -> int:
        """Bytes that kept contexts may take."""
        free = memory.device_free(self.device)
        return CONTEXT_BYTES if free is None else max(CONTEXT_BYTES, free // ROOM)

    @property
    def device(self) -> str:
        """Where the model is."""
        return self.job.session.info.device

    def lanes(self, context: int) -> dict[str, Lane]:
        """The model's own cache and the cell's, both after the context."""
        return {name: self.lane(name, context) for name in ("own", "cell")}

    def lane(self, name: str, context: int) -> Lane:
        """One of them."""
        held, session = self.context(context), self.job.session
        cache = session.new_cache(None, context=held) if name == "own" else session.new_cache(self.scheme, self.terms, held)
        return Lane(session, cache, self.ids[context:], clock.waiter(self.device))

    def timed(self, context: int, moves: Sequence[int], together: int, before: int) -> Turn:
        """Every lane makes these moves in rounds of so many, in turn, after tokens `before` that are not timed."""
        lanes = self.lanes(context)
        for lane in lanes.values():
            lane.start(before)
            lane.rounds = [moves[i : i + together] for i in range(0, len(moves), together)]
        wait, rounds = lanes["own"].wait, len(lanes["own"].rounds)
        with Watch() as watch:
            seconds = clock.interleaved({name: lane.round for name, lane in lanes.items()}, rounds, 0, wait)
        self.job.progress(2 * (before + sum(moves)))
        return Turn(seconds, {name: lane.moves for name, lane in lanes.items()}, watch.foreign, watch.disturbed, lanes)

    def staged(self, lanes: dict[str, Lane], moves: Sequence[int], before: int) -> dict[str, Any]:
        """Where the time of such moves goes. Marks cost time, so nothing else comes from this repetition."""
        found: dict[str, Any] = {"moves": len(moves)}
        for name, lane in lanes.items():
            lane.start(before)
            with Watch() as watch, stages.timed(clock.marks(self.device)) as marked:
                for count in moves:
                    lane.move(count)
            found[name] = {"whole": sum(lane.moves), "stages": marked.seconds, "disturbed": watch.disturbed}
        self.job.progress(2 * (before + sum(moves)))
        return found if self.scheme else {"moves": found["moves"], "cell": found["own"]}

    def traced(self, lanes: dict[str, Lane], count: int) -> dict[str, Any]:
        """What a move of so many tokens asks of torch: apart from all that is timed, which it would slow down."""
        found = {name: trace.trace(lambda lane=lane: lane.move(count), self.device).data(count) for name, lane in lanes.items()}  # type: ignore[misc]
        self.job.progress(2 * count)
        return found if self.scheme else {"cell": found["own"]}

    def metered(self, context: int, moves: Sequence[int], before: int) -> dict[str, Any]:
        """What the GPU did while a lane ran alone, in repetitions of its own, so that reading it disturbs nothing that is timed."""
        if not self.device.startswith("cuda"):
            return {}
        found = gpu.find(self.device)
        if isinstance(found, str):
            return {"missing": found}
        names = ("own", "cell") if self.scheme else ("cell",)
        return {"gpu": gpu.plainly(found.facts()), **{name: self._metered(found, name, context, moves, before) for name in names}}

    def _metered(self, found: gpu.Gpu, name: str, context: int, moves: Sequence[int], before: int) -> dict[str, Any]:
        meter, stretches = gpu.Meter(found), 0
        while meter.seconds < METERED and stretches < STRETCHES:
            lane, stretches = self.lane(name, context), stretches + 1
            lane.start(before)
            with meter:
                for count in moves:
                    lane.move(count)
        return {"tokens": stretches * sum(moves), **meter.summary()}

    def fields(self, turns: list[Turn], staged: dict[str, Any], device: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the record says beside metrics. The last repetition is checked: its last step by the reference, its effect by scores."""
        info, lanes = self.job.session.info, turns[-1].lanes
        lanes["cell"].cache.verify()
        evidence, scores = lanes["cell"].cache.evidence(), self._scores(lanes)
        shown = (
            {} if self.scheme is None else prove([evidence], scores, self.scheme, info) | {"calibration": learned(self.terms, self.about)}
        )
        return {
            "model": dataclasses.asdict(info),
            "text": text(self.job, self.ids),
            "fingerprint": hashlib.sha256(scores.nll.tobytes()).hexdigest(),
            "timing": noise(turns)
            | {"threads": environment.threads(), "waiting": environment.wait_policy(), "openmp": environment.openmp()},
            "stages": staged,
            "device": device or {},
            **shown,
        }

    def _scores(self, lanes: dict[str, Lane]) -> TokenScores:
        lane, own = lanes["cell"], lanes["own"].cache
        next_ones = lane.tokens[lane.at : lane.at + SCORED + 1]
        return self.job.session.score(next_ones[:-1], lane.cache, next_ones[1:], own, SCORED)


def text(job: Job, ids: Ids) -> dict[str, Any]:
    """What was run, by hash."""
    return {
        "corpus": job.text.name,
        "origin": job.text.origin,
        "sha256": job.text.sha256,
        "ids_sha256": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
        "protocol": job.cell.params["protocol"],
    }


def noise(turns: list[Turn]) -> dict[str, Any]:
    """How often it was timed, and whether the machine was left alone; None where the system does not tell."""
    foreign = [turn.foreign for turn in turns if turn.foreign is not None]
    return {
        "repetitions": len(turns),
        "rounds": sum(len(turn.rounds["cell"]) for turn in turns),
        "foreign_cores": max(foreign, default=None),
        "disturbed": any(turn.disturbed for turn in turns) if foreign else None,
        "cores": turns[-1].cores(),
    }


def samples(turns: list[Turn]) -> dict[str, Any]:
    """Every sample, to keep beside the record: seconds [repetitions, 2, moves] and [repetitions, 2, rounds], own cache first."""
    kinds = {"moves": [turn.moves for turn in turns], "rounds": [turn.rounds for turn in turns]}
    return {kind: np.array([[one["own"], one["cell"]] for one in found]) for kind, found in kinds.items()}


def metered(device: dict[str, Any]) -> dict[str, Estimate]:
    """What a record's device says of the cell's own lane, as metrics; nothing where it says nothing."""
    meter, steps = device.get("metered", {}).get("cell", {}), device.get("steps", {}).get("cell", {})
    joules, own = meter.get("energy_j"), device.get("metered", {}).get("own", {})
    found = {
        "gpu_utilisation": meter.get("utilisation"),
        "gpu_power_w": meter.get("power_w"),
        "joules_per_token": None if joules is None else joules / meter["tokens"],
        "base_joules_per_token": None if own.get("energy_j") is None else own["energy_j"] / own["tokens"],
        "host_waits": steps.get("host_waits"),
    }
    return {name: Estimate(float(value)) for name, value in found.items() if value is not None}

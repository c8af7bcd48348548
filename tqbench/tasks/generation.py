"""Generation: the baseline continues stretches of real text greedily, and schemes are held against these trajectories in two ways, apart.

Free-running: a scheme decodes by its own choices from the same prompt until one differs; survival is the share of prompts that still agree
after n tokens. Teacher-forced: it is led along the whole trajectory, so that every token is compared at the same place, whatever came
before: KLD, and how often its first choice is the baseline's. A first difference is an accident of one close decision; a KLD is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tqbench.core.errors import ConfigError
from tqbench.core.record import Cell, Estimate
from tqbench.core.session import Ids, TokenScores
from tqbench.metrics.paired import Bootstrap, blocks
from tqbench.metrics.shares import half_life, survival
from tqbench.tasks import Job, Result
from tqbench.tasks._prompts import Beside, Prefix, Setup, fingerprint, forced, greedy


def tokens(cell: Cell) -> int:
    """How many tokens run through the model: each prompt, then its continuation alone and led."""
    return int(cell.params["prompts"]) * (int(cell.params["context"]) + 2 * steps(cell))


def steps(cell: Cell) -> int:
    """How many tokens are decoded one by one for each prompt, at most."""
    return int(cell.params["new"])


def run(job: Job) -> Result:
    """Every prompt, beside the baseline's trajectory."""
    params, session = job.cell.params, job.session
    if params["context"] + params["new"] > session.info.max_positions:
        much = f"context {params['context']} and {params['new']} new tokens"
        raise ConfigError(f"{much} are more than the {session.info.max_positions} positions of {session.info.name}")
    found = prompts(params, session.tokenize(job.text.text), session.info.bos_token)
    setup = Setup.of(job, found)
    traced = [_Going(setup, prompt).trace() for prompt in found]
    # The trajectories too: schemes are only comparable along the same ones.
    parts = (part for prompt, one in zip(found, traced, strict=True) for part in (prompt, one.trajectory))
    rows = [one.row(i, prompt) for i, (prompt, one) in enumerate(zip(found, traced, strict=True))]
    return setup.result(parts, rows, [one.scores for one in traced], partial(metrics, traced, baseline=setup.scheme is None))


@dataclass(frozen=True)
class Traced:
    """The baseline's trajectory, how many of its tokens the cell's own choices agree with, and the scores of those it is led along."""

    trajectory: Ids
    agreed: int
    scores: TokenScores

    @property
    def ended(self) -> bool:
        """Whether it went all the way without differing."""
        return self.agreed == len(self.trajectory)

    def row(self, index: int, prompt: Ids) -> dict[str, Any]:
        """For the record. `led`: where its first choice first differs when it is led, which only rounding may put elsewhere."""
        differs = np.flatnonzero(self.scores.place > 0)
        return {
            "prompt": index,
            "sha256": fingerprint((prompt,)),
            "trajectory_sha256": fingerprint((self.trajectory,)),
            "tokens": len(self.trajectory),
            "agreed": self.agreed,
            "led": int(differs[0]) if len(differs) else len(self.trajectory),
            "kld": float(self.scores.kld.mean()),
        }


@dataclass
class _Going:
    """One prompt through the cell's cache, and the model's own where its trajectory is not known yet."""

    setup: Setup
    prompt: Ids

    @property
    def job(self) -> Job:
        """The cell's."""
        return self.setup.job

    def trace(self) -> Traced:
        """Free-running, then led. All but the last token of the prompt are run once for both."""
        params, session, chunk = self.job.cell.params, self.job.session, self.job.cell.params["chunk"]
        mine, own = self.setup.prefixes(self.prompt[:-1])
        trajectory = self._trajectory(own)
        agreed = len(trajectory) if self.setup.scheme is None else self._agreed(mine, trajectory)
        kept = Beside(session, self.job.beside).kept(("logits", self.prompt.tobytes()), len(trajectory))
        cache, against = mine.cache(), None if kept else own.cache()
        step = 1 if params["protocol"] == "deploy" else min(chunk, len(trajectory))
        scores = forced(session, (cache, against), self.prompt[-1:], trajectory, (chunk, step), kept)
        mine.seen(cache)
        self.job.progress(len(trajectory))
        return Traced(trajectory, agreed, scores)

    def _trajectory(self, own: Prefix) -> Ids:
        """The baseline's greedy continuation, decoded once per setting. A token that ends an answer is its last."""
        key = ("trajectory", self.prompt.tobytes())
        if key not in self.job.beside:
            self.job.beside[key] = np.array(list(self._free(own.cache())), dtype=np.int64)
        found: Ids = self.job.beside[key]
        return found

    def _free(self, cache: Any) -> Any:
        session = self.job.session
        logits = session.forward(self.prompt[-1:], cache, last=True)
        for token in greedy(session, cache, logits, self.job.cell.params["new"], session.info.stop_tokens):
            self.job.progress(1)
            yield token

    def _agreed(self, mine: Prefix, trajectory: Ids) -> int:
        """How many tokens its own choices share with the trajectory, before the first that differs."""
        cache, agreed = mine.cache(), 0
        for said, token in zip(self._free(cache), trajectory, strict=False):
            if said != token:
                break
            agreed += 1
        mine.seen(cache)
        return agreed


def prompts(params: dict[str, Any], ids: Ids, bos: int | None) -> list[Ids]:
    """Stretches of the text that share no token, drawn with the seed, each with BOS before it if the model wants one."""
    length = params["context"] - (bos is not None)
    starts = np.arange(0, len(ids) - length + 1, length)
    if len(starts) < params["prompts"]:
        raise ConfigError(
            f"{params['prompts']} prompts of {params['context']} tokens need {params['prompts'] * length}, the text has {len(ids)}"
        )
    chosen = np.random.default_rng(params["seed"]).permutation(starts)[: params["prompts"]]
    first = np.empty(0, np.int64) if bos is None else np.array([bos])
    return [np.concatenate([first, ids[start : start + length]]) for start in chosen]


def metrics(traced: list[Traced], scores: TokenScores, where: Any, *, baseline: bool) -> dict[str, Estimate]:
    """Survival of the free run, and what leading says; of the baseline its own perplexity along its trajectories."""
    boot = Bootstrap(blocks(where))
    if baseline:
        return {"forced_nll": boot.estimate(scores.nll)}
    curve = survival([one.agreed for one in traced], [one.ended for one in traced])
    half = half_life(curve)
    return {
        "survival": curve[-1].share,
        **({"half_life": half} if half else {}),
        "forced_kld": boot.positive(scores.kld),
        "forced_top1": boot.estimate((scores.place == 0).astype(np.float64)),
        "forced_dnll": boot.estimate(scores.nll - scores.base_nll),
        "forced_nll": boot.estimate(scores.nll),
    }

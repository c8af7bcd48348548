"""Scoring until gates are decided, without a model: every metric that a gate may be about must be looked at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tqbench.core.gate import METRICS
from tqbench.core.session import TokenScores
from tqbench.corpora.recipes import Window
from tqbench.metrics.verdict import least, looks
from tqbench.tasks.perplexity import FLOOR_SHARE, FLOOR_TOKENS, _again, _Pass

WINDOWS, TOKENS = 240, 40
LIMITS = dict.fromkeys(METRICS["perplexity"], 100.0) | {"top1": 0.1, "top5": 0.1}


class Session:
    """Scores that are clearly far from every limit, and differ between windows."""

    info = SimpleNamespace(vocab=10, dtype="float32")

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def new_cache(self, *_: Any) -> Any:
        return SimpleNamespace(evidence=list)

    def score(self, tokens: Any, *_: Any) -> TokenScores:
        base = self.rng.gamma(2, 1, len(tokens))
        change, kld = self.rng.normal(0, 0.01, len(tokens)), self.rng.gamma(2, 0.01, len(tokens))
        return TokenScores(base + change, base, kld, self.rng.integers(0, 2, len(tokens)))


@pytest.mark.parametrize("metric", LIMITS)
def test_every_metric_can_end_it(metric: str) -> None:
    gate = {"schemes": ["q8_0"], "metric": metric, "limit": LIMITS[metric]}
    params = {"context": TOKENS, "judging": {"gates": [gate], "beside": 1}}
    job: Any = SimpleNamespace(session=Session(), cell=SimpleNamespace(params=params), progress=lambda _: None, beside={})
    scheme: Any = SimpleNamespace()
    found = _Pass(job, scheme, SimpleNamespace(), 16)  # type: ignore[arg-type]
    look = found.until_decided([Window(np.arange(TOKENS), np.arange(TOKENS)) for _ in range(WINDOWS)])
    first = next(end for end in looks(WINDOWS) if end >= least(metric))
    assert (len(found.windows), look["look"]["at"]) == (first, looks(WINDOWS).index(first) + 1)


def test_the_floor_is_measured_on_a_share_of_what_was_scored_until_it_was_decided() -> None:
    """Else the interval shrinks with the text and the floor does not: what was decided would be called inconclusive."""
    few = FLOOR_TOKENS // TOKENS
    assert _again({"context": TOKENS}, 100 * few) == few
    assert _again({"context": TOKENS, "judging": {}}, 100 * few) == 100 * few // FLOOR_SHARE
    assert _again({"context": TOKENS, "judging": {}}, few // 2) == few // 2

"""Statistics of timed samples against numbers that one can see, and how often their intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tqbench.core.record import Estimate
from tqbench.metrics import timing

RUNS = 1000


def held(found: list[Estimate], truth: float) -> int:
    """In how many runs the interval holds it."""
    return sum(one.ends[0] <= truth <= one.ends[1] for one in found)


def noise(shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Times around 1, as quiet machines have them or with a long tail; their mean and the truth of a sum are 1."""
    rng = np.random.default_rng(sum(shape))
    return rng.normal(1, 0.05, shape) if kind == "quiet" else rng.lognormal(-0.045, 0.3, shape)


def test_a_handful_of_samples() -> None:
    found = timing.spread([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (found.median, found.least) == (3.0, 1.0)
    assert found.p90 == pytest.approx(4.6)
    assert found.spread == pytest.approx(2 / 3)
    assert timing.spread([7.0]).spread == 0


def test_a_rate_counts_hiccups() -> None:
    found = timing.rate(np.full(10, 8.0), np.array([1.0] * 9 + [11.0]))
    assert found.value == 80 / 20
    assert found.low is not None
    assert found.high is not None
    assert found.low < 4 < found.high


def test_a_rate_and_its_inverse_have_the_same_interval_upside_down() -> None:
    seconds = noise((8,), "tailed")
    speed, pace = timing.mean(1 / seconds), timing.rate(np.ones(8), seconds)
    assert 0 < speed.ends[0] < speed.value < speed.ends[1]
    back = timing.rate(seconds, np.ones(8))
    assert pace.value == pytest.approx(1 / back.value)
    assert np.sqrt(np.prod(pace.ends)) == pytest.approx(1 / np.sqrt(np.prod(back.ends)))


def test_ratios_are_paired() -> None:
    """A machine that is ten times as slow in some rounds changes no ratio."""
    found = timing.ratio([2.0, 6.0, 2.0], [1.0, 3.0, 1.0])
    assert (found.median, found.low, found.high) == (2, 2, 2)
    pace = np.array([1.0] * 10 + [10.0] * 10)
    assert timing.ratio(pace, 2 * pace).estimate == Estimate(0.5, 0.5, 0.5)


@pytest.mark.parametrize(("pairs", "cut", "confidence"), [(1, 0, 0.0), (3, 0, 0.75), (6, 0, 0.96875), (9, 1, 0.9609375), (20, 5, 0.958611)])
def test_the_interval_of_a_ratio_is_that_of_a_sign_test(pairs: int, cut: int, confidence: float) -> None:
    found = timing.ratio([float(i) for i in range(1, pairs + 1)], [1.0] * pairs)
    assert (found.low, found.high) == (1 + cut, pairs - cut)
    assert found.confidence == pytest.approx(confidence, abs=1e-6)
    assert (found.estimate.low is not None) == (confidence >= timing.CONFIDENCE)


def test_many_pairs_are_no_trouble() -> None:
    found = timing.ratio(np.linspace(0.5, 1.5, 4001), np.ones(4001)).estimate
    assert 0.98 < found.ends[0] < 1 < found.ends[1] < 1.02


def test_few_rounds_have_no_interval() -> None:
    for found in (timing.rate(np.ones(5), np.ones(5)), timing.ratio(np.ones(5), np.ones(5)).estimate, timing.mean(np.ones(3))):
        assert (found.value, found.low, found.high) == (1.0, None, None)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_a_quantile_needs_ten_samples_beyond_it(q: float) -> None:
    needed = timing.needed(q)
    assert needed == pytest.approx(10 / (1 - q))
    assert timing.quantile(np.linspace(1, 2, needed - 1), q).low is None
    assert timing.quantile(np.linspace(1, 2, needed), q).low is not None
    assert timing.quantile(np.linspace(1, 2, needed), q, 1e3).value == pytest.approx(1000 + 1000 * q)


@pytest.mark.parametrize("kind", ["quiet", "tailed"])
@pytest.mark.parametrize("rounds", [6, 24])
def test_means_and_rates_hold_the_truth_as_often_as_they_say(rounds: int, kind: str) -> None:
    seconds, least = noise((RUNS, rounds), kind), 930 if kind == "quiet" or rounds > 6 else 910  # six of a long tail show it seldom
    assert least <= held([timing.mean(run) for run in seconds], 1.0) <= 970
    assert least <= held([timing.rate(np.ones(rounds), run) for run in seconds], 1.0) <= 970


@pytest.mark.parametrize("rounds", [6, 9, 24])
def test_ratios_hold_the_truth_at_least_as_often_as_they_say(rounds: int) -> None:
    own, truth = noise((RUNS, rounds), "tailed"), float(np.exp(-0.045))
    assert held([timing.ratio(run, np.ones(rounds)).estimate for run in own], truth) >= 935


@pytest.mark.parametrize(("q", "samples"), [(0.5, 24), (0.9, 100), (0.99, 1000)])
def test_quantiles_hold_the_truth_at_least_as_often_as_they_say(q: float, samples: int) -> None:
    """Also beyond the longest sample of most runs, where draws from these would end."""
    rng = np.random.default_rng(1)
    found = [timing.quantile(rng.exponential(1, samples), q) for _ in range(RUNS)]
    truth = float(-np.log(1 - q))
    assert 935 <= held(found, truth) <= 985
    assert sum(one.ends[1] < truth for one in found) <= 0.035 * RUNS


def test_of_rounds_that_repeat_only_what_differs_between_repetitions_is_chance():
    """Rounds of 1 to 9 ms, each with 3 % of noise: 19 intervals of 20 hold the truth, and none reaches as far as rounds differ."""
    work, draw = np.array([1.0, 1.0, 1.0, 9.0]), np.random.default_rng(7)
    held, widths = 0, []
    for _ in range(400):
        seconds = work * np.exp(draw.normal(0, 0.03, (3, 4)))
        found = timing.rate_again(np.ones((3, 4)), seconds)
        held += found.low <= 4 / work.sum() / np.exp(0.03**2 / 2) <= found.high
        widths.append(found.high / found.low)
        assert found.value == pytest.approx(12 / seconds.sum())
    assert 0.88 <= held / 400 <= 0.99
    assert max(widths) < 1.3 < timing.rate(np.ones(12), np.tile(work, 3)).high / timing.rate(np.ones(12), np.tile(work, 3)).low
    assert timing.rate_again(np.ones((1, 12)), np.ones((1, 12))).low is not None
    assert timing.rate_again(np.ones((2, 2)), np.ones((2, 2))).low is None


@pytest.mark.parametrize("spells", [False, True], ids=["quiet", "slow spells"])
@pytest.mark.parametrize(("repetitions", "rounds"), [(2, 4), (2, 16), (3, 16)])
def test_one_round_that_does_most_of_the_work_is_most_of_the_chance(repetitions: int, rounds: int, spells: bool) -> None:
    """A round ten times as long as the others, as when a scheme packs many tokens at once, in a ratio to rounds that are all alike; also
    where others slow both down to a half for a while. Were all rounds to stray by as many seconds, 60 to 90 % would hold the truth."""
    draw, work = np.random.default_rng(rounds), 1 + 9.0 * (np.arange(rounds) == 1)
    found = []
    for _ in range(RUNS):
        pace = 1.0 + (draw.random((repetitions, rounds)) < 0.2 * spells)
        own, mine = pace * draw.lognormal(0, 0.05, (2, repetitions, rounds))
        found.append(timing.rate_again(own, work * mine))
    assert 0.92 * RUNS <= held(found, rounds / work.sum()) <= 0.99 * RUNS

"""Shares of few with Wilson's interval, survival with Kaplan and Meier's, against numbers worked out by hand and simulation."""

from __future__ import annotations

from math import isclose

import numpy as np
import pytest

from tqbench.core.record import Estimate
from tqbench.metrics.shares import able, half_life, share, share_change, survival


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),  # of Wilson's formula with z = 1.959964
    [(20, 20, 0.8389, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (1, 4, 0.0456, 0.6994)],
)
def test_wilson(hits: int, of: int, low: float, high: float) -> None:
    found = share(hits, of)
    assert found.value == hits / of
    assert found.ends == pytest.approx((low, high), abs=1e-4)


def test_wilson_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    for p in (0.1, 0.5, 0.9):
        drawn = [share(int(hits), 20).ends for hits in rng.binomial(20, p, 2000)]
        assert 0.92 < np.mean([low <= p <= high for low, high in drawn]) < 0.99


def test_without_ends_survival_is_a_plain_share() -> None:
    agreed = [0, 2, 2, 5, 8, 8]
    steps = survival(agreed, [n == 8 for n in agreed])
    assert [step.after for step in steps] == list(range(9))
    for step in steps:
        left = sum(n >= step.after for n in agreed)
        wanted = share(left, len(agreed))
        assert step.share.value == pytest.approx(wanted.value)
        assert step.share.ends == pytest.approx(wanted.ends)


def test_an_answer_that_ended_counts_up_to_its_end() -> None:
    """Worked out by hand: of 4, one parts at token 1; of the 2 left that go past 3 tokens, one parts at token 3."""
    steps = survival([1, 2, 3, 6], [False, True, False, True])
    assert [step.at_risk for step in steps] == [4, 4, 4, 2, 2, 1, 1]
    assert [step.share.value for step in steps] == pytest.approx([1, 1, 3 / 4, 3 / 4, 3 / 8, 3 / 8, 3 / 8])
    greenwood = (3 / 8) ** 2 * (1 / (4 * 3) + 1 / (2 * 1))
    count = (3 / 8) * (5 / 8) / greenwood
    assert steps[-1].share.ends == pytest.approx(share(3 / 8 * count, count).ends)
    everyone = survival([1, 2, 3, 6], [False, False, False, True])
    assert steps[-1].share.ends[1] - steps[-1].share.ends[0] > everyone[-1].share.ends[1] - everyone[-1].share.ends[0]


def test_when_all_part_none_is_left_and_that_is_not_certain() -> None:
    last = survival([0, 1, 1], [False] * 3)[-1].share
    assert last.value == 0
    assert last.ends == share(0, 3).ends


def test_half_life() -> None:
    assert half_life(survival([9] * 8, [True] * 8)) is None
    few = half_life(survival([2, 4, 6, 9], [False, False, False, True]))
    assert few == Estimate(5.0)  # too few to say until when it may be
    many = half_life(survival([n // 10 for n in range(100)], [False] * 100))
    assert many is not None
    assert (many.low, many.value, many.high) == (5.0, 5.0, 6.0)  # 60, 50 and 40 of 100 go beyond


def test_a_change_of_paired_shares() -> None:
    same = share_change(0, 0, 20)
    assert same.value == 0
    assert isclose(-same.ends[0], same.ends[1])
    assert same.ends[1] > 0.1  # none of 20 is not none
    better = share_change(9, 1, 40)
    assert better.value == pytest.approx(0.2)
    assert 0 < better.ends[0] < 0.2 < better.ends[1] < 0.4


def test_a_change_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    for up, down in ((0.1, 0.1), (0.05, 0.3), (0.4, 0.4)):
        drawn = rng.multinomial(40, (up, down, 1 - up - down), 2000)
        found = [share_change(int(gained), int(lost), 40).ends for gained, lost, _ in drawn]
        assert np.mean([low <= up - down <= high for low, high in found]) > 0.93


def test_able() -> None:
    assert able(share(10, 20))
    assert not able(share(9, 20))

"""The statistics: known cases, coverage of the interval on made data, and the blocks."""

from __future__ import annotations

import numpy as np
import pytest

from tqbench.core.session import TokenScores
from tqbench.metrics import paired


def test_a_block_is_a_window_where_there_are_enough() -> None:
    windows = np.repeat(np.arange(30), 100)
    assert np.array_equal(paired.blocks(windows), windows)


def test_few_windows_are_cut_into_equal_pieces_that_stay_inside_them() -> None:
    windows = np.repeat([0, 1, 2, 3], 480)
    block = paired.blocks(windows)
    assert np.bincount(block).tolist() == [60] * 32
    assert all(len(np.unique(windows[block == b])) == 1 for b in range(32))


@pytest.mark.parametrize("length", [64, 480])
def test_an_interval_holds_the_truth_as_often_as_it_says(length: int) -> None:
    rng = np.random.default_rng(1)
    windows = np.repeat(np.arange(40), length)
    held = 0
    for _ in range(200):
        shared = np.repeat(rng.normal(0, 0.3, 40), length)  # tokens of a window move together
        values = 0.1 + shared + rng.normal(0, 1, len(windows))
        estimate = paired.Bootstrap(paired.blocks(windows)).estimate(values)
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= 0.1 <= estimate.high
    assert 180 <= held <= 199  # 95 % of 200, give or take the chance of 200 draws


def test_a_quantile_needs_tokens_beyond_it() -> None:
    scores = TokenScores(np.ones(640), np.ones(640), np.linspace(0, 1, 640), np.zeros(640, np.int64))
    found = paired.quality(scores, np.repeat(np.arange(10), 64))
    assert "kld_p90" in found
    assert "kld_p99" not in found


def test_quality_of_a_shift_is_the_shift() -> None:
    rng = np.random.default_rng(2)
    base = rng.gamma(2, 1, 640)
    scores = TokenScores(base + 0.5, base, np.full(640, 0.25), np.tile([0, 1, 7, 0], 160))
    found = paired.quality(scores, np.repeat(np.arange(10), 64))
    assert np.isclose(found["ln_ratio"].value, 0.5)
    assert np.isclose(found["dppl"].value, found["ppl"].value - found["base_ppl"].value)
    assert found["ln_ratio"].low is not None
    assert np.isclose(found["ln_ratio"].low, 0.5)  # the same shift on every token leaves nothing to doubt
    assert (found["top1"].value, found["top5"].value, found["kld"].value) == (0.5, 0.75, 0.25)


def test_a_measurement_that_repeats_itself_has_no_floor() -> None:
    base = np.random.default_rng(3).gamma(2, 1, 640)
    windows = np.repeat(np.arange(10), 64)
    assert paired.floor(base, paired.recut(base, base, windows)) == 0.0
    gap = paired.recut(base, base + np.random.default_rng(4).normal(0, 0.01, 640), windows)
    assert 0 < paired.floor(base, gap) < 0.01 * np.exp(base.mean())


def test_positions_fall_into_octaves() -> None:
    n = 256
    scores = TokenScores(np.ones(n), np.zeros(n), np.ones(n), np.zeros(n, np.int64))
    rows = paired.by_position(scores, np.arange(n))
    assert [(row["from"], row["to"]) for row in rows][:3] == [(0, 1), (2, 3), (4, 7)]
    assert sum(row["tokens"] for row in rows) == n


def test_the_worst_decile_is_found_where_only_late_positions_break() -> None:
    rng = np.random.default_rng(0)
    windows, positions = np.repeat(np.arange(40), 200), np.tile(np.arange(16, 216), 40)
    values = rng.exponential(0.01, len(windows)) + (positions >= 196)
    found = paired.worst_decile(values, windows, positions)
    assert found.value == pytest.approx(values[positions >= 196].mean(), rel=1e-12)
    assert found.low is not None
    assert found.low <= 1.01 <= (found.high or 0)
    assert values.mean() < 0.12
    few = windows < 29
    assert paired.worst_decile(values[few], windows[few], positions[few]).low is None


def test_a_quantile_has_about_the_interval_that_sorting_whole_draws_would_give() -> None:
    rng = np.random.default_rng(5)
    values, windows = rng.exponential(1, 40000) * np.repeat(rng.uniform(0.5, 1.5, 400), 100), np.repeat(np.arange(400), 100)
    boot = paired.Bootstrap(windows)
    found = boot.quantile(values, 0.9)
    low, high = boot.ends(np.array([np.quantile(values.reshape(400, 100)[draw], 0.9) for draw in boot.draws[:400]]))
    assert found.value == np.quantile(values, 0.9)
    assert found.ends[1] - found.ends[0] == pytest.approx(high - low, rel=0.25)  # 400 draws, and an upper end that is further out
    assert low < found.value < high


def test_where_all_tokens_are_alike_so_is_their_quantile() -> None:
    found = paired.Bootstrap(np.repeat(np.arange(40), 100)).quantile(np.ones(4000), 0.9)
    assert (found.value, found.ends) == (1, (1, 1))


def test_what_is_positive_is_drawn_in_units_of_its_error() -> None:
    rng = np.random.default_rng(6)
    values, windows = rng.lognormal(0, 1.5, 3200), np.repeat(np.arange(32), 100)
    usual, own, root = (
        paired.Bootstrap(windows).estimate(values),
        paired.Bootstrap(windows).positive(values),
        paired.Bootstrap(windows).positive(values, of=np.sqrt),
    )
    assert own.value == pytest.approx(usual.value)
    assert own.ends[1] > usual.ends[1]
    assert 0 < own.ends[0] < own.value
    assert root.ends == pytest.approx(np.sqrt(own.ends))


@pytest.mark.parametrize("values", [np.zeros(320), np.where(np.arange(320) < 10, 1.0, 0.0), np.where(np.arange(320) < 10, 1.0, -1e-12)])
def test_blocks_without_anything_above_zero_have_the_usual_interval(values: np.ndarray) -> None:
    windows = np.repeat(np.arange(32), 10)
    assert paired.Bootstrap(windows).positive(values) == paired.Bootstrap(windows).estimate(values)


def test_blocks_that_are_all_alike_leave_nothing_to_doubt() -> None:
    found = paired.Bootstrap(np.repeat(np.arange(32), 10)).positive(np.full(320, 0.1))
    assert found.ends == pytest.approx((0.1, 0.1))

"""The greedy allocation against dynamic programming in exact arithmetic, bit for bit, and against exhaustion."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from tqbench.kernels import allocate

GREEDY, DYNAMIC = (impl.load() for impl in allocate.OP.impls)


def error(variances, widths):
    return sum(Fraction(v) / 4**b for v, b in zip(variances, widths, strict=True))


def of_a_pca(draw, n):
    rows = draw.standard_normal((n + 3, n)) @ draw.standard_normal((n, n))
    return np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2


SPECTRA = {
    "exponential": lambda draw, n: draw.exponential(size=n),
    "power law": lambda draw, n: np.arange(1.0, n + 1) ** -draw.uniform(0.2, 3),
    "steep": lambda _, n: np.exp(-np.linspace(0, 60, n)),
    "all equal": lambda draw, n: np.full(n, draw.exponential()),
    "powers of four": lambda draw, n: 4.0 ** draw.integers(-4, 5, size=n),  # whose gains are equal again and again
    "small whole numbers": lambda draw, n: draw.integers(0, 5, size=n).astype(float),
    "some zeros": lambda draw, n: np.where(draw.random(n) < 0.5, 0.0, draw.exponential(size=n)),
    "all zeros": lambda _, n: np.zeros(n),
    "the whole range of doubles": lambda draw, n: 10.0 ** draw.uniform(-320, 300, size=n),
    "of a PCA": of_a_pca,
}


def spectra(kind, draw):
    return SPECTRA[kind](draw, int(draw.integers(1, 9)))


@pytest.mark.parametrize("kind", SPECTRA)
def test_the_greedy_is_the_dynamic_program_bit_for_bit(kind):
    draw = np.random.default_rng(list(SPECTRA).index(kind))
    for _ in range(300):
        variances = spectra(kind, draw).tolist()
        budget, most = int(draw.integers(0, 5 * len(variances) + 2)), int(draw.choice((1, 2, 3, 16)))
        assert GREEDY(variances, budget, most) == DYNAMIC(variances, budget, most), (variances, budget, most)


def test_a_spectrum_as_long_as_a_head():
    variances = (np.arange(1.0, 129) ** -1.5).tolist()
    for budget in (0, 128, 300):
        assert GREEDY(variances, budget, 16) == DYNAMIC(variances, budget, 16)


def test_nothing_is_better_than_the_dynamic_program():
    """Every allocation there is, on small spectra; of equal ones it takes the cheapest."""
    draw = np.random.default_rng(1)
    for _ in range(50):
        variances, budget = draw.integers(0, 6, size=3).astype(float).tolist(), int(draw.integers(0, 10))
        every = [widths for widths in product(range(4), repeat=3) if sum(widths) <= budget]
        least = min(error(variances, widths) for widths in every)
        found = DYNAMIC(variances, budget, 3)
        assert error(variances, found) == least
        assert sum(found) == min(sum(widths) for widths in every if error(variances, widths) == least)


def in_doubles(variances, budget, most):
    """The dynamic program as OnlyTerp/kvtc has it, in floating point."""
    least, choices = [0.0] + [np.inf] * budget, []
    for variance in variances:
        found, chosen = [np.inf] * (budget + 1), [0] * (budget + 1)
        for used in range(budget + 1):
            for bits in range(min(most, budget - used) + 1):
                if least[used] + variance / 4.0**bits < found[used + bits]:
                    found[used + bits], chosen[used + bits] = least[used] + variance / 4.0**bits, bits
        least = found
        choices.append(chosen)
    spent = int(np.argmin(least))
    widths = []
    for chosen in reversed(choices):
        widths.append(chosen[spent])
        spent -= chosen[spent]
    return widths[::-1]


@pytest.mark.parametrize("kind", ["exponential", "power law", "all equal", "powers of four", "small whole numbers", "some zeros"])
def test_the_projects_own_program_in_doubles_finds_nothing_better(kind):
    """It finds the same where no sum is rounded or no two gains are equal; else rounding decides which of equal components is served."""
    draw = np.random.default_rng(2)
    for _ in range(30):
        variances = spectra(kind, draw).tolist()
        budget = int(draw.integers(0, 4 * len(variances)))
        mine, theirs = GREEDY(variances, budget, 16), in_doubles(variances, budget, 16)
        assert mine == theirs or kind == "all equal", (variances, budget)
        assert error(variances, mine) <= error(variances, theirs)


def test_gains_that_doubles_would_lose_are_taken():
    """Beside an error of 1 a gain of 1e-20 leaves no trace in a sum of doubles, and the program in doubles stops."""
    variances = [1.0, 1e-20]
    assert GREEDY(variances, 20, 4) == DYNAMIC(variances, 20, 4) == [4, 4]
    assert in_doubles(variances, 20, 4) == [4, 0]


@pytest.mark.parametrize(("budget", "widths"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (4, [3, 1, 0]), (8, [4, 3, 1]), (100, [16, 16, 16])])
def test_by_hand(budget, widths):
    """Gains are in the order of λ / 4^b: 64, 16 = 16 = 16 …, and of equal ones the later component is first."""
    assert GREEDY([64.0, 8.0, 0.9], budget, 16) == widths


def test_equal_gains_go_to_the_later_component():
    assert GREEDY([1.0, 1.0, 1.0], 2, 16) == DYNAMIC([1.0, 1.0, 1.0], 2, 16) == [0, 1, 1]
    assert GREEDY([4.0, 1.0], 2, 16) == DYNAMIC([4.0, 1.0], 2, 16) == [1, 1]


def test_what_gains_nothing_gets_nothing():
    assert GREEDY([3.0, 0.0, 0.0], 50, 16) == DYNAMIC([3.0, 0.0, 0.0], 50, 16) == [16, 0, 0]
    assert GREEDY([], 4, 16) == DYNAMIC([], 4, 16) == []

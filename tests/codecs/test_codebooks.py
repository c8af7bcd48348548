"""The codebooks: converged where they say so, the tables of projects where they do not. Cells are integrated in closed form here."""

import math
from itertools import pairwise
from statistics import NormalDist

import pytest

from tqbench.codecs.blocks import codebooks

# Mean squared error of the optimal table over the variance: of N(0, 1), and of one coordinate of a random direction in n dimensions.
GAUSSIAN = {1: 0.36338, 2: 0.117482, 3: 0.034548, 4: 0.009501}
SPHERE = {
    64: {1: 0.35839, 2: 0.11453, 3: 0.03339, 4: 0.00913},
    96: {1: 0.3601, 2: 0.1155, 3: 0.03377, 4: 0.00925},
    128: {1: 0.36089, 2: 0.11600, 3: 0.03397, 4: 0.00932},
    256: {1: 0.36214, 2: 0.11674, 3: 0.03426, 4: 0.00941},
}
PANTER_DITE = math.sqrt(3) * math.pi / 2  # times 4^-bits: the error of many levels

# The four highest levels that the projects' own functions return for head_dim 128, times √128.
VLLM = {3: (0.24498359, 0.7556455, 1.34318001, 2.15034955), 4: (1.25625757, 1.61788176, 2.06844712, 2.73092222)}
MLX_VLM = {3: (0.24328381, 0.75146109, 1.33449054, 2.12964225), 4: (1.23045063, 1.58591151, 2.02832651, 2.67384648)}


def gaussian(low, high):
    """(mass, first moment) of N(0, 1) in a cell."""
    density = [math.exp(-t * t / 2) / math.sqrt(2 * math.pi) for t in (low, high)]
    return (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2, density[0] - density[1]


def sphere(n):
    """The same for one coordinate, times √n, of a random direction: with t = √n sin θ the density is cos^(n−2) θ."""

    def powers(low, high):
        """∫ cos^m θ dθ, by parts from m − 2."""
        mass = high - low if n % 2 == 0 else math.sin(high) - math.sin(low)
        for m in range(2 + n % 2, n - 1, 2):
            ends = [math.cos(t) ** (m - 1) * math.sin(t) for t in (low, high)]
            mass = (ends[1] - ends[0]) / m + (m - 1) / m * mass
        return mass

    whole = powers(-math.pi / 2, math.pi / 2)

    def cell(low, high):
        a, b = (math.asin(max(-1.0, min(1.0, t / math.sqrt(n)))) for t in (low, high))
        moment = math.sqrt(n) * (math.cos(a) ** (n - 1) - math.cos(b) ** (n - 1)) / (n - 1)
        return powers(a, b) / whole, moment / whole

    return cell


def cells(levels, integral):
    """(level, mass, mean) of each cell between the midpoints of neighbouring levels."""
    edges = [-math.inf, *((a + b) / 2 for a, b in pairwise(levels)), math.inf]
    for level, (low, high) in zip(levels, pairwise(edges), strict=True):
        mass, moment = integral(low, high)
        yield level, mass, moment / mass


def loss(levels, integral):
    """E (t − c)² for t of unit variance."""
    return 1 + sum(mass * (level * level - 2 * level * mean) for level, mass, mean in cells(levels, integral))


@pytest.mark.parametrize("bits", range(1, 9))
def test_gaussian_levels_are_the_means_of_their_cells(bits):
    for level, _, mean in cells(codebooks.levels("gaussian", bits, 128), gaussian):
        assert level == pytest.approx(mean, abs=1e-10)


@pytest.mark.parametrize("n", [16, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("bits", range(1, 9))
def test_sphere_levels_are_the_means_of_their_cells(bits, n):
    for level, mass, mean in cells(codebooks.levels("sphere", bits, n), sphere(n)):
        assert level == pytest.approx(mean, abs=1e-10 + 1e-14 / mass)  # the closed form of a thin cell is a difference of large numbers


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_gaussian_distortion_is_the_known_optimum(bits):
    assert loss(codebooks.levels("gaussian", bits, 128), gaussian) == pytest.approx(GAUSSIAN[bits], rel=1e-3)


@pytest.mark.parametrize("n", SPHERE)
@pytest.mark.parametrize("bits", GAUSSIAN)
def test_sphere_distortion_is_the_known_optimum(bits, n):
    assert loss(codebooks.levels("sphere", bits, n), sphere(n)) == pytest.approx(SPHERE[n][bits], rel=1e-3)


@pytest.mark.parametrize("n", SPHERE)
def test_the_gaussian_table_costs_under_three_percent_on_the_sphere(n):
    for bits in GAUSSIAN:
        assert loss(codebooks.levels("gaussian", bits, n), sphere(n)) < 1.03 * loss(codebooks.levels("sphere", bits, n), sphere(n))


def test_one_bit_of_the_sphere_is_its_mean_magnitude():
    """E|t| = √n Γ(n/2) / (√π Γ((n + 1)/2))."""
    for n in (16, 64, 128):
        mean = math.sqrt(n / math.pi) * math.exp(math.lgamma(n / 2) - math.lgamma((n + 1) / 2))
        assert codebooks.levels("sphere", 1, n)[1] == pytest.approx(mean, rel=1e-12)


def test_wide_tables_approach_the_law_of_many_levels():
    ratios = [loss(codebooks.levels("gaussian", bits, 128), gaussian) * 4**bits / PANTER_DITE for bits in range(4, 9)]
    assert ratios == sorted(ratios)
    assert 0.99 < ratios[-1] < 1


@pytest.mark.parametrize("name", ["gaussian", "sphere", "turbo", "turbo_historic", "vllm"])
def test_tables_are_symmetric_and_ascending(name):
    for bits in codebooks.widths(name):
        levels = codebooks.levels(name, bits, 128)
        assert len(levels) == 2**bits
        assert list(levels) == sorted(set(levels))
        assert levels == pytest.approx([-level for level in reversed(levels)], abs=1e-9)


def test_printed_tables_have_the_widths_that_were_printed():
    assert codebooks.widths("turbo") == (2, 3, 4)
    assert codebooks.widths("turbo_historic") == (4,)
    assert codebooks.widths("gaussian") == tuple(range(1, 9))


def test_boundaries_are_those_that_the_fork_prints():
    """Its constants are for vectors of length 1 in 128 dimensions, with six decimals."""
    printed = {
        ("turbo", 2): (0.086728,),
        ("turbo", 3): (0.043589, 0.091775, 0.154259),
        ("turbo_historic", 4): (0.013963, 0.028293, 0.043430, 0.060009, 0.079142, 0.103361, 0.145560),
    }
    for (name, bits), positive in printed.items():
        bounds = codebooks.boundaries(name, bits, 128)
        upper = [bound / math.sqrt(128) for bound in bounds[len(bounds) // 2 + 1 :]]
        assert bounds[len(bounds) // 2] == 0
        assert upper == pytest.approx(positive, abs=1.01e-6)


def test_the_historic_table_is_the_start_of_the_iteration():
    """The means of 16 equiprobable Gaussian bins."""
    edges = [NormalDist().inv_cdf(i / 16) for i in range(8, 16)] + [math.inf]
    means = [gaussian(low, high)[1] * 16 for low, high in pairwise(edges)]
    assert codebooks.levels("turbo_historic", 4, 128)[8:] == pytest.approx(means, abs=2e-5)


@pytest.mark.parametrize("bits", [3, 4])
def test_tables_of_projects_stop_where_theirs_do(bits):
    assert codebooks.levels("vllm", bits, 128)[-4:] == pytest.approx(VLLM[bits], abs=1e-8)
    assert codebooks.levels("mlx_vlm", bits, 128)[-4:] == pytest.approx(MLX_VLM[bits], abs=2e-6)  # float32: sums in another order


@pytest.mark.parametrize(("bits", "distortion"), [(6, 9.9e-4), (8, 1.55e-4)])
def test_a_hundred_iterations_are_too_few_for_wide_tables(bits, distortion):
    """1.6 times the optimum at 6 bits and 4 times at 8; at 4 bits it is 0.06 %."""
    assert loss(codebooks.levels("mlx_vlm", bits, 128), sphere(128)) == pytest.approx(distortion, rel=0.02)
    assert loss(codebooks.levels("mlx_vlm", 4, 128), sphere(128)) == pytest.approx(SPHERE[128][4], rel=2e-3)


def test_what_vllm_stops_short_of_is_nothing_at_its_widths():
    for bits in (3, 4):
        assert loss(codebooks.levels("vllm", bits, 128), gaussian) == pytest.approx(GAUSSIAN[bits], rel=1e-4)

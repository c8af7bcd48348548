"""Runs of coefficients: codes against the formula, errors against encoding and decoding, the dynamic program against all allocations."""

from itertools import count, product

import numpy as np
import pytest
import torch

from tqbench.codecs.blocks import minifloat, runs
from tqbench.codecs.blocks.runs import Kind, Run

RNG = np.random.default_rng(0)


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def restored(c, bits):
    return runs.dequantize(*runs.quantize(c, bits), bits, c.dtype)


# --- types


@pytest.mark.parametrize("bits", [2, 4])
def test_uniform_codes_are_those_of_the_formula(bits):
    c = normal(50, 16)
    codes, scale, shift = runs.quantize(c, bits)
    for row in range(50):
        low, high = float(c[row].min()), float(c[row].max())
        kept = np.float64(np.float16((high - low) / (2**bits - 1))), np.float64(np.float16(low))
        assert (scale[row].item(), shift[row].item()) == kept
        expected = np.clip(np.round((c[row].numpy() - kept[1]) / kept[0]), 0, 2**bits - 1)
        assert codes[row].tolist() == expected.tolist()
        # half a step, and what rounding of the two parameters may shift
        assert (restored(c[row], bits) - c[row]).abs().max() <= kept[0] / 2 + 2**-9 * (high - low)


def test_eight_bits_are_e4m3_about_the_mean():
    c = normal(50, 64) * 3 + 7
    codes, scale, shift = runs.quantize(c, 8)
    assert torch.equal(shift, c.mean(-1, keepdim=True).half())
    assert torch.equal(scale, (c - shift).abs().amax(-1, keepdim=True).half())
    fitting = ((c - shift) * (448 / scale.double())).clamp(-448, 448)
    assert torch.equal(codes, minifloat.encode(fitting, "e4m3"))
    assert torch.equal(restored(c, 8), shift + scale.double() / 448 * minifloat.decode(codes, "e4m3", torch.float64))
    away = (c - shift).abs()
    assert ((restored(c, 8) - c).abs() <= away / 16 * 1.001 + scale * 2**-16).all()  # three bits of mantissa


@pytest.mark.parametrize("bits", runs.BITS)
@pytest.mark.parametrize("fill", [0.0, -3.25, 1e-30])
def test_constants_are_their_shift(bits, fill):
    c = torch.full((3, 16), fill)
    assert torch.equal(restored(c, bits), c.half().float())


@pytest.mark.parametrize("bits", runs.BITS)
def test_a_run_of_one_is_an_fp16_number_in_five_bytes(bits):
    c = normal(40, 1)
    off = (restored(c, bits) - c).abs()
    assert torch.equal(restored(c, bits), c.half().double()) if bits < 8 else (off <= (c.half() - c).abs()).all()  # e4m3 of the rest
    assert Kind(1, bits).nbytes == 5


def test_bytes_of_runs():
    """Two fp16 parameters, and the codes."""
    assert [Kind(16, bits).nbytes for bits in runs.BITS] == [8, 12, 20]
    assert [Kind(1024, bits).nbytes for bits in runs.BITS] == [260, 516, 1028]


# --- errors


@pytest.mark.parametrize("kind", [Kind(1, 2), Kind(16, 4), Kind(64, 8), Kind(256, 2)])
def test_errors_are_those_of_encoding_and_decoding(kind, monkeypatch):
    monkeypatch.setattr(runs, "AT_ONCE", 5000)
    c = normal(2, 20, 300) * torch.linspace(5, 0.1, 300)
    (measured,) = runs.errors(c, [kind]).values()
    starts = range(0, 300 - kind.size + 1, kind.stride)
    assert np.flatnonzero(np.isfinite(measured)).tolist() == [start + kind.size for start in starts]
    for start in starts[:: max(1, len(starts) // 7)]:
        run = c[..., start : start + kind.size]
        assert measured[start + kind.size] == pytest.approx(float((restored(run, kind.bits) - run).square().sum()), rel=1e-12)


# --- allocation


def error_of(energy, e, chosen):
    covered = np.zeros(len(energy), bool)
    for start, kind in chosen:
        assert not covered[start : start + kind.size].any(), "runs overlap"
        covered[start : start + kind.size] = True
    return energy[~covered].sum() + sum(e[kind][start + kind.size] for start, kind in chosen)


def bytes_of(chosen):
    return sum(run.kind.nbytes for run in chosen)


def every_allocation(length, kinds):
    """All ways to cover some of the coefficients by runs."""
    if length <= 0:
        yield []
        return
    yield from every_allocation(length - 1, kinds)
    for kind in kinds:
        if kind.size <= length:
            for before in every_allocation(length - kind.size, kinds):
                yield [*before, Run(length - kind.size, kind)]


@pytest.mark.parametrize("seed", range(6))
def test_no_allocation_of_a_small_problem_is_better(seed):
    rng = np.random.default_rng(seed)
    kinds = [Kind(*shape) for shape in ((1, 2), (2, 2), (2, 8), (3, 4))]
    energy = np.sort(rng.exponential(size=7))[::-1]
    e = {kind: np.full(8, np.inf) for kind in kinds}
    for kind in kinds:
        for end in range(kind.size, 8):
            e[kind][end] = energy[end - kind.size : end].sum() * rng.uniform(0, 0.6)
    everything = [(bytes_of(one), error_of(energy, e, one)) for one in every_allocation(7, kinds)]
    for budget in (0, 4, 5, 6, 7, 11, 13, 18, 25, 200):
        chosen = runs.allocate(energy, e, budget)
        least = min(error for cost, error in everything if cost <= budget)
        assert bytes_of(chosen) <= budget
        assert error_of(energy, e, chosen) == pytest.approx(least, rel=1e-12)
        cheapest = min(cost for cost, error in everything if error <= least * (1 + 1e-12))
        assert bytes_of(chosen) == cheapest  # what brings nothing is not spent


def loop_allocation(energy, e, budget):
    """The recurrence of `allocate` written out byte by byte: the least error within the budget."""
    best = [[0.0] * (budget + 1)]
    for i in range(1, len(energy) + 1):
        row = []
        for b in range(budget + 1):
            found = best[i - 1][b] + energy[i - 1]
            for kind, measured in e.items():
                if kind.size <= i and kind.nbytes <= b:
                    found = min(found, best[i - kind.size][b - kind.nbytes] + measured[i])
            row.append(found)
        best.append(row)
    return best[-1][budget]


def spectrum(alpha, n=128, vectors=48, seed=1):
    """Coefficients whose variances fall with a power law, and what their runs cost in error."""
    c = normal(vectors, n, seed=seed) * torch.arange(1, n + 1, dtype=torch.float64) ** (-alpha / 2)
    return c.square().sum(0).numpy(), runs.errors(c, runs.kinds([1, 16, 64]))


def test_the_loops_agree():
    energy, e = spectrum(1.0, n=40, vectors=8)
    for budget in (0, 8, 30, 61):
        assert error_of(energy, e, runs.allocate(energy, e, budget)) == pytest.approx(loop_allocation(energy, e, budget), rel=1e-12)


def greedy(energy, e, size, budget):
    """Of runs of one size: again and again the upgrade that lowers the error most per byte, while it fits."""
    kinds = [kind for kind in e if kind.size == size]
    starts = range(0, len(energy) - size + 1, size)
    held = dict.fromkeys(starts)

    def facts(start, kind):
        return (0, energy[start : start + size].sum()) if kind is None else (kind.nbytes, e[kind][start + size])

    for _ in count():
        spent = sum(facts(*item)[0] for item in held.items())
        best = (0.0, None)
        for start, kind in product(starts, kinds):
            (cost, error), (new, left) = facts(start, held[start]), facts(start, kind)
            if new > cost and spent - cost + new <= budget and error - left > best[0] * (new - cost):
                best = ((error - left) / (new - cost), (start, kind))
        if best[1] is None:
            return [Run(start, kind) for start, kind in held.items() if kind]
        held[best[1][0]] = best[1][1]
    return []


def test_the_program_is_never_worse_than_the_best_greedy_of_one_size_and_often_better():
    gains = []
    for alpha in (0.5, 1.0, 1.5):
        energy, e = spectrum(alpha)
        for bits in (1, 2, 3, 4):
            budget = 128 * bits // 8
            best = error_of(energy, e, runs.allocate(energy, e, budget))
            rivals = [error_of(energy, e, greedy(energy, e, size, budget)) for size in (1, 16, 64)]
            gains.append(min(rivals) / best)
    assert min(gains) >= 1 - 1e-12
    assert max(gains) > 1.1
    assert sum(gain > 1.01 for gain in gains) >= 3


def test_more_bytes_never_hurt():
    energy, e = spectrum(1.0)
    left = [error_of(energy, e, runs.allocate(energy, e, budget)) for budget in range(0, 200, 7)]
    assert left == sorted(left, reverse=True)

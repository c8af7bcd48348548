"""KVTC as the paper has it: components, what is stored of them, and the bytes it says."""

import pytest
import torch

from tqbench.codecs.blocks import principal, runs
from tqbench.codecs.blocks.runs import Kind
from tqbench.codecs.kvtc_paper import KvtcPaper
from tqbench.core.codec import nbytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset, read
from tqbench.core.scheme import Side


def text(tokens=400, heads=4, head_dim=64, seed=0):
    """Vectors of few strong directions over all heads, with a mean."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(32, heads * head_dim, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    x = (torch.randn(tokens, 32, generator=generator, dtype=torch.float64) * torch.logspace(1, -1, 32)) @ mix
    x += 0.1 * torch.randn(tokens, heads * head_dim, generator=generator, dtype=torch.float64) + 3
    return x.reshape(1, tokens, heads, head_dim).transpose(1, 2)


def fitted(span=4, **fields):
    return KvtcPaper(**fields).spanning(span).calibrate(text())


def lost(codec, x):
    again = codec.decode(codec.encode(x), x.shape[-1], x.dtype)
    away = x - x.mean((0, 2), keepdim=True)
    return float((again - x).square().sum() / away.square().sum())


X = text(100, seed=1)


# --- components


def test_exact_components_are_orthonormal_and_in_the_order_of_their_variance():
    x = torch.randn(500, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.linspace(9, 1, 60)
    v = principal.components(x, 60, seed=0)
    assert torch.allclose(v.T @ v, torch.eye(60, dtype=torch.float64), atol=1e-12)
    energy = (x @ v).square().sum(0)
    assert (energy.diff() <= 1e-9).all()
    assert float(energy.sum()) == pytest.approx(float(x.square().sum()))


def test_randomised_components_hold_as_much_as_the_exact_ones(monkeypatch):
    x = torch.randn(700, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.logspace(1, -1, 200)
    exact = (x @ principal.components(x, 40, seed=0)).square().sum()
    monkeypatch.setattr(principal, "EXACT", 100)
    found = principal.components(x, 40, seed=0)
    assert torch.equal(found, principal.components(x, 40, seed=0))
    assert found.shape == (200, 40)
    assert torch.allclose(found.T @ found, torch.eye(40, dtype=torch.float64), atol=1e-12)
    assert float((x @ found).square().sum() / exact) > 1 - 1e-4


# --- the codec


def test_what_is_stored_is_the_runs_of_the_projection():
    """By hand: the mean off, into V's columns, each run coded by itself, back through V."""
    codec = fitted(ratio=6.0)
    packed, learned = codec.encode(X), codec.learned
    vectors = X[0].transpose(0, 1).reshape(100, 256)
    c = (vectors - learned["mean"][0].double()) @ learned["basis"][0].double()
    kept, at = torch.empty_like(c), 0
    for kind, count in codec.plan:
        for _ in range(count):
            run = c[:, at : at + kind.size]
            kept[:, at : at + kind.size] = runs.dequantize(*runs.quantize(run, kind.bits), kind.bits, torch.float64)
            at += kind.size
    assert at == c.shape[1]
    expected = kept @ learned["basis"][0].double().T + learned["mean"][0].double()
    decoded = codec.decode(packed, 64, torch.float64)
    assert torch.allclose(decoded[0].transpose(0, 1).reshape(100, 256), expected, atol=1e-9)


def test_bytes_are_within_the_budget_and_those_of_the_runs():
    for ratio in (4.0, 8.0, 12.0, 16.0):
        codec = fitted(ratio=ratio)
        layout = codec.layout(64)
        assert layout.nbytes == sum(count * kind.nbytes for kind, count in codec.plan)
        assert layout.nbytes <= codec.budget(64) == int(2 * 256 / ratio)
        assert nbytes(codec.encode(X)) == 100 * layout.nbytes
        assert {part.role for part in layout.parts if part.name in ("scales", "shifts")} == {"metadata"}


def test_v_is_trimmed_to_the_components_that_have_bits():
    codec = fitted(ratio=16.0)
    columns = sum(kind.size * count for kind, count in codec.plan)
    assert codec.learned["basis"].shape == (1, 256, columns)
    assert columns < 256
    assert codec.learned["basis"].dtype == torch.float16


def test_less_compression_loses_less():
    losses = [lost(fitted(ratio=ratio), X) for ratio in (16.0, 8.0, 4.0)]
    assert losses[0] > losses[1] > losses[2]


def test_one_vector_of_all_heads_beats_one_for_each_where_heads_are_alike():
    alone = KvtcPaper(ratio=8.0).calibrate(text())  # four vectors of 64, each with its own components
    assert lost(fitted(ratio=8.0), X) < lost(alone, X)


def test_choosing_among_sizes_beats_each_size():
    chosen = lost(fitted(ratio=8.0), X)
    assert all(chosen <= lost(fitted(ratio=8.0, group_size=size), X) * 1.02 for size in (16, 64))


def test_rank_bounds_the_components():
    assert sum(kind.size * count for kind, count in fitted(ratio=2.0, rank=32).plan) <= 32


def test_heads_are_decoded_by_themselves():
    codec = fitted(ratio=8.0)
    packed = codec.encode(X)
    whole = codec.decode(packed, 64, torch.float64)
    assert torch.allclose(codec.decode_heads(packed, 64, torch.float64, slice(1, 3)), whole[:, 1:3], atol=1e-12)


def test_components_are_found_once_for_all_ratios(monkeypatch):
    fitted(ratio=8.0)
    monkeypatch.setattr("tqbench.codecs.kvtc_paper.components", lambda *args: pytest.fail("found again"))
    assert fitted(ratio=2.0).learned["basis"].shape[-1] > fitted(ratio=16.0).learned["basis"].shape[-1]
    with pytest.raises(pytest.fail.Exception):
        KvtcPaper().spanning(4).calibrate(text(seed=5))


def test_streams_hold_the_codes_of_one_width():
    codec = fitted(ratio=4.0)
    packed = codec.encode(X)
    for name, bits in (("int2", 2), ("int4", 4), ("fp8", 8)):
        size = sum(kind.code_bytes * count for kind, count in codec.plan if kind.bits == bits)
        assert (packed[name].shape[-1] if name in packed else 0) == size


def test_the_presets_are_the_papers():
    scheme = preset("kvtc_paper_8x")
    assert (scheme.sinks, scheme.k.window, scheme.k.flush, scheme.k.rope, scheme.v.rope) == (4, 112, 16, "pre", "post")
    assert scheme.k.codec.kinds == [Kind(size, bits) for size in (1, 16, 64, 256, 1024) for bits in (2, 4, 8)]
    exact = [t + 1 - scheme.k.packed(t, 4) for t in range(400, 464)]
    assert (min(exact), max(exact)) == (112, 127)


def test_mistakes_are_named():
    with pytest.raises(Unsupported, match=r"head_dim 64 at ratio 64: 2 bytes for 1 KV heads are less than the 5 of one run"):
        KvtcPaper(ratio=64.0, across="layer").check(64)
    KvtcPaper(ratio=64.0).spanning(90).check(64)
    with pytest.raises(ConfigError, match="ratio must be a number from 1 to 1024"):
        KvtcPaper(ratio=0.5)
    with pytest.raises(Unsupported, match="must be calibrated"):
        KvtcPaper().encode(X)
    with pytest.raises(ConfigError, match="window must be at least 1"):
        read({"name": "none", "k": {"codec": "kvtc_paper"}, "v": "q8_0"})


def test_a_coefficient_that_no_run_can_hold_is_refused_and_not_dropped() -> None:
    """Its error is infinite in every run, so the dynamic program would leave out the largest component of all."""
    c = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    c[:, 0] *= 1e6
    with pytest.raises(Unsupported, match="overflow the float16"):
        runs.errors(c, runs.kinds([1, 16]))


def test_a_ratio_that_only_all_layers_together_can_meet_is_no_mistake_yet() -> None:
    """Over how many layers the components run is known once a cache is built, and then it is checked."""
    side = Side(KvtcPaper(ratio=128.0), window=1)
    side.check(64, 3)
    side.codec.spanning(90).check(64)
    with pytest.raises(Unsupported, match="less than the 5 of one run"):
        side.codec.spanning(2).check(64)
    with pytest.raises(Unsupported, match="less than the 5 of one run"):
        Side(KvtcPaper(ratio=128.0, across="layer")).check(64, 3)


def test_the_bits_that_are_listed_are_the_most_for_any_span() -> None:
    for ratio in (4.0, 6.0, 12.0, 16.0):
        codec = KvtcPaper(ratio=ratio)
        assert all(codec.spanning(span).layout(64).bits(64) <= codec.listed_bits(64) == 16 / ratio for span in (2, 3, 7, 90))

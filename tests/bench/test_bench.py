"""Benchmarks: right before fast, and honest about what did not run. Nothing here depends on how fast anything is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tqbench.bench import attend as of_attend
from tqbench.bench import ceiling, convert, kvtc
from tqbench.bench.contender import Contender, attempt, twin
from tqbench.bench.data import SINK_MASS, vectors
from tqbench.bench.plan import DATA, Geometry, Plan, Wishes, read, shape
from tqbench.bench.race import Lane, _round, race
from tqbench.bench.result import BEST, SCHEMA, Bench, Ceiling, Group, Row
from tqbench.bench.run import run
from tqbench.cli import app
from tqbench.cli.bench import WRONG, _code
from tqbench.codecs.blocks import runs
from tqbench.core.errors import ConfigError
from tqbench.core.op import Impl, Op
from tqbench.core.presets import preset
from tqbench.kernels import attend, entropy, native, stream, triton
from tqbench.kernels.attend import baselines, reference
from tqbench.kernels.encode.baselines import EAGER
from tqbench.measure import clock, environment, noise
from tqbench.report import bench as written
from tqbench.report import bench_figure
from tqbench.report.bench_table import columns, heading

SMALL = "b1 kv2 q4 d64"
needs_native = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of one kilobyte, and samples of one call."""
    monkeypatch.setattr(environment, "last_level_cache", lambda: 1 << 10)
    monkeypatch.setattr("tqbench.bench.race.STRETCH", 1e-6)


def small(op: str, schemes: str = "q8_0,turbo4", tokens: str = "64", **more: Any) -> Plan:
    return read(Wishes(op, SMALL, tokens, schemes, rounds=2, **more))


def rows(found: Bench) -> dict[str, Row]:
    return {row.name: row for row in found.rows}


@pytest.mark.parametrize("op", ["attend", "encode", "decode", pytest.param("ablation", marks=needs_native)])
def test_every_form_and_baseline_is_judged_twice_and_timed(op: str) -> None:
    found = run(small(op, "q8_0,turbo4,kivi2", "96"))
    timed = [row for row in found.rows if row.outcome == "ok"]
    assert {row.outcome for row in found.rows} <= {"ok", "unsupported"}
    for row in timed:
        assert row.timing is not None, row
        assert len(row.timing.samples) == len(row.timing.rounds) >= 2
        assert min(row.timing.samples) > 0
        for error in (row.implementation_error, row.implementation_error_after):
            assert error is not None, row
            assert error <= row.tolerance, row
    assert all(row.reason for row in found.rows if row.outcome != "ok")
    assert {row.scheme for row in timed if row.scheme and " " not in row.scheme} >= {"turbo4"}


@pytest.mark.parametrize("data", DATA)
def test_each_kind_of_data_serves_every_form(data: str) -> None:
    assert {row.outcome for row in run(small("attend", data=data)).rows} <= {"ok", "unsupported"}


def test_the_sink_draws_its_share() -> None:
    given = vectors("sink", Geometry(heads=8, kv_heads=8, head_dim=64), 512)
    mass = torch.softmax((given.q @ given.k.mT) * given.scale, dim=-1)[..., 0].mean()
    assert abs(float(mass) - SINK_MASS) < 0.1


def wrong_form(how: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    calls = 0

    def run_it(q: Tensor, *given: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return how(reference.attend(q, *given), calls)

    return run_it


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        (lambda out, _: out * 1.001, "wrong"),
        (lambda out, _: out * float("nan"), "wrong"),
        (lambda out, _: out[:, :1], "wrong"),
        (lambda out, calls: out * (1.0 if calls < 3 else 1.001), "wrong"),  # right when it is checked, wrong when it is timed
        (lambda out, _: out / [], "failed"),
    ],
    ids=["scaled", "nan", "shape", "later", "raises"],
)
def test_a_planted_wrong_form_loses_its_time(how: Any, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Impl("planted", lambda: wrong_form(how))
    monkeypatch.setattr(attend, "OP", Op("attend", (planted, *attend.OP.impls)))
    found = rows(run(small("attend", "turbo4")))
    assert found["turbo4/planted"].outcome == outcome
    assert found["turbo4/planted"].reason
    assert found["turbo4/planted"].timing is None
    assert found["turbo4/torch"].timing is not None
    assert all("turbo4/planted" not in row.timing.ratios for row in found.values() if row.timing)


def test_a_new_form_takes_part_by_itself_and_a_refusal_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = Impl("quick", lambda: reference.attend), Impl("picky", lambda: reference.attend, lambda *_: "not on a Monday")
    monkeypatch.setattr(attend, "OP", Op("attend", (*forms, *attend.OP.impls)))
    found = rows(run(small("attend", "turbo4")))
    assert found["turbo4/quick"].timing is not None
    assert (found["turbo4/picky"].outcome, found["turbo4/picky"].reason) == ("unsupported", "not on a Monday")


def test_the_native_form_of_bf16_is_a_baseline_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "OP", Op("attend", (Impl("native", lambda: reference.attend), *attend.OP.impls[1:])))
    found = rows(run(small("attend", "turbo4,bf16")))
    assert {"bf16/native", "turbo4/naive", "sdpa bf16", "matmul bf16"} <= set(found["turbo4/native"].timing.ratios)
    assert "bf16/native" not in found["bf16/native"].timing.ratios


def test_wrong_codes_are_caught() -> None:
    plan = small("encode", "turbo4")
    (contender,) = [c for c in convert.contenders(plan, 64, lambda _: None) if c.row.form == "reference"]
    packed = attempt(contender)
    assert contender.judge(packed) is None
    assert contender.judge({**packed, "codes": packed["codes"] ^ 1})
    assert contender.judge({**packed, "norms": packed["norms"] * 1.1})
    assert contender.judge({"codes": packed["codes"]})
    few = packed["norms"].clone()
    few[:, :, :1] *= 1.1  # of 64 tokens
    assert contender.judge({**packed, "norms": few})


def test_a_wrong_last_bit_is_caught_where_values_are_floats_but_not_in_scales() -> None:
    """A scale may be rounded the other way, a value that is stored as it is has one form."""
    plan = small("encode", "f16,q8_0")
    found = {c.row.name: c for c in convert.contenders(plan, 64, lambda _: None) if c.row.form == "reference"}
    for name, part, right in (("f16/reference", "values", False), ("q8_0/reference", "scales", True)):
        packed = attempt(found[name])
        off = (packed[part].view(torch.int16) + 1).view(torch.float16)
        assert (found[name].judge({**packed, part: off}) is None) is right, name


@pytest.mark.parametrize("scheme", ["turbo4", "turbo3", "turbo2", "tbq3", "turboquant_mse1", "mlx_vlm3", "vllm_3bit_nc", "turbo4_pad128"])
def test_the_eager_encode_puts_out_the_reference_codes(scheme: str) -> None:
    found = [c for c in convert.contenders(small("encode", scheme, "512"), 512, lambda _: None) if c.row.form == EAGER]
    assert found
    for contender in found:
        assert contender.row.role == "baseline"
        assert contender.judge(attempt(contender)) is None
        assert contender.row.implementation_error <= convert.CODES_OFF


def test_encode_is_compared_with_plain_torch_too() -> None:
    found = rows(run(small("encode", "q8_0,turbo4")))
    assert f"turbo4/{EAGER}" in found["turbo4/reference"].timing.ratios
    assert f"q8_0/{EAGER}" not in found


@pytest.mark.parametrize(("op", "limited"), [("encode", False), ("decode", False), pytest.param("attend", True, marks=needs_native)])
def test_what_writes_is_not_held_against_a_limit_of_reading(op: str, limited: bool) -> None:
    found = run(small(op))
    assert any(row.timing and row.timing.share for row in found.rows) is limited
    assert any(row.limit_ms for row in found.rows) is limited
    assert ("limit %" in [column.title for column in columns(found)]) is limited
    assert written.page(found)
    assert bench_figure.render(found)


def test_rows_whose_copies_fit_the_cache_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(small("attend", "q8_0")).groups[0].notes == ()
    monkeypatch.setattr(ceiling.memory, "available", lambda: 64 << 13)
    monkeypatch.setattr(environment, "last_level_cache", lambda: 1 << 30)
    monkeypatch.setattr("tqbench.bench.run._fits", lambda _: None)
    found = run(small("attend", "q8_0"))
    (note,) = found.groups[0].notes
    assert "twice the processor's cache of 1024 MiB" in note
    assert "q8_0/torch" in note
    assert note in written.page(found).replace("\\", "")


def test_the_best_torch_row_is_the_fastest_that_was_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever that is: of two that are faster than all others, one is wrong."""
    seconds = {"sdpa fp32": 4.0, "folded bf16": 2.0, "sdpa fp16": 1.0}
    monkeypatch.setattr(clock, "seconds", time := Time())

    def run_it(row: Row) -> Tensor:
        time.now += seconds.get(row.name, 8.0)
        return torch.tensor(1.0 if row.name == "sdpa fp16" else 0.0)

    names = ["sdpa fp32", "folded bf16", "sdpa fp16", "q8_0/native"]
    lines = [Row(64, *n.split("/"), "form", n) if "/" in n else Row(64, None, n, "baseline", n) for n in names]
    group = race(64, [Contender(row, [partial(run_it, row)], float, (BEST,)) for row in lines], 2, lambda _: None)
    assert group.best == "folded bf16"
    found = {row.name: row for row in group.rows}
    assert found["sdpa fp16"].outcome == "wrong"
    assert found["q8_0/native"].timing.ratios[BEST].median == 0.25
    assert found["sdpa fp32"].timing.ratios[BEST].median == 0.5
    assert found["folded bf16"].timing.ratios == {}
    assert "best torch row: folded bf16" in heading(group)
    alone = race(64, [Contender(row, [partial(run_it, row)], float) for row in lines], 2, lambda _: None)
    assert alone.best is None
    assert "best" not in heading(alone)


class Time:
    """A clock that goes as far as it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("others", "disturbed"), [("short", True), ("long", False), ("nobody", False)])
def test_others_during_all_short_rows_of_a_long_round_are_noticed(others: str, disturbed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of a second of someone else's, on average little of ten seconds."""
    monkeypatch.setattr(clock, "seconds", time := Time())
    foreign = Time()
    monkeypatch.setattr(noise, "_others", foreign)

    def sample(name: str, lasts: float) -> None:
        time.now += lasts
        foreign.now += (0.9 * lasts if name == "short" else 0.09 * lasts) if name == others else 0.0

    rows = {**{f"short {i}": ("short", 0.02) for i in range(20)}, **{f"long {i}": ("long", 2.0) for i in range(5)}}
    lanes = [
        Lane(Contender(Row(64, None, name, "form", name), [partial(sample, *how)], lambda _: 0.0), lasts=how[1])
        for name, how in rows.items()
    ]
    assert _round(lanes, 0, 0).disturbed is disturbed
    assert _round(lanes, 0, 1).disturbed is disturbed
    assert all(len(lane.samples) == 2 for lane in lanes)


def test_a_cache_that_is_packed_whole_is_not_copied_after_it_was_decoded() -> None:
    """The naive way pays for decoding alone."""
    x = torch.randn(1, 2, 8, 64)
    view = attend.View(None, lambda: x, 8, x[:, :, 8:], 8, [8])
    assert reference.visible(view, x, 0, 7).data_ptr() == x.data_ptr()
    assert torch.equal(reference.visible(attend.View(x[:, :, :2], lambda: x, 2, x[:, :, 2:], 2, [2]), x[:, :, :0], 0, 7), x)
    assert reference.visible(attend.View(None, lambda: x, 0, x[:, :, :0], 0, [0]), x[:, :, :0], 0, 0).shape == (1, 2, 0, 64)


@needs_native
def test_kvtc_is_timed_by_stage_beside_its_loops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With few layers. The other codec has no such stages, and says so."""
    monkeypatch.setattr(kvtc, "LAYERS", 3)
    monkeypatch.setattr(kvtc, "FEW_LAYERS", 1)
    monkeypatch.setattr(kvtc, "CALIBRATION", 100)
    monkeypatch.setattr(kvtc, "RANKS", (32, 64))
    found = run(small("kvtc", "kvtc_lite_8x,q8_0,kvtc_paper_8x,kvtc_paper_4x", "128"))
    named = rows(found)
    stages = {"compress": ("project", "quantize", "pack", "entropy"), "decompress": ("entropy", "unpack", "dequantize", "unproject")}
    for way, expected in stages.items():
        for form in ("native", "torch"):
            assert named[f"kvtc_lite_8x {way}/{form}"].timing is not None
        for form in ("native", "torch", "reference"):
            row = named[f"kvtc_lite_8x {way} 1×2/{form}"]
            assert row.outcome == "ok", row
            assert row.implementation_error <= row.tolerance
            assert tuple(row.stages) == (*expected, "unexplained")
            assert all(ms > 0 for name, ms in row.stages.items() if name != "unexplained")
        assert set(named[f"kvtc_lite_8x {way} 1×2/native"].timing.ratios) >= {f"kvtc_lite_8x {way} 1×2/reference"}
    assert {row.form: row.outcome for row in found.rows if "allocate" in row.name} == {"greedy": "ok", "reference": "ok"}
    paper = [row for row in found.rows if row.components]
    assert [row.name for row in paper if row.components == 32] == [
        "kvtc_paper r=32 compress/projected",
        "kvtc_paper r=32 compress/reference",
        "kvtc_paper r=32 decompress/reference",
    ]
    assert {row.outcome for row in paper} == {"ok"}
    for row in paper:
        way = row.name.split("/")[0].split()[-1]
        assert set(row.stages) == {*stages[way], "center" if way == "compress" else "uncenter", "unexplained"}
    assert {named[f"rope {way}"].outcome for way in ("undo", "redo")} == {"ok"}
    assert "kvtc_lite" in named["q8_0/–"].reason
    written.write(found, tmp_path)
    assert "unexplained" in (tmp_path / "bench.md").read_text()
    assert json.loads((tmp_path / "bench.json").read_text())["data"] == "falling variance"


def test_wrong_stages_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvtc, "LAYERS", 1)
    monkeypatch.setattr(kvtc, "FEW_LAYERS", 1)
    for contender in kvtc.contenders(small("kvtc", "kvtc_lite_8x"), 128, lambda _: None):
        if contender.row.form == "torch":
            (*most, last) = attempt(contender)
            assert contender.judge([*most, last]) is None
            assert contender.judge([*most, _spoiled(last)])


def test_without_the_entropy_coder_the_same_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where codes stay: four ways to go, and nothing of the coder in two of them."""
    monkeypatch.setattr(kvtc, "LAYERS", 1)
    monkeypatch.setattr(kvtc, "FEW_LAYERS", 1)
    monkeypatch.setattr(kvtc, "_directions", lambda _: tuple(kvtc.WORK))
    monkeypatch.setattr(kvtc, "RANKS", (32,))
    group = race(128, kvtc.contenders(small("kvtc", "kvtc_lite_8x,kvtc_paper_8x"), 128, lambda _: None), 2, lambda _: None)
    named = {row.name: row for row in group.rows}
    for name in (
        "kvtc_lite_8x encode/torch",
        "kvtc_lite_8x decode/torch",
        "kvtc_paper r=32 encode/projected",
        "kvtc_paper r=32 decode/reference",
    ):
        assert named[name].outcome == "ok", named[name]
        assert "entropy" not in named[name].stages
        whole = name.replace(" encode", " compress").replace(" decode", " decompress")
        assert "entropy" in named[whole].stages
    for contender in kvtc.contenders(small("kvtc", "kvtc_lite_8x"), 128, lambda _: None):
        if contender.row.name == "kvtc_lite_8x encode/torch":
            (packed, *rest) = attempt(contender)
            assert contender.judge([packed, *rest]) is None
            assert contender.judge([{**packed, "codes": packed["codes"] ^ 1}, *rest])


@pytest.mark.skipif(triton.missing() is not None or torch.cuda.is_available(), reason="of the interpreter, on the CPU")
def test_the_stages_in_triton_are_judged_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "refuses", lambda _: None)
    monkeypatch.setattr(kvtc, "LAYERS", 1)
    plan = small("kvtc", "kvtc_lite_8x")
    found = [c for c in kvtc.contenders(plan, 128, lambda _: None) if c.row.form == "triton" and "×" not in c.row.name]
    assert [c.row.name.split()[1] for c in found] == ["compress/triton", "decompress/triton"]
    for contender in found:
        assert contender.judge(attempt(contender)) is None, contender.row


@pytest.mark.skipif(triton.missing() is not None, reason=str(triton.missing()))
def test_every_kernel_of_kvtc_is_handed_to_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections in both directions, and runs of every size and width."""
    from tqbench.kernels import _sections
    from tqbench.kernels.runs import _triton

    handed: list[Any] = []
    monkeypatch.setattr(_triton, "_launch", lambda kernel, alike, *_: handed.append((kernel, alike.kind)))
    for way in ("encode", "decode"):
        monkeypatch.setattr(_sections, way, lambda codec, x, *rest: handed.append(rest[-1]))
    for _, _, call in kvtc.launches(64):
        call()
    assert handed[:2] == ["triton", "triton"]
    assert handed[2:] == [
        (kernel, kind) for kernel in (_triton._squeeze, _triton._expand) for kind in sorted(runs.kinds(), key=lambda k: k[::-1])
    ]


def _spoiled(output: Any) -> Any:
    """Values that are off, or streams of other codes."""
    if isinstance(output, Tensor):
        return output * 1.001
    codes = entropy.decode(output["codes"], entropy.HEAD.unpack(output["codes"][: entropy.HEAD.size])[4])
    return {**output, "codes": entropy.encode(codes ^ 1, "zstd", 1)}


def test_baselines_equal_the_formula() -> None:
    given = vectors("gaussian", shape(SMALL), 33)
    truth = torch.softmax(given.q.double() @ given.k.double().repeat_interleave(2, 1).mT * given.scale, -1)
    truth = truth @ given.v.double().repeat_interleave(2, 1)
    for baseline in baselines.BASELINES:
        dtype = getattr(torch, baseline.dtype)
        out = baseline.run(given.q.to(dtype), given.k.to(dtype), given.v.to(dtype), given.scale)
        assert out.dtype == dtype
        assert (out.double() - truth).norm() / truth.norm() < 2 * baseline.tolerance, baseline.name


def test_twins_keep_values_and_gaps() -> None:
    array = torch.arange(48).reshape(2, 3, 8)[:, :, :5]
    assert torch.equal(twin(array), array)
    assert twin(array).stride() == array.stride()
    assert twin(array).data_ptr() != array.data_ptr()


def test_a_store_is_read_as_in_decoding() -> None:
    """One query, the last token just appended, arrays with room to grow, copies in memory of their own."""
    plan = small("attend", "kivi2", "200")
    store = of_attend.filled(preset("kivi2"), plan, vectors("gaussian", plan.geometry, 200))
    view = store.k.view()
    assert len(view.bounds) == 1
    assert view.packed_end < 200 == view.tail_start + view.tail.shape[2]
    assert of_attend._bytes(view) == sum(x.nbytes for x in view.stored().values()) + 4 * 2 * 64 * (200 - view.packed_end)


def test_wide_intervals_of_few_rounds_say_so() -> None:
    group = race(64, of_attend.contenders(small("attend", "q8_0"), 64, lambda _: None), 2, lambda _: None)
    found = next(row for row in group.rows if row.name == "q8_0/torch").timing.ratios["sdpa bf16"]
    assert found.low <= found.median <= found.high
    assert 0 <= found.confidence < 0.95 or found.pairs > 5  # one round that was quiet tells no interval


@needs_native
@pytest.mark.parametrize("isa", ["", "avx2", "scalar"])
@pytest.mark.parametrize("words", [0, 1, 63, 64, 1000])
def test_the_stream_reads_everything(isa: str, words: int) -> None:
    try:
        native.use(isa)
    except ConfigError as reason:
        pytest.skip(str(reason))
    try:
        buffer = torch.arange(words, dtype=torch.int64)
        assert [stream.total(buffer, threads) for threads in (1, 2, 3)] == [words * (words - 1) // 2] * 3
    finally:
        native.use("")


@needs_native
def test_ceilings_are_positive_and_keep_the_best() -> None:
    first = ceiling.measure(1)
    both = ceiling.measure(1, earlier=first)
    assert first.gbps is not None
    assert 0 < first.gbps <= both.gbps
    assert len(both.samples) == 2 * len(first.samples)


def test_without_a_library_there_is_no_limit_but_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "path", lambda: None)
    found = run(small("attend", "q8_0"))
    assert found.ceiling.gbps is None
    assert found.ceiling.reason
    assert rows(found)["sdpa bf16"].timing.share is None
    written.write(found, tmp_path)


def test_everything_is_written(tmp_path: Path) -> None:
    written.write(run(small("attend", tokens="32,64")), tmp_path)
    data = json.loads((tmp_path / "bench.json").read_text())
    assert data["schema"] == SCHEMA
    assert data["environment"]["threads"] == torch.get_num_threads()
    assert all(len(row["timing"]["samples"]) >= 2 for group in data["groups"] for row in group["rows"] if row["timing"])
    assert len((tmp_path / "bench.csv").read_text().splitlines()) == 1 + sum(len(group["rows"]) for group in data["groups"])
    page = (tmp_path / "bench.md").read_text()
    assert all(baseline.words in page for baseline in baselines.BASELINES)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "turbo4" in (tmp_path / "bench.svg").read_text()


def test_a_benchmark_without_a_single_time_is_written(tmp_path: Path) -> None:
    row = Row(64, "q8_0", "native", "form", "attend in form native", "wrong", "off by 0.1")
    found = Bench("attend", SMALL, "qwen2", "gaussian", {}, Ceiling(None, 1, reason="none"), (Group(64, (row,), ()),), {})
    written.write(found, tmp_path)
    assert "wrong: off by 0.1" in (tmp_path / "bench.md").read_text()


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"op": "atend"}, "did you mean 'attend'"),
        ({"shape": "b1 kv3 q32"}, "32 query heads cannot share 3 KV heads evenly"),
        ({"shape": "b1 h3"}, "'h3' is not b (sequences)"),
        ({"tokens": "4k,many"}, "'many' is not a number of tokens"),
        ({"tokens": "0"}, "'0' is not a number of tokens"),
        ({"tokens": ","}, "nothing is named"),
        ({"schemes": "turbo44"}, "did you mean 'turbo4'"),
        ({"schemes": "peer:quanto4"}, "runs inside its own library"),
        ({"schemes": "turbo4_auto", "shape": "kv4 q32"}, "name that one"),
        ({"schemes": "turbo4", "shape": "d60"}, "does not take this shape"),
        ({"data": "uniform"}, "unknown --data 'uniform'"),
        ({"rounds": 0}, "--rounds: 0"),
        ({"threads": 0}, "--threads: 0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_nonsense_is_refused(wish: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(Wishes(**wish))
    assert said in str(refused.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        read(Wishes(op="x", shape="y", tokens="z", schemes="w", data="v", rounds=0))
    assert len(refused.value.problems) == 6


def test_what_does_not_fit_is_refused_before_the_first_minute() -> None:
    with pytest.raises(ConfigError, match="GB of memory would be needed"):
        run(read(Wishes(tokens="16000k", shape="b64")))


def test_what_is_cut_off_keeps_what_it_has_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Interrupted in its second size it is written with the first, and says so; in its first there is nothing to keep."""
    contenders = of_attend.contenders

    def cut(plan: Plan, tokens: int, note: Callable[[str], None]) -> list[Contender]:
        if tokens > 32:
            raise KeyboardInterrupt
        return contenders(plan, tokens, note)

    monkeypatch.setattr(of_attend, "contenders", cut)
    command = ["attend", "--shape", SMALL, "--schemes", "q8_0", "--rounds", "2", "--tokens"]
    for folder in (tmp_path, tmp_path / "interrupted"):  # where there are results already, they stay
        done = CliRunner().invoke(app, ["bench", *command, "32,64,96", "-o", str(tmp_path)])
        assert done.exit_code == 130
        assert "interrupted: 64 and 96 tokens were not measured" in done.stdout
        assert done.stdout.endswith(f"results  {folder}\n")
        data = json.loads((folder / "bench.json").read_text())
        assert ([group["tokens"] for group in data["groups"]], data["unmeasured"]) == ([32], [64, 96])
    with pytest.raises(KeyboardInterrupt):
        run(small("attend", tokens="64,96"))


def test_what_is_cut_off_before_the_ceiling_is_known_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, measure = [], ceiling.measure

    def cut(*args: Any) -> Ceiling:
        calls.append(args)
        if len(calls) > 2:  # before the first size, and after each
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(ceiling, "measure", cut)
    found = run(small("attend", tokens="32,64"))
    assert (len(found.groups), found.unmeasured) == (1, (64,))


def test_a_wrong_form_is_said_before_an_interruption() -> None:
    found = run(small("attend", tokens="32"))
    assert _code(dataclasses.replace(found, unmeasured=(64,))) == 130
    rows = [dataclasses.replace(row, outcome="wrong") for row in found.groups[0].rows]
    wrong = (dataclasses.replace(found.groups[0], rows=tuple(rows)),)
    assert _code(dataclasses.replace(found, groups=wrong, unmeasured=(64,))) == WRONG

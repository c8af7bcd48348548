"""Decode, prefill and memory on a tiny model: what the records say, and what they refuse to say. No figure is compared with a clock."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.cache.store import Store
from tqbench.core.errors import ConfigError, EvidenceError, Unsupported
from tqbench.core.presets import preset
from tqbench.core.record import Cell, Record
from tqbench.core.session import Terms
from tqbench.corpora import Text
from tqbench.kernels.attend import _torch
from tqbench.measure import clock, gpu, graphs, trace
from tqbench.measure import memory as of_device
from tqbench.measure.environment import threads
from tqbench.tasks import Job, _captured, _race, decode, memory, prefill, run
from tqbench.tasks._proof import fitting
from tqbench.testing.tape import Tape, Tapes

TEXT = Text("words", "The quick brown fox jumps over the lazy dog. " * 20, "a test")
DECODE = {"context": 40, "new": 12, "repetitions": 3, "protocol": "strict"}
PREFILL = {"context": 40, "chunk": 16, "repetitions": 2, "protocol": "strict"}
MEMORY = {"context": 40, "protocol": "strict"}
TORCH = "encode=reference,decode=reference,attend=torch"  # a tape knows nothing of native forms


class Bytes:
    """A tokenizer whose tokens are bytes."""

    bos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


@pytest.fixture
def session():
    with TransformersSession(tiny.llama(), Bytes(), "tiny") as opened:
        yield opened


def job(session, task: str, params: dict[str, Any], scheme: str | None = "turbo4", **other: Any) -> Job:
    data = preset(scheme).to_data() if scheme else None
    kernel = other.pop("kernel", "attend=torch")
    cell = Cell("tiny", "transformers", "cpu", "float32", data, kernel if data else "auto", task, params, {"name": "words"})
    return Job(session, cell, other.pop("text", TEXT), lambda n: None, **other)


def measured(session, task: str, params: dict[str, Any], scheme: str | None = "turbo4", **other: Any) -> tuple[Record, dict[str, Any]]:
    one = job(session, task, params, scheme, **other)
    result = run(one)
    return Record(one.cell, "ok", **result.fields).audited(), result.arrays


@pytest.mark.parametrize("scheme", ["turbo4", None])
def test_decode(session, scheme: str | None) -> None:
    record, arrays = measured(session, "decode", DECODE, scheme)
    assert (record.outcome, record.audits) == ("ok", [])
    assert arrays["moves"].shape == (3, 2, 12)
    assert arrays["rounds"].shape == (3, 2, 12 // decode.together(12))
    assert {"decode_tps", "decode_ms_p50", "decode_ms_p90", "decode_ms_p99", "decode_ratio", "base_decode_tps"} == set(record.metrics)
    assert record.metrics["decode_tps"].value == pytest.approx(36 / arrays["rounds"][:, 1].sum())
    assert record.timing["threads"] == threads()
    assert record.timing["repetitions"] == 3
    assert "disturbed" in record.timing
    lanes = [name for name in ("own", "cell") if name in record.stages]
    assert lanes == (["own", "cell"] if scheme else ["cell"])
    for name in lanes:
        staged = record.stages[name]
        assert {"model", "append", "attend", "choose"} <= set(staged["stages"])
        assert sum(staged["stages"].values()) <= staged["whole"]
    if scheme:
        assert {"encode", "decode", "settle"} <= set(record.stages["cell"]["stages"])
        assert record.kernels["attend"] == "torch"
        assert record.coverage == 1
        assert {e["tokens"] for e in record.evidence} == {40 + decode.BEFORE + 12}
        assert {e["attended"] for e in record.evidence} == {sum(range(41, 54))}  # of what was decoded, not of the context
        assert all(e["attend_error"] is not None for e in record.evidence)


def test_decode_from_nothing(session) -> None:
    record, _ = measured(session, "decode", DECODE | {"context": 0})
    assert record.outcome == "ok"
    assert {e["tokens"] for e in record.evidence} == {13}


def test_a_scheme_that_packs_nothing_has_no_speed(session) -> None:
    """KIVI keeps its last 128 tokens exact."""
    record, _ = measured(session, "decode", DECODE, "kivi2")
    assert (record.outcome, record.metrics, record.stages) == ("inactive", {}, {})
    assert "no attended key or value was packed" in str(record.reason)


def test_a_kernel_over_tolerance_has_no_speed(session, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _torch.attend
    monkeypatch.setattr(_torch, "attend", lambda *args: 1.001 * honest(*args))
    for task, params in (("decode", DECODE), ("prefill", PREFILL)):
        record, _ = measured(session, task, params)
        assert (record.outcome, record.metrics) == ("inactive", {})
        assert "off the reference" in str(record.reason)


def test_no_instrument_runs_in_a_timed_step(session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sampling nor comparing: both happen after the last one."""
    from tqbench.cache.arrays import TorchArrays
    from tqbench.measure import clock

    within = [False]
    timed, squares = clock.timed, TorchArrays.squares

    def watched(fn: Any, wait: Any = None) -> float:
        def marked() -> None:
            within[0] = True
            fn()
            within[0] = False

        return timed(marked, wait)

    def refused(self: Any, x: Any, y: Any) -> tuple[float, float]:
        assert not within[0], "the instrument works inside a timed step"
        return squares(self, x, y)

    monkeypatch.setattr(clock, "timed", watched)
    monkeypatch.setattr(TorchArrays, "squares", refused)
    assert measured(session, "decode", DECODE)[0].outcome == "ok"
    assert measured(session, "prefill", PREFILL)[0].outcome == "ok"


def test_prefill(session) -> None:
    record, arrays = measured(session, "prefill", PREFILL)
    assert (record.outcome, record.audits) == ("ok", [])
    assert prefill.pieces(PREFILL) == [16, 16, 8]
    assert arrays["moves"].shape == arrays["rounds"].shape == (2, 2, 3)
    assert record.metrics["ttft_ms"].value == pytest.approx(1e3 * arrays["moves"][:, 1].sum(-1).mean())
    assert {e["attended"] for e in record.evidence} == {sum(range(1, 41))}
    assert record.metrics.keys() == {"prefill_tps", "ttft_ms", "prefill_ratio", "base_prefill_tps"}


def test_prefill_under_deploy_attends_to_its_own_chunk_exact(session) -> None:
    strict, deploy = (measured(session, "prefill", PREFILL | {"protocol": protocol})[0].coverage for protocol in ("strict", "deploy"))
    assert strict == 1
    assert deploy is not None
    assert 0 < deploy < 1


def test_memory(session) -> None:
    base, _ = measured(session, "memory", MEMORY, None)
    record, arrays = measured(session, "memory", MEMORY)
    assert not arrays
    values = 2 * 2 * 2 * 64  # layers, sides, heads, channels
    assert base.metrics["kv_bytes_per_token"].value == 4 * values
    assert base.metrics["tokens_per_gib"].value == pytest.approx(2**30 / (4 * values))
    assert record.metrics["kv_bytes"].value == sum(e["bytes_payload"] + e["bytes_metadata"] + e["bytes_exact"] for e in record.evidence)
    assert record.metrics["kv_bytes_per_token"].value == pytest.approx(4.25 / 8 * values)
    assert record.ledger["tokens"] == 40
    assert record.ledger["protected"] == 0


def test_windows_are_paid_once_and_packed_tokens_each(session) -> None:
    cache = session.new_cache(preset("kivi2"), context=session.context(np.arange(200)))
    evidence = cache.evidence()
    exact = sum(e.bytes_exact for e in evidence)
    each = sum((e.bytes_payload + e.bytes_metadata) / e.tokens_packed for e in evidence)
    assert fitting(evidence, int(exact + 1000 * each)) == pytest.approx(1000, abs=1)
    assert fitting(evidence, 10) == 0


def test_a_context_is_prefilled_once_for_all_cells(session) -> None:
    contexts: dict[Any, Any] = {}
    for scheme in (None, "turbo4", "q8_0"):
        run(job(session, "decode", DECODE, scheme, contexts=contexts))
    run(job(session, "memory", MEMORY | {"context": 40 + memory.PROVED}, contexts=contexts))
    assert [one.get_seq_length() for one in contexts.values()] == [40]


def test_a_large_device_keeps_large_contexts(session, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(free: int | None) -> list[int]:
        monkeypatch.setattr(_race, "CONTEXT_BYTES", 1)
        monkeypatch.setattr(of_device, "device_free", lambda device: free)
        contexts: dict[Any, Any] = {}
        for context in (40, 30):
            run(job(session, "decode", DECODE | {"context": context}, contexts=contexts))
        return [one.get_seq_length() for one in contexts.values()]

    both = (40 + 30) * 2 * 2 * 2 * 64 * 4
    assert kept(None) == kept((both - 1) * _race.ROOM) == [30]
    assert kept(both * _race.ROOM) == [40, 30]


def test_the_text_must_reach(session) -> None:
    short = dataclasses.replace(TEXT, text="too short")
    for task, params in (("decode", DECODE), ("prefill", PREFILL), ("memory", MEMORY)):
        with pytest.raises(ConfigError, match="the text has 9 tokens, this cell needs"):
            run(job(session, task, params, text=short))
    with pytest.raises(ConfigError, match="longer than the 1024 positions"):
        run(job(session, "decode", DECODE | {"context": 2000}))


def test_what_crosses_to_another_framework_has_no_speed(session, monkeypatch: pytest.MonkeyPatch) -> None:
    from tqbench.core.op import Choice

    monkeypatch.setattr(Choice, "impl", property(lambda self: "reference (host)", lambda self, name: None), raising=False)
    with pytest.raises(Unsupported, match="says nothing about the scheme"):
        run(job(session, "decode", DECODE))


class Gpu:
    """A GPU that uses 50 J for every time it is asked."""

    def __init__(self) -> None:
        self.used = 0.0

    def facts(self) -> dict[str, gpu.Told]:
        return {"name": gpu.Told("NVIDIA H200"), "driver": gpu.Told("580.1")}

    def now(self) -> dict[str, gpu.Told]:
        return {"utilisation": gpu.Told(0.5), "power_w": gpu.Told(300.0), "temperature_c": gpu.Told(reason="Not Supported")}

    def throttled(self) -> gpu.Told:
        return gpu.Told([])

    def joules(self) -> gpu.Told:
        self.used += 50
        return gpu.Told(self.used)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Races believe to be on CUDA, where a GPU is metered and every wait of the host is told; the model stays where it is."""
    monkeypatch.setattr(_race.Race, "device", property(lambda self: "cuda:0"))
    monkeypatch.setattr(clock, "waiter", lambda device: None)
    monkeypatch.setattr(clock, "marks", lambda device: clock.HostMarks())
    monkeypatch.setattr(gpu, "find", lambda device: Gpu())
    monkeypatch.setattr(gpu, "LEAST", 0.0)
    monkeypatch.setattr(_race, "METERED", 0.001)
    monkeypatch.setattr(trace, "_waits", lambda step: (step(), {"session.py:9 int(x)": 2})[1])
    monkeypatch.setattr(graphs, "recorder", lambda device: Tapes())
    monkeypatch.setattr(of_device, "device_free", lambda device: None)


def test_on_cuda_each_lane_is_metered_alone_and_its_waits_are_counted(session, cuda: None) -> None:
    record, _ = measured(session, "decode", DECODE, kernel=TORCH)
    assert (record.outcome, record.audits) == ("ok", [])
    metered = record.device["metered"]
    assert metered["gpu"] == {"name": "NVIDIA H200", "driver": "580.1"}
    for lane in ("own", "cell"):
        stretches = metered[lane]["tokens"] // 12
        assert metered[lane]["energy_j"] == 50 * stretches
        assert metered[lane]["temperature_c"] is None
        assert metered[lane]["missing"]["temperature_c"] == "Not Supported"
    assert record.metrics["joules_per_token"].value == pytest.approx(50 / 12)
    assert record.metrics["base_joules_per_token"].value == pytest.approx(50 / 12)
    assert (record.metrics["gpu_utilisation"].value, record.metrics["gpu_power_w"].value) == (0.5, 300)
    assert record.metrics["host_waits"].value == 2
    assert record.device["steps"]["cell"]["places"] == {"session.py:9 int(x)": 2}
    base, _ = measured(session, "decode", DECODE, None)
    assert base.device["metered"].keys() == {"gpu", "cell"}
    prefilled, _ = measured(session, "prefill", PREFILL)
    assert prefilled.metrics["joules_per_token"].value == pytest.approx(50 / 40)
    assert prefilled.metrics["host_waits"].value == 2 / 16


@pytest.mark.parametrize("scheme", ["turbo4", None])
def test_on_cuda_the_same_steps_are_captured_and_timed_in_turn(session, cuda: None, scheme: str | None) -> None:
    told: list[int] = []
    one = dataclasses.replace(job(session, "decode", DECODE, scheme, kernel=TORCH), progress=told.append)
    one = dataclasses.replace(one, cell=dataclasses.replace(one.cell, device="cuda"))
    result = run(one)
    record = Record(one.cell, "ok", **result.fields).audited()
    assert (record.outcome, record.audits) == ("ok", [])
    seconds = result.arrays["captured"]
    assert seconds.shape == result.arrays["rounds"].shape == (3, 2, 4)
    assert record.metrics["captured_tps"].value == pytest.approx(36 / seconds[:, 1].sum())
    assert record.metrics["base_captured_tps"].value == pytest.approx(36 / seconds[:, 0].sum())
    assert record.metrics["captured_ratio"].value == pytest.approx(seconds[:, 0].sum() / seconds[:, 1].sum())
    assert record.metrics["captured_ratio"].low is not None
    about = record.device["captured"]
    assert about["own"] == {"cache": "float32 in place", "attention": {"flash (CPU)": 2}, "off": 0.0}
    packed = {"k": [12, 12], "v": [12, 12]}
    assert about["cell"] == ({"cache": "store", "attention": {}, "off": 0.0, "packed": packed} if scheme else about["own"])
    assert sum(told) == 40 + decode.steps(one.cell) - 2 * decode.SCORED


def test_off_cuda_a_record_says_that_nothing_is_captured(session) -> None:
    record, arrays = measured(session, "decode", DECODE)
    assert record.device["captured"] == {"missing": "CUDA graphs need CUDA, and the model is on cpu"}
    assert not {"captured_tps", "captured_ratio", "base_captured_tps"} & record.metrics.keys()
    assert "captured" not in arrays


def test_what_no_graph_can_hold_is_said_and_the_rest_is_measured(session, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _torch.attend
    monkeypatch.setattr(_torch, "attend", lambda q, *args: honest(q + 0 * float(q.sum()), *args))
    record, _ = measured(session, "decode", DECODE, kernel=TORCH)
    assert record.device["captured"] == {"missing": "__float__ crosses between host and device, which no graph can hold"}
    assert record.metrics["decode_tps"].value > 0


def test_what_packs_in_few_rounds_has_its_cost_in_the_ratio() -> None:
    """Steps of 0.8 ms against 1 ms, and 32 tokens packed for 16 ms in one of four rounds: a median of rounds would not see them."""
    chance = np.random.default_rng(0).normal(1, 0.01, (2, 3, 4))
    own, cell = np.full((3, 4), 8e-3) * chance[0], np.array([[6.4e-3, 6.4e-3, 6.4e-3, 22.4e-3]] * 3) * chance[1]
    found = _captured.Captured(np.stack([own, cell], axis=1), [8] * 4, {}).metrics()
    ratio = found["captured_ratio"]
    assert ratio.value == pytest.approx(32 / 41.6, rel=0.02)
    assert ratio.value == pytest.approx(found["captured_tps"].value / found["base_captured_tps"].value)
    assert 0.74 < ratio.low < 32 / 41.6 < ratio.high < 0.8


def test_without_memory_for_captured_lanes_the_rest_is_measured(session, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was there of them is let go: nothing else holds it."""
    made: list[Any] = []

    def reserve(self: Any, tokens: int) -> None:
        made.append(weakref.ref(self))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB")

    monkeypatch.setattr(Store, "reserve", reserve)
    record, arrays = measured(session, "decode", DECODE, kernel=TORCH)
    assert record.outcome == "ok"
    assert record.device["captured"] == {"missing": "the device has no memory for both lanes in graphs"}
    assert "captured" not in arrays
    assert record.metrics["decode_tps"].value > 0
    assert [one() for one in made] == [None]
    monkeypatch.setattr(Store, "reserve", lambda self, tokens: (_ for _ in ()).throw(RuntimeError("something else")).send(None))
    with pytest.raises(RuntimeError, match="something else"):
        measured(session, "decode", DECODE, kernel=TORCH)


def test_a_captured_cell_is_held_against_its_scheme(session, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another codec in the captured lane than the scheme has."""
    stretch = TransformersSession.stretch
    other = dataclasses.replace(preset("turbo3"), name="turbo4")

    def swapped(self: Any, tokens: Any, cache: Any, *rest: Any) -> Any:
        if hasattr(cache, "stores"):
            cache = self.new_cache(other, Terms(TORCH, quiet=True), self.context(tokens[:5]))
        return stretch(self, tokens, cache, *rest)

    monkeypatch.setattr(TransformersSession, "stretch", swapped)
    record, _ = measured(session, "decode", DECODE, kernel=TORCH)
    assert record.outcome == "inactive"
    assert any(text.startswith("captured: layer 0 k: ") and "ran, the scheme has" in text for text in record.audits)


def test_captured_steps_that_come_out_otherwise_are_a_failure(session, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tape, "run", lambda self: None)
    with pytest.raises(EvidenceError, match=r"captured steps do not choose what they choose uncaptured: \d+ of 12"):
        measured(session, "decode", DECODE, kernel=TORCH)


def test_without_nvml_a_record_says_why(session, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find", lambda device: "NVML cannot be used: no driver")
    record, _ = measured(session, "decode", DECODE, kernel=TORCH)
    assert record.device["metered"] == {"missing": "NVML cannot be used: no driver"}
    assert "joules_per_token" not in record.metrics


def test_off_cuda_the_form_of_attention_is_known_and_nothing_is_metered(session) -> None:
    record, _ = measured(session, "decode", DECODE)
    assert record.device["metered"] == {}
    own, cell = (record.device["steps"][lane] for lane in ("own", "cell"))
    assert own["attention"] == {"flash (CPU)": 2}  # a layer each; the scheme's own attention is none of torch's
    assert cell["attention"] == {}
    assert (own["host_waits"], own["reason"]) == (None, trace.IN_ORDER)
    assert 0 < record.timing["cores"]["cell"] < 64


def test_the_allocators_peak_stands_beside_that_of_the_process(session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_device, "device_peak", lambda device: {"allocated": 5_000_000, "reserved": 8_000_000})
    record, _ = measured(session, "memory", MEMORY)
    aside = 2 * (40 - memory.PROVED) * 2 * 2 * 2 * 64 * 4  # the context, which is kept, and the model's own cache beside the scheme's
    assert record.metrics["device_peak_allocated"].value == 5_000_000 - aside
    assert record.metrics["device_peak_reserved"].value == 8_000_000

"""Steps that are captured and run again: on a tape, which refuses what a CUDA graph refuses, they come out as they did uncaptured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from backends.transformers import random, tiny
from backends.transformers.in_place import InPlaceCache, InPlaceLayer
from backends.transformers.session import TransformersSession
from backends.transformers.stretch import Stretch
from tqbench.cache.side import SideStore
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.evidence import audit
from tqbench.core.presets import preset, read
from tqbench.core.session import Terms
from tqbench.kernels import triton
from tqbench.measure import graphs, trace
from tqbench.models.random import config
from tqbench.testing.tape import Tapes

FORMS = "encode=reference,decode=reference,attend=torch"  # a tape knows nothing of native ones
CONTEXT, STEPS, TOGETHER = 123, 10, 4  # kivi4 packs its first 128 keys within the stretch
WINDOWED = {"name": "windowed", "k": "turbo4", "v": {"codec": "affine", "bits": 4, "group_size": 32, "window": 6, "flush": 4}, "sinks": 4}
IDENTITY = {**preset("turbo4").to_data(), "bypass": "identity"}
DEEP = 512  # where a random model chooses the same, whatever is in its cache
TEXT = np.random.default_rng(0).integers(0, 256, DEEP + STEPS + 1)


MODELS = (("tiny", CONTEXT), ("random:256x2", DEEP))


def opened(name):
    """In bfloat16, if it is random, as large ones are."""
    if name == "tiny":
        return TransformersSession(tiny.llama(), None, name)
    return TransformersSession(random.model(config(name), "cpu", "bfloat16")[0], None, name)


@pytest.fixture(scope="module")
def session():
    with TransformersSession(tiny.llama(), None, "tiny") as opened:
        yield opened


def names(value):
    return value["name"] if isinstance(value, dict) else str(value)


def cached(session, scheme, kernel=FORMS, context=CONTEXT):
    held = session.context(TEXT[:context]) if context else None
    found = None if scheme is None else read(scheme) if isinstance(scheme, dict) else preset(scheme)
    cache = session.new_cache(found, Terms(kernel if found else "auto", quiet=True), held)
    session.forward(TEXT[context : context + 1], cache, last=True)
    return cache


def captured(session, scheme, kernel=FORMS, context=CONTEXT, recorder=None):
    cache = cached(session, scheme, kernel, context)
    return session.stretch(TEXT[context + 1 : context + 1 + STEPS], cache, TOGETHER, recorder or Tapes())


def passed(stretch):
    stretch.begin()
    for number in range(stretch.rounds):
        stretch.replay(number)
    stretch.check()


def came_out(stretch):
    """What each step chose, and the last one's logits."""
    steps = [step for found in stretch.found for step in found]
    return torch.stack([choice for choice, _ in steps]).tolist(), steps[-1][1]


def twice(stretch):
    passed(stretch)
    passed(stretch)


def uncaptured(session, scheme, kernel=FORMS, context=CONTEXT):
    """The same tokens through a cache that nobody captures: what each chooses, the last one's logits, and the evidence."""
    cache, chosen = cached(session, scheme, kernel, context), []
    for i in range(context + 1, context + 1 + STEPS):
        logits = session.forward(TEXT[i : i + 1], cache, last=True)
        chosen.append(session.choose(logits))
    cache.verify()
    return chosen, logits, cache.evidence()


def counted(evidence):
    return [(e.tokens, e.tokens_packed, e.attended, e.attended_packed, e.attend_error, e.error) for e in evidence]


@pytest.mark.parametrize(
    ("scheme", "context"),
    [
        *((one, CONTEXT) for one in (None, "f16", "q8_0", "turbo4", "turbo3", "fp8_e4m3", "kivi4", WINDOWED, IDENTITY)),
        (None, 0),
        ("turbo4", 0),
    ],
    ids=names,
)
def test_run_twice_it_comes_out_as_uncaptured(session, scheme, context):
    stretch = captured(session, scheme, context=context)
    chosen, logits, evidence = uncaptured(session, scheme, context=context)
    assert stretch.rounds == 3
    for _ in range(2):
        passed(stretch)
        assert came_out(stretch)[0] == chosen
        assert torch.equal(came_out(stretch)[1], logits)
    assert counted(stretch.evidence()) == counted(evidence)


@pytest.mark.skipif(not triton.interpreting() or triton.missing() is not None, reason=triton.missing() or "Triton is not interpreted here")
def test_kernels_of_triton_are_captured_too(monkeypatch):
    """In the interpreter, which no store picks by itself."""
    monkeypatch.setattr(triton, "refuses", lambda place: None)
    scheme, forms = "q8_0/turbo4", "encode=triton,decode=reference,attend=triton"
    with TransformersSession(tiny.llama(num_hidden_layers=1), None, "tiny") as session:
        monkeypatch.setitem(globals(), "STEPS", 3)
        stretch = captured(session, scheme, forms, context=20)
        chosen, logits, evidence = uncaptured(session, scheme, forms, context=20)
        for _ in range(2):
            passed(stretch)
            assert came_out(stretch)[0] == chosen
            assert torch.equal(came_out(stretch)[1], logits)
        assert counted(stretch.evidence()) == counted(evidence)
        assert {(e.encode, e.attend) for e in evidence} == {("triton", "triton")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the tape stands for its graphs")
@pytest.mark.parametrize("scheme", [None, "f16", "q8_0", "turbo4", "turbo3", "fp8_e4m3", "kivi4", WINDOWED], ids=names)
def test_on_a_gpu_graphs_come_out_as_uncaptured(scheme):
    with TransformersSession(tiny.llama("bfloat16", head_dim=128).to("cuda"), None, "tiny") as session:
        stretch = captured(session, scheme, "auto", recorder=graphs.recorder("cuda"))
        chosen, _, evidence = uncaptured(session, scheme, "auto")
        for _ in range(3):
            passed(stretch)
            assert came_out(stretch)[0] == chosen
        assert audit(stretch.evidence(), len(evidence) // 2, lossless=True, identical=False, covered=True) == []


def test_the_baseline_in_place_is_the_models_own_cache_to_the_last_bit(session):
    own = cached(session, None)
    with torch.inference_mode():
        placed = InPlaceCache(session.model.config, own, 4)
    where = [layer.keys.data_ptr() for layer in placed.layers]
    for i in range(4):
        assert torch.equal(*(session.forward(TEXT[i : i + 1], cache, last=True) for cache in (own, placed)))
    assert [layer.keys.data_ptr() for layer in placed.layers] == where
    assert placed.kv_bytes() == own.kv_bytes()
    with pytest.raises(EvidenceError, match="129 tokens do not fit the 128 that were reserved"):
        session.forward(TEXT[:1], placed, last=True)


def test_a_rival_in_place_that_is_not_the_models_own_cache_is_found_out(session, monkeypatch):
    """It gives out the buffers a token short."""
    update = InPlaceLayer.update
    monkeypatch.setattr(InPlaceLayer, "update", lambda *args: tuple(whole[:, :, :-1] for whole in update(*args)))
    with pytest.raises(EvidenceError, match="the model's own cache kept in place is not that cache: its logits are"):
        captured(session, None)


def test_a_rival_that_is_read_by_another_form_of_attention_is_none(session, monkeypatch):
    """As torch would, were the buffers laid out in a way that its fast forms do not take."""
    attention = trace.attention
    forms = iter(({"math": 2}, {"flash (CPU)": 2}))
    monkeypatch.setattr(trace, "attention", lambda step: (attention(step), next(forms))[1])
    with pytest.raises(Unsupported, match=r"no fair rival in place: attention reads it by math there, and else by flash \(CPU\)"):
        captured(session, None)


@pytest.mark.parametrize("scheme", [None, "turbo4"])
def test_no_mask_is_made_of_a_single_query_while_a_graph_is_captured(session, scheme, monkeypatch):
    """As transformers 5.17 would, which looks whether a stream is being captured."""
    from transformers import masking_utils

    expected = uncaptured(session, scheme)[1]
    monkeypatch.setattr(masking_utils, "_ignore_causal_mask_sdpa", lambda *args, **kwargs: False)
    stretch = captured(session, scheme)
    assert stretch.attention == ({"flash (CPU)": 2} if scheme is None else {})
    passed(stretch)
    assert torch.equal(came_out(stretch)[1], expected)


def test_what_was_before_the_stretch_must_stay_alive(session):
    """KIVI's exact tail, which the first step moves to another array."""
    stretch = captured(session, "kivi4")
    stretch.before.held.clear()
    with pytest.raises(EvidenceError, match="what a captured call reads is gone"):
        passed(stretch)


def test_a_store_that_writes_over_what_it_has_read_is_found_out(session, monkeypatch):
    """An exact tail that is changed where it lies, so that it is another one each time."""
    append = SideStore.append

    def in_place(self: SideStore, x: Any) -> None:
        self.tail.mul_(0.9)
        append(self, x)

    twice(captured(session, "kivi4"))
    cache = cached(session, "kivi4")
    monkeypatch.setattr(SideStore, "append", in_place)
    stretch = session.stretch(TEXT[CONTEXT + 1 : CONTEXT + 1 + STEPS], cache, TOGETHER, Tapes())
    with pytest.raises(EvidenceError, match=r"captured steps do not (choose|come out)"):
        twice(stretch)


@pytest.mark.parametrize("left_out", [(0, 1, 2), (0,), (2,)])
def test_what_was_not_run_again_is_found_out(session, left_out):
    """Neither what the rehearsal wrote nor what was there while capturing is taken for it."""
    stretch = captured(session, "turbo4")
    for number in left_out:
        stretch.replays[number] = lambda: None
    with pytest.raises(EvidenceError, match="captured steps do not choose what they choose uncaptured"):
        passed(stretch)


@pytest.mark.parametrize(("name", "context"), MODELS)
def test_codes_that_are_not_written_again_are_found_out(name, context):
    """Of one side of one layer."""
    with opened(name) as session:
        stretch = captured(session, "turbo4", context=context)
        at = stretch.cache.stores[0].v.buffers["codes"].data_ptr()
        for tape in (replay.__self__ for replay in stretch.replays):
            kept = [step for step in tape.steps if not _writes(step, at)]
            assert len(kept) < len(tape.steps)
            tape.steps = kept
        with pytest.raises(EvidenceError, match=r"captured steps do not (choose|come out as uncaptured)"):
            passed(stretch)


@pytest.mark.parametrize(("name", "context"), MODELS)
def test_a_context_that_is_not_read_is_found_out(name, context):
    """Whatever was packed before the stretch is gone."""
    with opened(name) as session:
        stretch = captured(session, "turbo4", context=context)
        with torch.inference_mode():
            for side in (side for store in stretch.cache.stores for side in (store.k, store.v)):
                for buffer in side.buffers.values():
                    buffer.zero_()
        with pytest.raises(EvidenceError, match=r"captured steps do not (choose|come out as uncaptured)"):
            passed(stretch)


@pytest.mark.parametrize("scheme", [None, "turbo4"])
def test_what_is_written_to_the_wrong_place_is_found_out(scheme):
    """Two tokens of the stretch change places behind the graphs' back, of one side of one layer of a random model."""
    with opened("random:256x2") as session:
        stretch = captured(session, scheme)
        passed(stretch)
        cache, first = stretch.cache, CONTEXT + 1
        buffers = [cache.layers[1].values] if scheme is None else list(cache.stores[1].v.buffers.values())
        with torch.inference_mode():
            for buffer in buffers:
                buffer[:, :, first : first + 2] = buffer[:, :, first : first + 2].flip(2)
        with pytest.raises(EvidenceError, match=r"what was (packed|written) of .* is .* off, at most"):
            stretch.check()


@pytest.mark.parametrize("scheme", [None, "turbo4"])
@pytest.mark.parametrize("left_out", [(0, 1, 2), (1,)])
def test_a_later_run_through_that_does_nothing_is_found_out(session, scheme, left_out):
    """What the first one left is not taken for it."""
    stretch = captured(session, scheme)
    passed(stretch)
    for number in left_out:
        stretch.replays[number] = lambda: None
    with pytest.raises(EvidenceError, match="captured steps do not choose what they choose uncaptured"):
        passed(stretch)


def test_runs_through_are_the_same_to_the_bit(session):
    stretch = captured(session, "turbo4")
    twice(stretch)
    assert stretch.off == 0  # on the same machine by the same operations
    with torch.inference_mode():
        stretch.found[0][-1][1].mul_(1 + 1e-5)
    with pytest.raises(EvidenceError, match="not come out the same every time: the last logits of round 0 changed"):
        stretch.check()


def test_how_many_tokens_were_packed_is_told(session):
    """kivi4 packs keys by 128, once within these steps, and values one by one behind 128 exact ones."""
    assert captured(session, "turbo4").packed == {"k": [STEPS] * 2, "v": [STEPS] * 2}
    assert captured(session, "kivi4").packed == {"k": [128] * 2, "v": [CONTEXT + 1 + STEPS - 128] * 2}
    assert captured(session, None).packed == {}


def _writes(step: Any, address: int) -> bool:
    func, (args, _), _ = step
    return getattr(func, "_schema", None) is not None and func._schema.is_mutable and getattr(args[0], "memory", None) == address


@pytest.mark.parametrize(
    ("model", "scheme", "why"),
    [
        (tiny.sliding, None, "keeps DynamicSlidingWindowLayer, and only layers of full attention"),
        (tiny.sliding, "turbo4", "sliding windows are not captured yet"),
        (tiny.hybrid, None, "only layers of full attention are captured yet"),
        (tiny.hybrid, "turbo4", "beside keys and values, which is changed in place"),
    ],
)
def test_models_that_are_refused(model, scheme, why):
    with TransformersSession(model(), None, "tiny") as session, pytest.raises(Unsupported, match=why):
        captured(session, scheme)


def test_what_reads_on_the_host_is_refused_before_anything_is_captured(session, monkeypatch):
    monkeypatch.setattr(Tapes, "capture", lambda *args: pytest.fail("captured"))
    outcome = Stretch._outcome
    monkeypatch.setattr(Stretch, "_outcome", lambda self, found: (float(found[0][0][1].sum()), outcome(self, found))[1])
    with pytest.raises(Unsupported, match="__float__ crosses between host and device"):
        captured(session, "turbo4")


def test_there_are_no_graphs_off_cuda():
    with pytest.raises(Unsupported, match="CUDA graphs need CUDA, and the model is on cpu"):
        graphs.recorder("cpu")

"""Steps that are captured and run again: on a tape, which refuses what a CUDA graph refuses, they come out as they did uncaptured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.transformers import tiny
from backends.transformers.in_place import InPlaceCache
from backends.transformers.session import TransformersSession
from tqbench.cache.snapshot import Snapshot
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.presets import preset, read
from tqbench.core.session import Terms
from tqbench.kernels import triton
from tqbench.testing.tape import Tapes

FORMS = "encode=reference,decode=reference,attend=torch"
CONTEXT, STEPS, TOGETHER = 140, 20, 8
WINDOWED = {"name": "windowed", "k": "turbo4", "v": {"codec": "affine", "bits": 4, "group_size": 32, "window": 6, "flush": 4}, "sinks": 4}
TEXT = np.random.default_rng(0).integers(0, 256, CONTEXT + STEPS + 8)


@pytest.fixture(scope="module")
def session():
    with TransformersSession(tiny.llama(), None, "tiny") as opened:
        yield opened


def cached(session, scheme, kernel=FORMS, context=CONTEXT):
    held = session.context(TEXT[:context]) if context else None
    found = None if scheme is None else read(scheme) if isinstance(scheme, dict) else preset(scheme)
    cache = session.new_cache(found, Terms(kernel if found else "auto", quiet=True), held)
    session.forward(TEXT[context : context + 1], cache, last=True)
    return cache


def stretched(session, scheme, kernel=FORMS, context=CONTEXT, steps=STEPS, recorder=None):
    cache = cached(session, scheme, kernel, context)
    return session.stretch(TEXT[context + 1 : context + 1 + steps], cache, TOGETHER, recorder or Tapes())


def passed(stretch):
    for number in range(stretch.rounds):
        stretch.replay(number)
    stretch.check()


def uncaptured(session, scheme, kernel=FORMS, context=CONTEXT, steps=STEPS):
    """The same tokens through a cache that nobody captures: what each chooses, and the last one's logits."""
    cache, chosen = cached(session, scheme, kernel, context), []
    for i in range(context + 1, context + 1 + steps):
        logits = session.forward(TEXT[i : i + 1], cache, last=True)
        chosen.append(session.choose(logits))
    return chosen, logits, cache


@pytest.mark.parametrize("context", [0, CONTEXT])
@pytest.mark.parametrize("scheme", [None, "f16", "q8_0", "turbo4", "turbo3", "fp8_e4m3", "kivi4", WINDOWED, "turbo4[identity]"], ids=str)
def test_run_twice_it_comes_out_as_uncaptured(session, scheme, context):
    """kivi4 packs a group of tokens within the stretch; the windowed one moves tokens from an exact tail every few steps."""
    if scheme == "turbo4[identity]":
        scheme = {**preset("turbo4").to_data(), "bypass": "identity"}
    stretch = stretched(session, scheme, context=context)
    chosen, logits, cache = uncaptured(session, scheme, context=context)
    assert stretch.rounds == 3
    for _ in range(2):
        with torch.inference_mode():
            stretch.logits.zero_()
        passed(stretch)
        assert torch.stack(stretch.chosen).tolist() == chosen
        assert torch.equal(stretch.logits, logits)
    if scheme is not None:
        found, plain = stretch.evidence(), (cache.verify(), cache.evidence())[1]
        assert [(e.tokens, e.tokens_packed, e.attended, e.attended_packed) for e in found] == [
            (e.tokens, e.tokens_packed, e.attended, e.attended_packed) for e in plain
        ]
        assert [e.attend_error for e in found] == [e.attend_error for e in plain]
        assert [e.error for e in found] == [e.error for e in plain]


def test_kivi_packs_within_the_stretch(session):
    stretch = stretched(session, "kivi4", context=128 - 10)
    assert [store.k.units for store in stretch.cache.stores] == [store.k.units for store in stretch.cache.stores] != [0, 0]
    passed(stretch)
    passed(stretch)

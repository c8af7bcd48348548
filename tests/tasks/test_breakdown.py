"""A step by its operations: each module is charged with its own, and what is left is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from backends.transformers import tiny
from backends.transformers.random import Bytes
from backends.transformers.session import TransformersSession
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset
from tqbench.core.record import Cell, Record
from tqbench.corpora import Text
from tqbench.measure import clock, stages
from tqbench.tasks import Job, breakdown, run

TEXT = Text("words", "The quick brown fox jumps over the lazy dog. " * 20, "a test")
PARAMS = {"context": 40, "new": 4, "repetitions": 2, "protocol": "strict"}
OPERATIONS = {"embed", "norm", "qkv", "rope", "append", "attend", "out", "residual", "ffn", "activation", "lm_head", "model", "choose"}


@pytest.fixture
def session() -> Any:
    with TransformersSession(tiny.llama(), Bytes(), "tiny") as opened:
        yield opened


def measured(session: Any, scheme: str | None) -> Record:
    data = preset(scheme).to_data() if scheme else None
    cell = Cell("tiny", "transformers", "cpu", "float32", data, "attend=torch" if data else "auto", "breakdown", PARAMS, {"name": "words"})
    return Record(cell, "ok", **run(Job(session, cell, TEXT, lambda n: None)).fields).audited()


@pytest.mark.parametrize("scheme", ["turbo4", None])
def test_every_operation_is_found_and_they_reconcile_with_the_whole(session: Any, scheme: str | None) -> None:
    record = measured(session, scheme)
    assert (record.outcome, record.audits) == ("ok", [])
    own = record.stages["cell"]
    assert own["stages"].keys() == OPERATIONS | ({"encode", "decode", "settle"} if scheme else set())
    assert all(seconds > 0 for seconds in own["stages"].values())
    assert sum(own["stages"].values()) <= own["whole"]
    assert record.stages["moves"] == 8
    named = sum(seconds for name, seconds in own["stages"].items() if name != breakdown.OUTSIDE)
    assert record.metrics["explained"].value == pytest.approx(named / own["whole"])
    assert record.metrics["marked_ms"].value == pytest.approx(1e3 * own["whole"] / 8)
    assert record.metrics.keys() == {"step_ms", "marked_ms", "marks_cost", "explained"}


def test_time_goes_to_the_operation_that_takes_it(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the feed-forward products move."""
    hand = [0.0]
    monkeypatch.setattr(clock, "seconds", lambda: hand[0])

    def slow(*_: Any) -> None:
        hand[0] += 1

    for layer in session.model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            forward = getattr(layer.mlp, name).forward
            monkeypatch.setattr(getattr(layer.mlp, name), "forward", lambda x, forward=forward: (slow(), forward(x))[1])
    cache = session.new_cache(None)
    with session.operations(), stages.timed() as found:
        session.forward(np.arange(3), cache, last=True)
    assert {name: seconds for name, seconds in found.seconds.items() if seconds} == {"ffn": 6}


def test_hooks_are_gone_afterwards_and_change_no_digit(session: Any) -> None:
    plain = session.forward(np.arange(9), session.new_cache(None))
    with session.operations():
        marked = session.forward(np.arange(9), session.new_cache(None))
    assert torch.equal(plain, marked)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in session.model.modules())


def test_a_model_of_other_modules_is_refused() -> None:
    with TransformersSession(tiny.hybrid(), Bytes(), "tiny") as hybrid:
        refused = hybrid.operations()
        with pytest.raises(Unsupported, match="needs a Llama-like model; in this one no module is known as"):
            refused.__enter__()

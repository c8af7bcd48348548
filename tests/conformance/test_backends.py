"""The transformers backend on tiny random models, against every backend check."""

import pytest
import torch

from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset
from tqbench.testing import Backend, backend_cases


def open_session(model):
    return TransformersSession(model, None, "tiny")


@torch.inference_mode()
def logits(model, tokens):
    return model(torch.from_numpy(tokens)[None]).logits[0]


def state(model):
    """The engine's attention, and whatever has been put on single modules."""
    return model.config._attn_implementation, [(name, sorted(vars(module))) for name, module in model.named_modules()]


def backend(make, dtype):
    return Backend(f"{make.__name__} {dtype}", lambda: make(dtype), open_session, logits, state)


BACKENDS = [backend(make, dtype) for make in (tiny.llama, tiny.qwen2, tiny.hybrid) for dtype in ("float32", "float64")]


@pytest.mark.parametrize("case", [case for one in BACKENDS for case in backend_cases(one)], ids=str)
def test_transformers(case):
    case.run()


def test_a_sliding_window_is_refused_and_named():
    session = open_session(tiny.sliding())
    with pytest.raises(Unsupported, match="2 of 2 layers attend in a sliding window"):
        session.new_cache(preset("q8_0"))
    session.new_cache(None)
    assert session.info.kv_layers == 0


def test_only_full_attention_goes_through_the_store():
    session = open_session(tiny.hybrid())
    cache = session.new_cache(preset("turbo4"))
    session.forward(torch.arange(8).numpy(), cache)
    assert {(side.layer, side.side) for side in cache.evidence()} == {(1, "k"), (1, "v"), (3, "k"), (3, "v")}


def test_tiny_models_leave_the_generator_alone():
    before = torch.random.get_rng_state()
    first, second = tiny.llama(), tiny.llama()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)

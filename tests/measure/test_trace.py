"""Which attention a step took, and where the host waited: by evidence."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tqbench.measure import trace

X = torch.randn(1, 2, 8, 16)


@pytest.mark.parametrize(("backend", "form"), [(SDPBackend.MATH, "math"), (SDPBackend.FLASH_ATTENTION, "flash (CPU)")])
def test_the_form_that_torch_took_is_found(backend: SDPBackend, form: str) -> None:
    def step() -> None:
        with torch.inference_mode(), sdpa_kernel(backend):
            scaled_dot_product_attention(X, X, X)
            scaled_dot_product_attention(X, X, X)

    found = trace.trace(step, "cpu")
    assert found.attention == {form: 2}
    assert found.data(1) == {"tokens": 1, "attention": {form: 2}, "host_waits": None, "reason": trace.IN_ORDER}


def test_waits_are_counted_with_their_places_and_the_mode_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step() -> None:
        if modes == ["warn"]:  # what torch does at each wait, in that mode
            for _ in range(6):
                warnings.warn("called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:150.)", stacklevel=1)
            warnings.warn("of something else", stacklevel=1)

    found = trace.trace(step, "cuda:0")
    assert modes == ["warn", 0]
    ((place, count),) = found.places.items()
    assert place.startswith("measure/test_trace.py:")
    assert "called a synchronizing" in place
    assert (found.waits, count) == (6, 6)
    assert found.data(3)["host_waits"] == 2

"""What is special to transformers: masks and arguments that a model hands to its attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from backends.transformers import tiny
from backends.transformers.attention import _is_causal
from backends.transformers.session import TransformersSession
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset

TOKENS = np.arange(20)


def test_a_mask_of_the_models_own_is_refused_not_ignored() -> None:
    session = TransformersSession(tiny.llama(), None, "tiny")
    cache = session.new_cache(preset("f32"))
    forward = session.model.forward

    def masked(**given: Any) -> Any:
        hidden = torch.ones(1, len(TOKENS), dtype=torch.long)
        hidden[0, 3] = 0  # the fourth token is nobody's to see
        return forward(attention_mask=hidden, **given)

    session.model.forward = masked
    try:
        with pytest.raises(Unsupported, match="masks keys in a way of its own"):
            session.forward(TOKENS, cache)
    finally:
        del session.model.forward
        session.close()


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_causal_mask_is_known_in_both_forms(dtype: torch.dtype) -> None:
    causal = torch.ones(1, 1, 4, 10, dtype=torch.bool).tril(6)
    wrong = causal.clone()
    wrong[..., 2, 5] = False
    shown = [mask if dtype == torch.bool else torch.zeros(mask.shape).masked_fill(~mask, -1e9) for mask in (causal, wrong)]
    assert [_is_causal(mask, 10) for mask in shown] == [True, False]


def test_an_argument_that_attention_does_not_know_is_refused() -> None:
    from backends.transformers.attention import _through

    with pytest.raises(Unsupported, match="is given softcap, sliding_window"):
        _through(None, None, torch.zeros(1), None, {"scaling": 0.1, "softcap": 30.0, "sliding_window": 128, "position_ids": None})

"""Keys before RoPE: what we take out is what the model's own rotary module put in, for every form that is taken; others say why not."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.cache.rope import Rope
from tqbench.core.errors import Unsupported
from tqbench.core.presets import read

THETA = {"rope_theta": 10000.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
FORMS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0, **THETA},
    "llama3": {"rope_type": "llama3", **LLAMA3, **THETA},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **THETA},
}
PRE = read({"name": "pre", "k": {"codec": "cast", "dtype": "float32", "rope": "pre"}, "v": "f32"})


def phi3(**rope: Any) -> Any:
    """Half of the channels turn."""
    changes = {"pad_token_id": 0, "rope_parameters": {**FORMS["default"], "partial_rotary_factor": 0.5, **rope}}
    return tiny.make(transformers.Phi3Config(**tiny.SHAPE | changes), "float32")


MODELS = {name: lambda form=form: tiny.llama(rope_parameters=form) for name, form in FORMS.items()} | {"partial": phi3}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_taken_out_is_what_the_models_own_module_put_in(name: str) -> None:
    model = MODELS[name]()
    with TransformersSession(model, None, "tiny") as session:
        rope = session.shape.rope
    assert isinstance(rope, Rope)
    rotary = next(m for m in model.modules() if hasattr(m, "inv_freq"))
    own = sys.modules[type(rotary).__module__].apply_rotary_pos_emb
    before = torch.randn(1, 2, 40, 64, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary(before, torch.arange(700, 740)[None])
    after = own(before, before, cos, sin)[1]
    assert torch.equal(rope.redo(before, 700), after)
    assert (rope.undo(after, 700) - before).abs().max() < 1e-5
    assert 2 * len(rope.frequencies) == (32 if name == "partial" else 64)
    assert torch.equal(rope.redo(before, 700)[..., 2 * len(rope.frequencies) :], before[..., 2 * len(rope.frequencies) :])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_whose_keys_are_kept_before_rope_says_what_it_said(name: str) -> None:
    ids = np.random.default_rng(0).integers(0, 256, 80)
    with TransformersSession(MODELS[name](), None, "tiny") as session:
        exact, kept = (session.forward(ids, session.new_cache(scheme)) for scheme in (None, PRE))
    assert (kept - exact).abs().max() < 1e-3


def cohere() -> Any:
    """Interleaved pairs."""
    return tiny.make(transformers.CohereConfig(**tiny.SHAPE), "float32")


def longrope() -> Any:
    changes = {"max_position_embeddings": 128, "original_max_position_embeddings": 64, "pad_token_id": 0}
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32, **THETA}
    return tiny.make(transformers.Phi3Config(**tiny.SHAPE | changes, rope_parameters=factors), "float32")


REFUSED = {
    "dynamic": (
        lambda: tiny.llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, **THETA}),
        "rope_type 'dynamic' they depend on the",
    ),
    "longrope": (longrope, "rope_type 'longrope' they depend on the length"),
    "interleaved": (cohere, "'cohere' here: whether it pairs channels half-split or interleaved"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_undone_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with TransformersSession(make(), None, "tiny") as session, pytest.raises(Unsupported, match=reason):
        session.new_cache(PRE)

"""Models by their size alone: the same weights everywhere, and names that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from backends.transformers import open_session, random
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.models import resolve
from tqbench.suite.cost import Size


@pytest.mark.parametrize("name", ["random:100x2", "random:64", "random:64x0", "random:20000x2", "random:x", "random:64x200"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown model '{name}': a random model is random:HIDDENxLAYERS"):
        resolve.resolve(name)


def test_a_plan_knows_their_size_and_needs_no_file() -> None:
    size = Size.of(resolve.config("random:512x4"))
    assert size is not None
    assert (size.layers, size.channels, size.kv_channels, size.head_dim) == (4, 512, 128, 64)
    needs = resolve.needs("random:512x4")
    assert (needs.download_bytes, needs.conversion) == (0, False)


def test_a_known_shape_has_its_size_and_no_other_has_a_name() -> None:
    size = Size.of(resolve.config("random:8b"))
    assert size is not None
    assert (size.layers, size.channels, size.kv_channels, size.head_dim, size.vocab) == (32, 4096, 1024, 128, 128256)
    assert size.parameters == pytest.approx(8.03e9, rel=1e-3)
    config = {key: value for key, value in resolve.config("random:8b").items() if key not in ("model_type", "architectures")}
    assert random.parameters(LlamaConfig(**config)) == 8030261248
    with pytest.raises(ConfigError, match="as random:512x4, or random:8b"):
        resolve.resolve("random:80b")


def test_a_large_model_is_drawn_where_it_runs_in_its_own_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here on the meta device, which draws nothing, and then on the CPU as if it were another."""
    config = resolve.config("random:128x2")
    monkeypatch.setattr(random, "LARGE", 1000)
    made, drawn = random.model(config, "meta", "bfloat16")
    assert (drawn, {str(x.device) for x in made.parameters()}) == ("random, seed 0, drawn on meta", {"meta"})
    before = torch.get_rng_state()
    one, other = (random._there(made.config, "cpu", "bfloat16") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert {x.dtype for x in one.parameters()} == {torch.bfloat16}
    assert not one.training
    for x, y in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y)
        assert x.dim() == 1 or float(x.detach().float().std()) == pytest.approx(made.config.initializer_range, rel=0.1)


def test_weights_are_drawn_from_one_seed() -> None:
    with open_session(resolve.resolve("random:128x2")) as one, open_session(resolve.resolve("random:128x2"), dtype="bfloat16") as other:
        assert one.info.weights == "random, seed 0, computed in float32"
        assert (one.info.layers, one.info.heads, one.info.kv_heads, one.info.head_dim) == (2, 2, 1, 64)
        for (name, x), (_, y) in zip(one.model.named_parameters(), other.model.named_parameters(), strict=True):
            assert torch.equal(x.bfloat16(), y), name
        assert one.tokenize("Aß").tolist() == [65, 195, 159]
        logits = one.forward(np.arange(5), one.new_cache(None), last=True)
        assert logits.shape == (1, 32000)
        assert logits.std() > 0


def test_a_device_that_is_not_here_is_said_before_weights_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqbench.measure import device

    monkeypatch.setattr(device, "absent", lambda name: "no GPU with a driver is seen here" if name == "cuda" else None)
    with pytest.raises(Unsupported, match="device 'cuda' is not here: no GPU with a driver is seen here"):
        open_session(resolve.resolve("random:128x2"), "cuda")


def test_mlx_says_that_it_makes_none() -> None:
    mlx = pytest.importorskip("backends.mlx")
    with pytest.raises(Unsupported, match="random models are made by the transformers backend alone"):
        mlx.open_session(resolve.resolve("random:128x2"))

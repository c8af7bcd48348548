"""The task `sensitivity` on tiny models: it finds what was made fragile, packs one side of one layer at a time and proves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.mlx.loading import load_weights
from backends.mlx.session import MlxSession
from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset, read
from tqbench.core.record import Cell, Record
from tqbench.core.scheme import Scheme
from tqbench.corpora import Text
from tqbench.tasks import Job, run, sensitivity

TEXT = Text("words", "The quick brown fox jumps over the lazy dog. " * 40, "a test")
PARAMS = {"recipe": "stream", "protocol": "strict", "context": 96, "tokens": 96, "chunk": 96}
LAYERS = 4


class Bytes:
    """A tokenizer whose tokens are bytes."""

    bos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def opened(model: Any) -> TransformersSession:
    return TransformersSession(model, Bytes(), "tiny")


def measured(session: Any, scheme: Any = "turbo3", **params: Any) -> tuple[Record, dict[str, Any]]:
    data = None if scheme is None else (preset(scheme) if isinstance(scheme, str) else read(scheme)).to_data()
    own = {} if scheme is None else {"probes": "layers"}
    cell = Cell("tiny", "transformers", "cpu", "float32", data, "auto", "sensitivity", PARAMS | own | params, {"name": "words"})
    told: list[int] = []
    result = run(Job(session, cell, TEXT, told.append))
    assert sum(told) == sensitivity.passes(cell, session.info.kv_layers) * PARAMS["tokens"]
    return Record(cell, "ok", **result.fields).audited(), result.arrays


def fragile(seed: int) -> tuple[Any, int]:
    """A random model, and the layer whose keys are so long that attention is sharp: the same relative error moves it to other tokens."""
    model, layer = tiny.llama(num_hidden_layers=LAYERS, hidden_size=128, head_dim=64), seed % LAYERS
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05, generator=generator)
        model.model.embed_tokens.weight *= 10  # each layer adds little to the stream, so that the first weighs no more than the last
        model.model.layers[layer].self_attn.k_proj.weight *= 80
    return model, layer


@pytest.mark.parametrize("seed", range(20))
def test_the_fragile_place_comes_first(seed: int) -> None:
    model, layer = fragile(seed)
    with opened(model) as session:
        record, _ = measured(session)
    assert (record.outcome, record.audits) == ("ok", [])
    worst = max(record.layers, key=lambda row: row["kld"])
    assert (worst["layer"], worst["side"]) == (layer, "k")
    assert worst["first"] > 0.5
    assert worst["kld"] == record.metrics["kld_worst"].value


def test_without_its_weakness_that_layer_is_not_first() -> None:
    model, layer = fragile(3)
    with torch.no_grad():
        model.model.layers[layer].self_attn.k_proj.weight /= 80
    with opened(model) as session:
        record, _ = measured(session)
    worst = max(record.layers, key=lambda row: row["kld"])
    assert (worst["layer"], worst["side"]) != (layer, "k")


@pytest.fixture(scope="module")
def session():
    with opened(fragile(0)[0]) as one:
        yield one


@pytest.mark.parametrize("scheme", ["turbo4", "q8_0/turbo3"])
def test_a_cell_has_all_layers_and_sides_of_the_scheme(session, scheme: str) -> None:
    record, arrays = measured(session, scheme)
    places = [(layer, side) for layer in range(LAYERS) for side in "kv"]
    assert [(row["layer"], row["side"]) for row in record.layers] == [(e["layer"], e["side"]) for e in record.evidence] == places
    assert arrays["probe_kld"].shape == arrays["probe_nll"].shape == (2 * LAYERS + 3, PARAMS["tokens"])
    for row, kld in zip(record.layers, arrays["probe_kld"], strict=False):
        assert row["kld"] == pytest.approx(kld.mean())
        assert row["kld_low"] <= row["kld"] <= row["kld_high"]
    sums = {side: sum(row["kld"] for row in record.layers if row["side"] == side) for side in "kv"}
    assert record.metrics["kld_sum_k"].value == pytest.approx(sums["k"])
    assert record.metrics["kld_sum"].value == pytest.approx(sums["k"] + sums["v"])
    assert sum(row["first"] for row in record.layers) == pytest.approx(1)
    assert record.coverage == 1
    assert record.coverage_sides == {"k": 1, "v": 1}
    by_side, _ = measured(session, scheme, probes="sides")
    assert by_side.layers == []
    assert {name: by_side.metrics[name] for name in ("kld", "kld_k", "kld_v")} == {n: record.metrics[n] for n in ("kld", "kld_k", "kld_v")}
    assert by_side.evidence == record.evidence
    assert max(sums["k"], record.metrics["kld_k"].value) < 3 * min(sums["k"], record.metrics["kld_k"].value)  # damage adds up, roughly


def test_a_probe_equals_the_scheme_that_a_user_would_write(session) -> None:
    """K of the last layer alone, from a mapping."""
    rest = {"first": LAYERS - 1, "scheme": "f32"}
    mine = read({"name": "mine", "k": "turbo3", "v": "f32", "layers": [rest]})
    ids = session.tokenize(TEXT.text)
    tokens, targets = ids[:96], ids[1:97]
    found = session.score(tokens, session.new_cache(mine), targets, session.new_cache(None), 96)
    record, _ = measured(session)
    row = next(row for row in record.layers if (row["layer"], row["side"]) == (LAYERS - 1, "k"))
    assert row["kld"] == pytest.approx(found.kld.mean())
    assert row["dnll"] == pytest.approx((found.nll - found.base_nll).mean())


def test_layers_that_a_scheme_protects_are_probed_as_they_run(session) -> None:
    layers = {"first": 1, "scheme": "q8_0"}
    record, _ = measured(session, {"name": "mine", "k": "turbo2", "v": "turbo2", "protect": layers})
    codecs = {e["layer"]: e["codec"] for e in record.evidence}
    assert codecs == {0: "block", **dict.fromkeys(range(1, LAYERS), "codebook")}


def test_the_model_is_looked_at_once(session) -> None:
    record, arrays = measured(session, None)
    assert record.outcome == "ok"
    assert abs(record.metrics["kld_nothing"].value) < 1e-6
    assert arrays["nll"].shape == (PARAMS["tokens"],)
    keys = {row["layer"]: row for row in record.layers if row["side"] == "k"}
    assert set(keys) == set(range(LAYERS))
    assert keys[0]["norm_mean"] > 20 * max(keys[layer]["norm_mean"] for layer in range(1, LAYERS))
    assert all(row["bias"] == 0 for row in keys.values())


def test_identity_costs_exactly_nothing(session) -> None:
    record, _ = measured(session, {"scheme": "turbo3", "bypass": "identity"})
    assert record.outcome == "ok"
    assert {row["kld"] for row in record.layers} == {0.0}


def test_what_packs_nothing_at_this_length_has_no_figures(session) -> None:
    """KIVI keeps its last 128 tokens exact."""
    record, _ = measured(session, "kivi2")
    assert (record.outcome, record.metrics, record.layers) == ("inactive", {}, [])
    assert "set a longer context" in " ".join(record.audits)


def test_a_whole_side_leaves_the_other_alone_in_layers_with_a_rule_too(session) -> None:
    rules = {"protect": {"first": 1, "scheme": "q8_0"}, "layers": [{"last": 1, "scheme": "turbo4"}]}
    scheme = read({"name": "mine", "k": "turbo3", "v": "turbo3", **rules})
    record, _ = measured(session, scheme.to_data(), probes="sides")
    assert (record.outcome, record.audits) == ("ok", [])
    only = sensitivity.whole(scheme, "k", session.info)
    names = [(own.k.codec.name, own.v.codec.name) for own in (only.for_layer(i, LAYERS) for i in range(LAYERS))]
    assert {v for _, v in names} == {"cast"}
    assert [k for k, _ in names] == [scheme.for_layer(i, LAYERS).k.codec.name for i in range(LAYERS)]
    assert record.metrics["kld_k"].value < record.metrics["kld"].value


@pytest.mark.parametrize("leak", ["layer", "side"])
def test_a_probe_that_packs_more_than_it_says_has_no_figures(session, monkeypatch: pytest.MonkeyPatch, leak: str) -> None:
    honest = sensitivity.alone

    def leaky(scheme: Scheme, position: int, side: str, info: Any) -> Scheme:
        probe = honest(scheme, position, side, info)
        if leak == "side":
            return read({**probe.to_data(), "k": scheme.to_data()["k"], "v": scheme.to_data()["v"]})
        return read({**probe.to_data(), "layers": [{"at": [(position + 1) % LAYERS, (position + 2) % LAYERS], "scheme": "f32"}]})

    monkeypatch.setattr(sensitivity, "alone", leaky)
    record, _ = measured(session)
    assert (record.outcome, record.metrics, record.layers) == ("inactive", {}, [])
    assert "lost something" in " ".join(record.audits)


def test_a_store_that_ignores_the_rules_has_no_figures(session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is packed, whatever layers the scheme names: larger figures, and none of them true."""
    monkeypatch.setattr(Scheme, "for_layer", lambda self, *_: preset("turbo3") if self.layers else self)
    record, _ = measured(session)
    assert (record.outcome, record.layers) == ("inactive", [])


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ({"name": "mine", "k": "q8_0", "v": "q8_0", "logits": {"form": "grow", "value": 0.1}}, "none can be looked at alone"),
        ("kvtc_paper_8x", "packs all layers together, so none"),
    ],
)
def test_what_has_no_layer_alone_says_so(session, scheme: Any, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        measured(session, scheme, calibration={"corpus": {"name": "python-docs"}, "tokens": 512, "seed": 0})


def test_float64_is_refused_with_the_way_out() -> None:
    with opened(tiny.llama("float64")) as wide, pytest.raises(Unsupported, match="set `dtype: float32`"):
        measured(wide)


def test_only_layers_that_hold_keys_and_values_are_probed() -> None:
    with opened(tiny.hybrid()) as one:
        record, _ = measured(one)
        base, _ = measured(one, None)
    assert record.outcome == "ok"
    assert {row["layer"] for row in record.layers} == {row["layer"] for row in base.layers} == {1, 3}


def test_a_key_bias_is_seen() -> None:
    with opened(tiny.qwen2()) as one:
        base, _ = measured(one, None)
    keys, values = ([row for row in base.layers if row["side"] == side] for side in "kv")
    assert all(row["bias"] > 0.9 for row in keys)
    assert all(row["kurtosis"] > 3 * row["kurtosis_rotated"] for row in keys)
    assert all(abs(row["kurtosis"] - 3) < 0.5 for row in values)
    assert min(row["channel_max"] for row in keys) > 5


def test_evidence_of_another_probe_is_no_evidence(session) -> None:
    """The proof is of the side that was asked for, whatever else was packed."""
    scheme, cache = preset("turbo3"), session.new_cache(preset("turbo3"))
    ids = session.tokenize(TEXT.text)
    scores = session.score(ids[:96], cache, ids[1:97], session.new_cache(None), 96)
    probe = sensitivity._Probe(range(1, 2), "v", sensitivity.alone(scheme, 1, "v", session.info))
    probe.take(scores, cache.evidence(), session.info)
    assert [(e.layer, e.side) for e in probe.own] == [(1, "v")]
    assert sum("lost something" in text for text in probe.audits) == 2 * LAYERS - 1
    assert np.isfinite(probe.scores.kld).all()


def test_mlx_finds_the_same(tmp_path: Path) -> None:
    """The same weights on the other engine: the same ranking, the same traits, the same bias."""
    rope = {"rope_type": "default", "rope_theta": 700.0}
    model = tiny.qwen2(num_hidden_layers=3, rope_parameters=rope)
    model.save_pretrained(tmp_path)
    with opened(model) as torch_session:
        here, base = measured(torch_session)[0], measured(torch_session, None)[0]
    with MlxSession(load_weights(tmp_path, "float32", trust_remote_code=False), Bytes(), model.config, "tiny") as mlx_session:
        there, other = measured(mlx_session)[0], measured(mlx_session, None)[0]
    assert (there.outcome, there.audits) == ("ok", [])
    for one, two in zip(here.layers, there.layers, strict=True):
        assert (one["layer"], one["side"]) == (two["layer"], two["side"])
        assert two["kld"] == pytest.approx(one["kld"], rel=0.05)
    for one, two in zip(base.layers, other.layers, strict=True):
        assert two.pop("side") == one.pop("side")
        assert two == pytest.approx(one, rel=1e-3)

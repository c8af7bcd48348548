"""The backends on tiny random models: every backend check, and every kind of scheme on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from backends.mlx.loading import load_weights
from backends.mlx.session import MlxSession
from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.core.evidence import audit, coverage
from tqbench.core.presets import preset, presets, read
from tqbench.core.scheme import Scheme
from tqbench.core.session import Protocol, Terms, TokenScores
from tqbench.testing import Backend, backend_cases
from tqbench.testing.refusal import refusal


def open_session(model: Any) -> TransformersSession:
    return TransformersSession(model, None, "tiny")


@torch.inference_mode()
def logits(model: Any, tokens: Any) -> Any:
    return model(torch.from_numpy(tokens)[None]).logits[0]


def state(model: Any) -> Any:
    """The engine's attention, and whatever has been put on single modules."""
    return model.config._attn_implementation, [(name, sorted(vars(module))) for name, module in model.named_modules()]


def backend(make: Callable[[str], Any], dtype: str) -> Backend:
    return Backend(f"{make.__name__} {dtype}", lambda: make(dtype), open_session, logits, state)


MODELS = (tiny.llama, tiny.qwen2, tiny.hybrid, tiny.sliding, tiny.gemma3)
BACKENDS = [
    *(backend(make, dtype) for make in MODELS for dtype in ("float32", "float64")),
    backend(tiny.gemma2, "float32"),  # its own attention computes in float32 whatever the model does
]


@pytest.mark.parametrize("case", [case for one in BACKENDS for case in backend_cases(one)], ids=str)
def test_transformers(case: Any) -> None:
    case.run()


def test_only_layers_that_hold_keys_and_values_go_through_the_store() -> None:
    session = open_session(tiny.hybrid())
    cache = session.new_cache(preset("turbo4"))
    session.forward(torch.arange(8).numpy(), cache)
    assert {(side.layer, side.side) for side in cache.evidence()} == {(1, "k"), (1, "v"), (3, "k"), (3, "v")}


def test_tiny_models_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = tiny.llama(), tiny.llama()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)


# --- schemes of every kind on every backend

TOKENS = 150  # KIVI and its like flush after 128
CHUNK: dict[Protocol, int] = {"strict": 40, "deploy": 70}  # deployed, a third call sees what the first two have left packed
IDS = np.random.default_rng(0).integers(0, 256, TOKENS + 200)
CHANNEL = {"codec": "affine", "bits": 4, "group_size": 32, "axis": "channel"}
TOKEN = {"codec": "affine", "bits": 4, "group_size": 32, "axis": "token"}
CODEBOOK = {"codec": "codebook", "bits": 4}
KINDS: dict[str, Any] = {
    "lossless": "f32",
    "destructive": "destructive",
    "token-wise": "turbo4",
    "padded": "turbo3_pad128",
    "product": "turboquant_prod3",
    "channel-wise": {"k": CHANNEL, "v": {**TOKEN, "window": 32}},
    "flushed": "kivi2",
    "A/B": "q8_0/turbo3",
    "sinks, windows, protect": {
        "k": {**CHANNEL, "window": 5},
        "v": {"codec": "block", "bits": 8, "window": 9, "flush": 4},
        "sinks": 3,
        "protect": {"first": 1, "last": 1, "scheme": "turbo4"},
    },
    "rules for layers": {"k": "turbo4", "v": "turbo4", "layers": [{"first": 1, "scheme": "q8_0"}, {"at": [-1], "scheme": "turbo3"}]},
    "gqa": {"k": "turbo2", "v": "turbo2", "gqa": {"at_least": 2, "scheme": "q8_0/turbo4"}},
    "logits": {"k": "q8_0", "v": "q8_0", "logits": {"form": "grow", "value": 0.1}},
    "cross_head": {"k": {**CODEBOOK, "rotation": "cross_head"}, "v": {**CODEBOOK, "rotation": "hadamard_signed"}},
    "calibrated": "turboquant_3.5",
    "centred keys before RoPE": {"k": {"codec": "block", "bits": 4, "center": True, "rope": "pre"}, "v": "q8_0"},
}
CALIBRATED = ("calibrated", "centred keys before RoPE")
ON_MLX = [name for name in KINDS if name not in CALIBRATED]


def scheme_of(kind: str) -> Scheme:
    data = KINDS[kind]
    return preset(data) if isinstance(data, str) else read({"name": kind, **data})


def model(head_dim: int, layers: int, dtype: str = "float32") -> Any:
    """Eight KV heads, as the rotation across heads needs, for sixteen query heads."""
    return tiny.llama(dtype, num_key_value_heads=8, num_attention_heads=16, num_hidden_layers=layers, head_dim=head_dim)


Open = Callable[..., Any]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Sessions by backend, dtype, head_dim and layers, opened once; both backends run the same weights."""
    root, opened = tmp_path_factory.mktemp("models"), []

    @cache
    def open_(name: str, dtype: str = "float32", head_dim: int = 64, layers: int = 3) -> Any:
        own = model(head_dim, layers, dtype)
        if name == "transformers":
            opened.append(open_session(own))
        else:
            folder: Path = root / f"{head_dim}-{layers}"
            own.save_pretrained(folder)
            config = transformers.AutoConfig.from_pretrained(folder)
            opened.append(MlxSession(load_weights(folder, dtype, trust_remote_code=False), None, config, "tiny"))
        return opened[-1]

    yield open_
    for session in opened:
        session.close()


def scores(session: Any, scheme: Scheme, chunk: int = TOKENS, protocol: Protocol = "strict") -> tuple[TokenScores, Any]:
    """The scheme beside the baseline, and its cache; what must learn does so on other tokens."""
    terms = Terms(protocol=protocol, calibration=session.calibrate([IDS[TOKENS:]]) if scheme.calibrated else None)
    ids, own = IDS[:TOKENS], session.new_cache(scheme, terms)
    return session.score(ids, own, np.append(ids[1:], -1), against=session.new_cache(None), chunk=chunk), own


def runs_as_declared(session: Any, scheme: Scheme, protocol: Protocol = "strict") -> TokenScores:
    """Its identity control is exactly the baseline, its bridge rounding, its evidence complete, its effect real."""
    zero, bridge = (scores(session, replace(scheme, bypass=control), CHUNK[protocol], protocol)[0] for control in ("identity", "bridge"))
    assert np.array_equal(zero.nll, zero.base_nll)
    assert not zero.kld.any()
    assert bridge.kld.max() < 1e-5
    found, cache = scores(session, scheme, CHUNK[protocol], protocol)
    same, lossless = np.array_equal(found.nll, found.base_nll), scheme.lossless_in(session.info.dtype)
    assert audit(cache.evidence(), session.info.kv_layers, lossless=lossless, identical=same) == []
    assert coverage(cache.evidence()) > 0
    assert found.kld.max() < 1e-5 if lossless else found.kld.mean() > 1e-8
    return found


def same_in_both(ours: TokenScores, theirs: TokenScores) -> None:
    """Codes at the edges of cells turn with float32 rounding, so the two differ by a part of what the scheme costs: measured up to 0.15 for
    the finest, mostly under 0.03. Two codecs of one accuracy that share nothing differ by 1.4 of it."""
    apart, cost = (np.sqrt(np.square(ours.nll - other).mean()) for other in (theirs.nll, ours.base_nll))
    assert apart < 0.3 * cost + 1e-5
    assert ours.kld.mean() == pytest.approx(theirs.kld.mean(), rel=0.05, abs=1e-7)


def uncut(session: Any, scheme: Scheme) -> None:
    """In float64 how the text is cut changes nothing; what is kept in float32 may fall either way in its last bit."""
    whole, bound = scores(session, scheme)[0], 1e-7 if scheme.lossless_in("float32") else 1e-11
    for chunk in (7, 32):
        assert np.abs(scores(session, scheme, chunk)[0].nll - whole.nll).max() < bound


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheme_of_each_kind_runs_in_transformers(kind: str, sessions: Open) -> None:
    runs_as_declared(sessions("transformers"), scheme_of(kind))
    uncut(sessions("transformers", "float64"), scheme_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheme_of_each_kind_runs_deployed(kind: str, sessions: Open) -> None:
    found = runs_as_declared(sessions("transformers"), scheme_of(kind), "deploy")
    if scheme_of(kind).logits is None:
        assert found.kld[: CHUNK["deploy"]].max() < 1e-5  # the first call sees itself exactly


@pytest.mark.parametrize("kind", ON_MLX)
def test_a_scheme_of_each_kind_runs_in_mlx_as_in_transformers(kind: str, sessions: Open) -> None:
    ours = runs_as_declared(sessions("mlx"), scheme_of(kind))
    same_in_both(ours, scores(sessions("transformers"), scheme_of(kind), CHUNK["strict"])[0])


@pytest.mark.parametrize("kind", ["token-wise", "flushed", "sinks, windows, protect"])
def test_deploy_is_the_same_in_both(kind: str, sessions: Open) -> None:
    ours = runs_as_declared(sessions("mlx"), scheme_of(kind), "deploy")
    same_in_both(ours, scores(sessions("transformers"), scheme_of(kind), CHUNK["deploy"], "deploy")[0])


# --- what MLX does not run

CALIBRATION = "calibrated schemes run on the transformers backend only"  # codecs learn in torch, from keys before RoPE among others
OTHER_LIBRARY = "runs on the transformers backend only"  # quanto, hqq and transformers' own fp8 are caches of transformers
REFUSED_BY_MLX = {
    **dict.fromkeys(
        (
            "fp8_e4m3_static",
            "kvquant2",
            "kvquant3",
            "kvquant4",
            "mlx_vlm_2.5_split",
            "mlx_vlm_3.5_split",
            "nvfp4_static",
            "turboquant_2.5",
            "turboquant_3.5",
        ),
        CALIBRATION,
    ),
    **dict.fromkeys((name for name in presets() if name.startswith("kvtc_")), CALIBRATION),
    **dict.fromkeys(("peer:quanto4", "peer:quanto2", "peer:hqq8", "peer:hqq4", "peer:hqq2", "peer:fp8"), OTHER_LIBRARY),
}


def layers_for(scheme: Scheme) -> int:
    """Layers enough that one runs the scheme itself."""
    return next(n for n in (3, 5, 9, 16) if refusal(scheme.for_layer, 0, n) is None)


def refused(session: Any, scheme: Scheme) -> str | None:
    """Why the first tokens of a cell would be refused, if they would."""

    def begin() -> None:
        calibration = session.calibrate([IDS[TOKENS:]]) if scheme.calibrated else None
        session.forward(IDS[:3], session.new_cache(scheme, Terms(calibration=calibration)))

    return refusal(begin)


def test_mlx_refuses_what_is_on_the_list_and_nothing_else(sessions: Open) -> None:
    """At head_dim 128, which every preset takes, in a model with layers enough for its rules."""
    opened = {name: sessions("mlx", head_dim=128, layers=layers_for(preset(name))) for name in presets()}
    found = {name: reason for name, session in opened.items() if (reason := refused(session, preset(name))) is not None}
    assert found.keys() == REFUSED_BY_MLX.keys()
    for name, reason in found.items():
        assert REFUSED_BY_MLX[name] in reason


@pytest.mark.parametrize(
    ("k", "reason"),
    [
        ({"codec": "block", "rope": "pre"}, "rope: pre needs the model's rotary frequencies, which are not known"),
        ({"codec": "block", "center": True}, CALIBRATION),
    ],
)
def test_mlx_refuses_sides_that_need_torch(k: dict[str, Any], reason: str, sessions: Open) -> None:
    assert reason in str(refused(sessions("mlx"), read({"name": "mine", "k": k, "v": "q8_0"})))


# --- every preset on every backend

OWN = [name for name in presets() if not preset(name).peer]


def shape_for(scheme: Scheme) -> dict[str, int]:
    return {"head_dim": 64 if refusal(scheme.check, 64) is None else 128, "layers": layers_for(scheme)}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_every_preset_runs_in_transformers(name: str, sessions: Open) -> None:
    scheme, shape = preset(name), shape_for(preset(name))
    runs_as_declared(sessions("transformers", **shape), scheme)
    uncut(sessions("transformers", "float64", **shape), scheme)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OWN if name not in REFUSED_BY_MLX])
def test_every_preset_runs_in_mlx_as_in_transformers(name: str, sessions: Open) -> None:
    scheme, shape = preset(name), shape_for(preset(name))
    ours = runs_as_declared(sessions("mlx", **shape), scheme)
    same_in_both(ours, scores(sessions("transformers", **shape), scheme, CHUNK["strict"])[0])


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("name", OWN)
def test_every_preset_runs_at_every_head_dim_or_says_why_not(name: str, head_dim: int, sessions: Open) -> None:
    scheme, layers = preset(name), layers_for(preset(name))
    session = sessions("transformers", head_dim=head_dim, layers=layers)
    reason = refused(session, scheme)
    assert (reason is None) == (refusal(scheme.check, head_dim) is None)
    if reason is not None:
        assert f"head_dim {head_dim}" in reason
        return
    found, own = scores(session, scheme, 64)
    same, lossless = np.array_equal(found.nll, found.base_nll), scheme.lossless_in("float32")
    assert audit(own.evidence(), layers, lossless=lossless, identical=same) == []

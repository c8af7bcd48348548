"""The mlx backend on tiny random models, beside transformers on the same weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx_lm.models import base as engine
from mlx_lm.models import llama
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache
from tokenizers import Tokenizer, models, pre_tokenizers

import backends.mlx
import backends.transformers
from backends.mlx.arrays import MlxArrays
from backends.mlx.attention import NAME, Routed, _expected, lookups
from backends.mlx.cache import StoreCache, StoreLayer, kv_layers
from backends.mlx.loading import load_weights, older_names
from backends.mlx.session import MlxSession, _reduce
from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.codecs.cast import Cast
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.evidence import audit, coverage
from tqbench.core.presets import parse, preset
from tqbench.core.scheme import Scheme
from tqbench.core.session import LocalModel, Terms, TokenScores
from tqbench.kernels import _host
from tqbench.kernels.attend import View
from tqbench.kernels.attend._mlx import attend
from tqbench.kernels.attend._torch import attend as attend_torch
from tqbench.kernels.attend.reference import attend as attend_reference
from tqbench.testing import Backend
from tqbench.testing.backend_checks import ALWAYS

VOCAB, TOKENS = 256, 140  # KIVI flushes after 128
ROPE = {"rope_type": "default", "rope_theta": 700.0}  # not the 10000 that mlx-lm falls back to
LLAMA3 = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LFM2 = {"block_dim": 256, "block_ff_dim": 128, "block_multiple_of": 1, "block_ffn_dim_multiplier": 1.0, "conv_dim": 256}
KINDS = ["sliding_attention", "full_attention"]
TWO_BASES = {"sliding_attention": ROPE, "full_attention": {**ROPE, "rope_theta": 3000.0}}
DEEPSEEK = {"kv_lora_rank": 64, "q_lora_rank": None, "first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}


def _other(config: type, **changes: Any) -> Any:
    """A tiny model of another architecture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config(**tiny.SHAPE | changes))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny.llama(rope_parameters=ROPE),
    "llama3-rope": lambda: tiny.llama(rope_parameters=LLAMA3),
    "partial-rope": lambda: _other(transformers.StableLmConfig, rope_parameters={**ROPE, "partial_rotary_factor": 0.5}),
    "qwen2": lambda: tiny.qwen2(rope_parameters=ROPE),
    "mha": lambda: tiny.mha(rope_parameters=ROPE),
    "qwen3": lambda: tiny.qwen3(rope_parameters=ROPE),
    "head_dim 80": lambda: tiny.llama(rope_parameters=ROPE, head_dim=80),
    "head_dim 96": lambda: tiny.llama(rope_parameters=ROPE, head_dim=96),
    "head_dim 256": lambda: tiny.llama(rope_parameters=ROPE, head_dim=256),
    "hybrid": lambda: tiny.hybrid(rope_parameters=ROPE, **LFM2),
    "gemma3": lambda: tiny.gemma3(rope_parameters=TWO_BASES),
    "cohere2": lambda: _other(transformers.Cohere2Config, rope_parameters=ROPE, sliding_window=tiny.WINDOW, layer_types=KINDS),
    "mistral": lambda: tiny.sliding(rope_parameters=ROPE),
    "own-attention": tiny.gemma2,
    "latent": lambda: _other(transformers.DeepseekV3Config, **DEEPSEEK),
    "unknown": lambda: _other(transformers.OPTConfig, ffn_dim=64, word_embed_proj_dim=256),
}
HEAD_DIMS = ("head_dim 80", "head_dim 96", "head_dim 256")
SLIDING = ("gemma3", "cohere2")
RUNNABLE = ("llama", "llama3-rope", "partial-rope", "qwen2", "mha", "qwen3", "hybrid", *HEAD_DIMS, *SLIDING)

COMPOSED = {
    "name": "sinks, windows, protected layer",
    "k": {"codec": "affine", "bits": 4, "axis": "channel", "window": 20},
    "v": {"codec": "block", "bits": 8, "window": 50},
    "sinks": 5,
    "protect": {"first": 1, "last": 0, "scheme": "f16"},
}


def _composed() -> Scheme:
    scheme = parse(COMPOSED, lambda at, text: pytest.fail(f"{at}: {text}"))
    assert scheme is not None
    return scheme


# One of each kind; the conformance tests run every preset.
SCHEMES = {name: preset(name) for name in ("f32", "f16", "q8_0", "q4_0", "kivi2", "turbo2", "turbo3", "turbo4", "turbo3_pad128")}
SCHEMES["composed"] = _composed()


Write = Callable[[str], LocalModel]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Tiny models by name, each written once as a Hugging Face directory with a tokenizer of words w0, w1, …"""
    root = tmp_path_factory.mktemp("models")

    def write(name: str) -> LocalModel:
        folder = root / name
        if not folder.exists():
            MODELS[name]().save_pretrained(folder)
            words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, "w0"))
            words.pre_tokenizer = pre_tokenizers.Whitespace()
            transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
        return LocalModel(name, str(folder))

    return write


@pytest.fixture
def session(written: Write) -> Iterator[Any]:
    with backends.mlx.open_session(written("llama")) as opened:
        yield opened


IDS = np.random.default_rng(0).integers(0, VOCAB, TOKENS)


def scores(session: Any, scheme: Scheme | None, chunk: int = TOKENS, kernel: str = "auto") -> TokenScores:
    targets = np.append(IDS[1:], -1)
    return session.score(IDS, session.new_cache(scheme, Terms(kernel)), targets, session.new_cache(None), chunk=chunk)


def same(a: TokenScores, b: TokenScores) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("nll", "base_nll", "kld", "rank"))


# --- the model


@pytest.mark.parametrize("name", RUNNABLE)
def test_both_backends_run_the_same_model(name, written):
    """Rotary settings included, which mlx-lm does not find under the names that transformers writes."""
    with backends.mlx.open_session(written(name)) as ours, backends.transformers.open_session(written(name)) as theirs:
        assert asdict(ours.info) == asdict(theirs.info)
        assert np.array_equal(ours.tokenize("w3 w96 w0"), theirs.tokenize("w3 w96 w0"))
        # float32, hundreds of products per sum in another order; a K bias of 30 makes the scores large. Measured: 1.4e-5 there, 4e-6 else.
        assert scores(ours, None).nll == pytest.approx(scores(theirs, None).nll, abs=1e-4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, {"rope_theta": 7.0}),
        ({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 5.0}, {}),  # what is there already is left alone
        ({"rope_parameters": None}, {}),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 5.0}, "full_attention": {"rope_theta": 7.0, "rope_type": "default"}}},
            {"rope_theta": 7.0, "rope_local_base_freq": 5.0},
        ),
        ({"model_type": "gemma3_text", "layer_types": KINDS * 2}, {"sliding_window_pattern": 2}),
        ({"model_type": "gemma3_text", "layer_types": KINDS[:1]}, {"sliding_window_pattern": 2}),  # none is the second
        ({"model_type": "gemma3_text", "layer_types": KINDS, "sliding_window_pattern": 6}, {}),
        ({"model_type": "llama", "layer_types": KINDS}, {}),  # reads them itself
        (
            {"rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 4.0}, "rope_scaling": None},
            {"rope_theta": 7.0, "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4.0}},
        ),
    ],
)
def test_settings_under_their_older_names(config, expected):
    assert older_names(config) == expected


def test_full_attention_where_mlx_lm_does_not_expect_it_is_refused():
    with pytest.raises(Unsupported, match="full attention in every n-th layer of gemma3_text"):
        older_names({"model_type": "gemma3_text", "layer_types": KINDS[::-1]})


def test_mistral_is_llama_here(written):
    """mlx-lm reads no `sliding_window` for it, so its baseline attends to everything; transformers' does once that is taken out."""
    with (
        backends.mlx.open_session(written("mistral")) as ours,
        TransformersSession(tiny.sliding(rope_parameters=ROPE, sliding_window=None), None, "unbounded") as unbounded,
        backends.transformers.open_session(written("mistral")) as theirs,
    ):
        found = scores(ours, None).nll
        assert found == pytest.approx(scores(unbounded, None).nll, abs=1e-4)
        assert np.abs(found - scores(theirs, None).nll).max() > 0.1
        assert {store.layer.reach for store in ours.new_cache(SCHEMES["f32"]).stores} == {None}


# --- what every backend owes


def _loaded(written: Write, name: str) -> Any:
    """The model as mlx-lm has it, with its configuration beside it."""
    folder = Path(written(name).path)
    return load_weights(folder, "float32", trust_remote_code=False), transformers.AutoConfig.from_pretrained(folder)


def _backend(written: Write, name: str) -> Backend:
    return Backend(
        f"mlx {name}",
        lambda: _loaded(written, name),
        lambda loaded: MlxSession(loaded[0], None, loaded[1], "tiny"),
        lambda loaded, tokens: loaded[0](mx.array(tokens)[None])[0],
        lambda loaded: [(names["__name__"], names[NAME]) for names in lookups(loaded[0])],
    )


@pytest.mark.parametrize("check", ALWAYS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", ["llama", "qwen2", "hybrid", "gemma3"])
def test_conformance(name, check, written):
    check(_backend(written, name))


# --- schemes


@pytest.mark.parametrize("chunk", [1, 7, TOKENS])
@pytest.mark.parametrize("name", ["f16", "kivi2", "turbo3_pad128", "composed"])
def test_identity_equals_the_baseline_bit_for_bit(name, chunk, session):
    found = scores(session, replace(SCHEMES[name], bypass="identity"), chunk)
    assert np.array_equal(found.nll, found.base_nll)
    assert not found.kld.any()
    assert not found.rank.any()


@pytest.mark.parametrize("name", SLIDING)
@pytest.mark.parametrize("chunk", [1, 7, tiny.WINDOW, tiny.WINDOW + 1, TOKENS])
def test_identity_equals_the_baseline_in_a_sliding_window(name, chunk, written):
    """One token at a time mlx-lm writes over its oldest key, so the order of its keys turns round; a sum takes them in that order."""
    with backends.mlx.open_session(written(name)) as session:
        found = scores(session, replace(SCHEMES["composed"], bypass="identity"), chunk)
    assert np.array_equal(found.nll, found.base_nll)
    assert not found.kld.any()


def test_identity_follows_the_engines_order_through_every_change_of_pace(written):
    with backends.mlx.open_session(written("gemma3")) as session:
        ours, own = session.new_cache(replace(SCHEMES["composed"], bypass="identity")), session.new_cache(None)
        first = 0
        for size in (3, 1, 1, 20, 1, 1, 1, 5, 1, 40, *[1] * 20, 2, 1, 30):
            piece = IDS[first : first + size]
            assert np.array_equal(np.array(session.forward(piece, ours)), np.array(session.forward(piece, own)))
            first += size


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_identity_equals_the_baseline_in_half_precision(dtype, name, written):
    with backends.mlx.open_session(written(name), dtype=dtype) as session:
        found = scores(session, replace(SCHEMES["composed"], bypass="identity"), 50)
    assert np.array_equal(found.nll, found.base_nll)
    assert not found.kld.any()


@pytest.mark.parametrize("name", SCHEMES)
def test_chunks_agree(name, session):
    """Float32: the order of sums may depend on the chunk, and then a value on the edge of a cell takes another code. Lossless: no cells."""
    whole = scores(session, SCHEMES[name])
    tolerance = 1e-6 if SCHEMES[name].lossless_in("float32") else 1e-4
    for chunk in (1, 7):
        assert scores(session, SCHEMES[name], chunk).nll.mean() == pytest.approx(whole.nll.mean(), abs=tolerance)


@pytest.mark.parametrize("name", SCHEMES)
def test_schemes_agree_with_transformers(name, written, session):
    """The same codecs on keys and values that differ by float32 rounding, which turns a few codes at the edges of cells. Measured: 8e-6.
    Both attend in float: the native form's integers have an error of their own, and tests of their own."""
    with backends.transformers.open_session(written("llama")) as other:
        ours, theirs = scores(session, SCHEMES[name]), scores(other, SCHEMES[name], kernel="attend=torch")
    assert ours.nll.mean() == pytest.approx(theirs.nll.mean(), abs=1e-4)
    assert ours.kld.mean() == pytest.approx(theirs.kld.mean(), rel=0.02, abs=1e-7)


def test_the_bridge_control_costs_rounding_only(session):
    found = scores(session, replace(SCHEMES["turbo3_pad128"], bypass="bridge"))
    assert found.kld.max() < 1e-5
    assert not np.array_equal(found.nll, found.base_nll)


@pytest.mark.parametrize("name", ["q8_0", "turbo3", "kivi2", "composed"])
def test_evidence_passes_the_audit(name, session):
    cache = session.new_cache(SCHEMES[name])
    session.forward(IDS[:100], cache)
    session.forward(IDS[100:], cache)
    evidence = cache.evidence()
    assert audit(evidence, session.info.kv_layers, lossless=False, identical=False) == []
    assert 0 < coverage(evidence) <= 1
    assert {(e.encode, e.decode, e.attend) for e in evidence} == {("reference (host)", "reference (host)", "mlx")}
    assert sum(layer.nbytes for layer in cache) == sum(e.bytes_payload + e.bytes_metadata + e.bytes_exact + e.bytes_slack for e in evidence)


@pytest.mark.parametrize("name", ["f32", "q8_0", "turbo4", "kivi2", "composed"])
def test_sliding_windows_agree_with_transformers(name, written):
    """The same number of keys is seen on both: with one more or one less the nll differ by tenths. Measured: 3e-6, and 2e-5 of the KLD."""
    with backends.mlx.open_session(written("gemma3")) as ours, backends.transformers.open_session(written("gemma3")) as theirs:
        assert asdict(ours.info) == asdict(theirs.info)
        found, cache, reaches = [], [], []
        for session in (ours, theirs):
            cache.append(session.new_cache(SCHEMES[name]))
            found.append(session.score(IDS, cache[-1], np.append(IDS[1:], -1), session.new_cache(None), chunk=7))
            reaches.append([store.layer.reach for store in cache[-1].stores])
    assert found[0].base_nll == pytest.approx(found[1].base_nll, abs=1e-4)
    assert found[0].nll.mean() == pytest.approx(found[1].nll.mean(), abs=1e-4)
    assert found[0].kld.mean() == pytest.approx(found[1].kld.mean(), rel=0.02, abs=1e-7)
    assert reaches == [[tiny.WINDOW, None]] * 2
    counted = [[(e.tokens, e.tokens_forgotten, e.tokens_packed, e.attended, e.attended_packed) for e in own.evidence()] for own in cache]
    assert counted[0] == counted[1]
    assert audit(cache[0].evidence(), 2, lossless=name == "f32", identical=False) == []


@pytest.mark.parametrize("name", HEAD_DIMS)
def test_schemes_run_at_other_head_dims(name, written):
    with backends.mlx.open_session(written(name)) as session:
        cache = session.new_cache(SCHEMES["turbo3_pad128"])
        found = session.score(IDS, cache, np.append(IDS[1:], -1), session.new_cache(None), chunk=70)
    assert audit(cache.evidence(), 2, lossless=False, identical=False) == []
    assert 0 < found.kld.mean() < 1


def test_the_layers_speak_mlx_lm_and_never_look_quantized(session):
    cache = session.new_cache(SCHEMES["kivi2"])
    assert all(layer.empty() and layer.nbytes == 0 and not hasattr(layer, "bits") for layer in cache)
    session.forward(IDS[:9], cache)
    assert all(layer.offset == layer.size() == 9 and not layer.empty() and not layer.is_trimmable() for layer in cache)


# --- the attention function is replaced while a session is open


def test_attention_is_restored_by_the_last_close(written):
    own = engine.scaled_dot_product_attention
    first = backends.mlx.open_session(written("llama"))
    second = backends.mlx.open_session(written("llama"))
    assert isinstance(llama.scaled_dot_product_attention, Routed)
    assert engine.scaled_dot_product_attention is own  # only where the model looks it up
    first.close()
    first.close()
    assert isinstance(llama.scaled_dot_product_attention, Routed)
    second.close()
    assert llama.scaled_dot_product_attention is own


def test_attention_is_restored_after_an_exception_and_when_dropped(written):
    own = engine.scaled_dot_product_attention
    with pytest.raises(ValueError, match="on purpose"), backends.mlx.open_session(written("llama")):
        raise ValueError("on purpose")
    assert llama.scaled_dot_product_attention is own
    backends.mlx.open_session(written("llama"))
    gc.collect()
    assert llama.scaled_dot_product_attention is own


def test_another_wrapper_around_ours_is_left_alone(written):
    own = engine.scaled_dot_product_attention
    session = backends.mlx.open_session(written("llama"))
    ours = llama.scaled_dot_product_attention
    try:
        llama.scaled_dot_product_attention = lambda *args, **kwargs: ours(*args, **kwargs)
        theirs = llama.scaled_dot_product_attention
        session.close()
        assert llama.scaled_dot_product_attention is theirs
    finally:
        llama.scaled_dot_product_attention = own


def test_open_sessions_do_not_disturb_each_other(written):
    alone = {}
    for name in ("llama", "llama3-rope"):
        with backends.mlx.open_session(written(name)) as session:
            alone[name] = scores(session, SCHEMES["turbo3"], 60)
    with backends.mlx.open_session(written("llama")) as one, backends.mlx.open_session(written("llama3-rope")) as two:
        caches = [one.new_cache(SCHEMES["turbo3"]), two.new_cache(SCHEMES["turbo3"])]
        for piece in np.split(IDS[:160], 4):  # two sequences in turn
            logits = [session.forward(piece, cache) for session, cache in zip((one, two), caches, strict=True)]
        assert not np.array_equal(np.array(logits[0]), np.array(logits[1]))
        assert same(scores(one, SCHEMES["turbo3"], 60), alone["llama"])
        two.close()
        assert same(scores(one, SCHEMES["turbo3"], 60), alone["llama"])
    assert not same(alone["llama"], alone["llama3-rope"])


def test_queries_that_miss_the_store_are_an_error(written):
    session = backends.mlx.open_session(written("llama"))
    cache = session.new_cache(SCHEMES["q8_0"])
    session.close()
    with pytest.raises(EvidenceError, match="layer 0: 5 of 5 tokens stored, 0 attended"):
        session.forward(IDS[:5], cache)


# --- refusals


def test_what_is_not_installed_is_named_with_the_command():
    backends.mlx.require("mlx", "mlx-lm")
    with pytest.raises(Unsupported, match=r'needs no-such-package; install with: pip install "tqbench\[mlx\]"'):
        backends.mlx.require("mlx", "no-such-package")


@pytest.mark.parametrize(("option", "reason"), [({"dtype": "float64"}, "float32 at most"), ({"device": "cuda"}, "no device 'cuda'")])
def test_what_mlx_cannot_run_is_refused(option, reason, written):
    with pytest.raises(Unsupported, match=reason):
        backends.mlx.open_session(written("llama"), **option)


def test_a_model_unknown_to_mlx_lm_is_refused(written):
    with pytest.raises(Unsupported, match="mlx-lm cannot load this model: ValueError: Model type opt not supported"):
        backends.mlx.open_session(written("unknown"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("own-attention", "gemma2.*does not call"), ("latent", "layer 0 caches .* values per token")],
)
def test_models_that_schemes_cannot_serve_are_refused(name, reason, written):
    with backends.mlx.open_session(written(name)) as session, pytest.raises(Unsupported, match=reason):
        session.forward(IDS[:8], session.new_cache(SCHEMES["f16"]))


def test_a_kernel_without_an_mlx_form_is_refused(session):
    with pytest.raises(Unsupported, match="no mlx form called 'native'"):
        session.new_cache(SCHEMES["q8_0"], Terms("native"))


@pytest.mark.parametrize(
    ("mask", "options", "reason"),
    [
        ("causal", {"sinks": mx.zeros(4)}, "sinks"),
        (mx.zeros((3, 3)), {}, "masks keys in a way of its own"),
        (mx.ones((3, 3), dtype=mx.bool_), {}, "masks keys in a way of its own"),
        (None, {}, "masks keys in a way of its own"),  # three queries without a mask: not causal
    ],
)
def test_attention_that_a_store_cannot_answer_is_refused(mask, options, reason, session):
    layer = session.new_cache(SCHEMES["q8_0"])[0]
    q = mx.zeros((1, 4, 3, 64))
    keys, values = layer.update_and_fetch(mx.zeros((1, 2, 3, 64)), mx.zeros((1, 2, 3, 64)))
    with pytest.raises(Unsupported, match=reason):
        llama.scaled_dot_product_attention(q, keys, values, cache=layer, scale=1.0, mask=mask, **options)


def test_keys_and_values_of_other_sizes_are_refused(session):
    layer = session.new_cache(SCHEMES["q8_0"])[0]
    assert isinstance(layer, StoreLayer)
    with pytest.raises(Unsupported, match="layer 0 caches 2 × 32 values"):
        layer.update_and_fetch(mx.zeros((1, 2, 3, 64)), mx.zeros((1, 2, 3, 32)))
    with pytest.raises(Unsupported, match="slides a window over a cache of full attention"):
        layer.make_mask(3, window_size=2)


def test_a_window_of_another_size_than_the_cache_is_refused(written):
    with backends.mlx.open_session(written("gemma3")) as session:
        layer = session.new_cache(SCHEMES["turbo4"])[0]
        assert layer.make_mask(3, window_size=tiny.WINDOW) == layer.make_mask(3) == "causal"
        with pytest.raises(Unsupported, match="a window of 17 over a cache of 16"):
            layer.make_mask(3, window_size=tiny.WINDOW + 1)


@pytest.mark.parametrize("reach", [None, 4])
@pytest.mark.parametrize("queries", [1, 3, 9])
def test_the_expected_mask_is_the_engines(queries, reach):
    own = KVCache() if reach is None else RotatingKVCache(reach)
    for tokens in range(queries, 20, queries):
        named, mask = (own.make_mask(queries, return_array=array and queries > 1, window_size=reach) for array in (False, True))
        assert _expected(named, queries, tokens, reach)
        assert _expected(mask, queries, tokens, reach)
        if mask is not None:
            flipped = np.array(mask)
            flipped[-1, -1] ^= True
            assert not _expected(mx.array(flipped), queries, tokens, reach)
        own.update_and_fetch(*[mx.zeros((1, 1, queries, 1))] * 2)
    assert not _expected("causal", 3, 20, 4)
    assert not _expected("other", 3, 20, None)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([KVCache(), CacheList(ArraysCache(1), KVCache())], "keeps CacheList, which"),
        ([KVCache(), RotatingKVCache(16, keep=4)], "keeps RotatingKVCache with keep=4, which"),
        ([ArraysCache(1)], "no layer of this model keeps keys and values"),
    ],
)
def test_caches_that_schemes_do_not_know_are_refused_by_name(layers, reason):
    with pytest.raises(Unsupported, match=reason):
        kv_layers(layers)


def test_layers_that_share_keys_and_values_are_refused(session):
    session.shared = 2
    with pytest.raises(Unsupported, match="2 layers of this model read the keys and values of others"):
        session.new_cache(SCHEMES["f32"])
    session.new_cache(None)


# --- the parts


def _view(bounds: list[int], sinks: int, tail_start: int, stop: int, make: Callable[[torch.Tensor], Any], rng: torch.Generator) -> View:
    """A random side of a store, as arrays of one framework."""
    shown, packed, tail = (make(torch.randn(1, 2, n, 64, generator=rng)) for n in (sinks, max(bounds) - sinks, stop - tail_start))
    return View(shown if sinks else None, lambda: packed, max(bounds), tail, tail_start, bounds)


@pytest.mark.parametrize(
    ("sinks", "window", "flush"),
    [(0, 0, 1), (0, 0, 32), (4, 0, 1), (0, 40, 1), (4, 40, 32), (0, 400, 1), (3, 0, 128), (310, 5, 1)],
)
def test_attend_equals_the_reference(sinks, window, flush):
    """300 queries, so blocks meet. At most twice plain torch's error, and measured at or below it."""
    start, queries = 30, 300
    stop = start + queries

    def packed(t: int) -> int:
        return min(sinks, t + 1) + max(0, t + 1 - sinks - window) // flush * flush

    tail_start, *bounds = (max(sinks, packed(t)) for t in range(start - 1, stop))
    results = {}
    for form, make, fn in (
        ("reference", torch.Tensor.double, attend_reference),
        ("torch", torch.Tensor.float, attend_torch),
        ("mlx", _host.to_mlx, attend),
    ):
        rng = torch.Generator().manual_seed(0)
        q = torch.randn(1, 4, queries, 64, generator=rng)
        k, v = (_view(bounds, sinks, tail_start, stop, make, rng) for _ in range(2))
        out = fn(make(q), k, v, start, 0.125)
        results[form] = out if isinstance(out, torch.Tensor) else _host.to_torch(out)
    errors = {form: float((results[form] - results["reference"]).abs().max()) for form in ("torch", "mlx")}
    assert errors["mlx"] <= 2 * errors["torch"]


def test_attend_never_touches_keys_beyond_the_block():
    """Poison after the block's last query, in both forms: nothing of it may arrive, not even as 0 · NaN."""
    queries, dim = 300, 64
    rng = torch.Generator().manual_seed(0)
    q, values = (_host.to_mlx(torch.randn(1, 1, queries, dim, generator=rng)) for _ in range(2))
    poisoned = values * 1
    poisoned[:, :, 256:] = mx.nan
    clean, dirty = (View(None, lambda x=x: x, queries, x[:, :, queries:], queries, list(range(1, queries + 1))) for x in (values, poisoned))
    found = np.array(attend(q, dirty, dirty, 0, 0.125))
    assert np.array_equal(found[:, :, :256], np.array(attend(q, clean, clean, 0, 0.125))[:, :, :256])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8])
def test_arrays_cross_the_bridge_bit_for_bit(dtype):
    strided = torch.arange(96).reshape(1, 4, 4, 6)[:, ::2].transpose(1, 2)
    for tensor in (torch.arange(-24, 24).reshape(1, 2, 4, 6), torch.empty(1, 2, 0, 6), strided):
        there = _host.to_mlx(tensor.to(dtype))
        back = _host.to_torch(there)
        assert str(there.dtype).endswith(str(dtype).removeprefix("torch."))
        assert back.dtype == dtype
        assert back.is_contiguous()
        assert torch.equal(back, tensor.to(dtype))
        sliced = _host.to_torch(there.transpose(0, 2, 1, 3)[:, 1:])
        assert sliced.is_contiguous()
        assert torch.equal(sliced, tensor.to(dtype).transpose(1, 2)[:, 1:])


def test_the_bridge_gives_memory_of_its_own():
    there = mx.zeros((1, 1, 2, 2))
    _host.to_torch(there).fill_(7)
    assert not np.array(there).any()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_decode_on_the_host_computes_in_float32_as_the_reference_does(dtype):
    like = mx.zeros((1, 2, 0, 64), dtype=dtype)
    packed = _host.encode(Cast("float16"), mx.ones((1, 2, 3, 64), dtype=dtype))
    assert packed["values"].dtype == mx.float16
    assert _host.decode(Cast("float16"), packed, 64, like).dtype == mx.float32


def test_arrays_grow_in_place_and_keep_nothing_alive():
    arrays = MlxArrays()
    buffer = arrays.write(arrays.empty((1, 1, 4, 2), "float32"), 1, mx.ones((1, 1, 2, 2)))
    assert np.array(buffer)[0, 0, :, 0].tolist() == [0, 1, 1, 0]
    assert arrays.concat([buffer[:, :, :0], buffer]).shape == (1, 1, 4, 2)
    assert arrays.squares(mx.ones((1, 1, 2, 2), dtype=mx.bfloat16), mx.zeros((1, 1, 2, 2))) == (4.0, 4.0)
    large = mx.ones((1, 1, 100_000, 4))
    mx.eval(large)
    held = mx.get_active_memory()
    kept = arrays.concat([large[:, :, 99_990:]])
    mx.eval(kept)
    del large
    assert mx.get_active_memory() < held - 1_000_000


def test_reduction_equals_the_plain_formula():
    """Float32 products, float64 sums: measured 7e-8 for the nll and 2e-8 for the KLD."""
    rng = np.random.default_rng(0)
    base = (rng.normal(size=(70, 5000)) * 3).astype(np.float32)
    logits = (base + 5 + rng.normal(size=base.shape) * 0.01).astype(np.float32)
    targets = rng.integers(0, 5000, 70)
    targets[3] = -1
    rows = np.flatnonzero(targets >= 0)
    found = _reduce(mx.array(logits), mx.array(base), targets, rows)
    log_p, log_b = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (logits[rows].astype(float), base[rows].astype(float)))
    at = np.arange(len(rows)), targets[rows]
    assert found.nll == pytest.approx(-log_p[at], abs=1e-6)
    assert found.base_nll == pytest.approx(-log_b[at], abs=1e-6)
    assert found.kld == pytest.approx((np.exp(log_b) * (log_b - log_p)).sum(1), abs=2e-7)
    assert np.array_equal(found.rank, (log_p > log_p[np.arange(len(rows)), log_b.argmax(1)][:, None]).sum(1))
    assert not _reduce(mx.array(base), mx.array(base), targets, rows).kld.any()
    assert not len(_reduce(mx.array(base), None, targets, rows).kld)


# --- the packaged model


@pytest.mark.model
def test_the_packaged_model_scores_as_in_transformers(packaged_model, open_packaged):
    """A wrong rotary base or channel order shows here. 24 tokens, because MLX on Linux multiplies matrices slowly."""
    text = "The tower is 324 metres tall, about the same height as an 81-storey building, and the tallest structure in Paris."
    theirs = open_packaged("float32")
    with backends.mlx.open_session(packaged_model) as ours:
        ids = theirs.tokenize(text)[:24]
        assert np.array_equal(ours.tokenize(text)[:24], ids)
        targets = np.append(ids[1:], -1)
        found = [s.score(ids, s.new_cache(preset("q8_0")), targets, s.new_cache(None)) for s in (ours, theirs)]
        assert found[0].base_nll == pytest.approx(found[1].base_nll, abs=1e-3)  # float32 through 30 layers; measured 3e-5
        assert found[0].nll.mean() == pytest.approx(found[1].nll.mean(), abs=0.02)  # codes flip; measured 2e-3
        assert isinstance(ours.new_cache(preset("q8_0")), StoreCache)

"""Caches of other libraries inside our sessions: the library's own result, bit for bit, with evidence that holds. Quanto compiles C++ on
its first use in an installation, so what decodes with it is slow."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache
from packaging.version import Version
from transformers.cache_utils import QuantizedCache

from backends.mlx.arrays import MlxArrays
from backends.mlx.loading import load_weights
from backends.mlx.peers import PeerLayer
from backends.mlx.session import MlxSession
from backends.transformers import peers, tiny
from backends.transformers.session import TransformersSession
from tqbench.cache.build import Layer, Shape
from tqbench.cache.peer import Policy, Watch
from tqbench.codecs.peer import Peer
from tqbench.core.errors import ConfigError, EvidenceError, Unsupported
from tqbench.core.evidence import audit, coverage
from tqbench.core.presets import preset, presets, read
from tqbench.core.session import Terms

TOKENS, CHUNK = 400, 64
IDS = np.random.default_rng(0).integers(0, 256, TOKENS)
TARGETS = np.append(IDS[1:], -1)
DEPLOY = Terms(protocol="deploy")
ARGUMENTS: dict[str, dict[str, Any]] = {  # of QuantizedCache, written out
    "peer:quanto4": {"backend": "quanto", "nbits": 4, "axis_key": 0, "axis_value": 0, "q_group_size": 64, "residual_length": 128},
    "peer:quanto2": {"backend": "quanto", "nbits": 2, "axis_key": 0, "axis_value": 0, "q_group_size": 64, "residual_length": 128},
    "peer:hqq8": {"backend": "hqq", "nbits": 8, "axis_key": 1, "axis_value": 1, "q_group_size": 64, "residual_length": 128},
    "peer:hqq4": {"backend": "hqq", "nbits": 4, "axis_key": 1, "axis_value": 1, "q_group_size": 64, "residual_length": 128},
    "peer:hqq2": {"backend": "hqq", "nbits": 2, "axis_key": 1, "axis_value": 1, "q_group_size": 64, "residual_length": 128},
    "peer:fp8": {"backend": "fp8"},
}
TORCH = [pytest.param(name, marks=pytest.mark.slow if "quanto" in name else ()) for name in ARGUMENTS]
recent = pytest.mark.skipif(
    Version(transformers.__version__) < max(map(Version, peers.OLDEST.values())),
    reason="too old a transformers, which peers refuse",
)
MLX = [name for name in presets() if name.startswith("peer:mlx")]


@pytest.fixture
def session() -> Iterator[TransformersSession]:
    with TransformersSession(tiny.llama(), None, "tiny") as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.llama().save_pretrained(path)
    return path


@pytest.fixture
def mlx_session(folder: Path) -> Iterator[MlxSession]:
    config = transformers.AutoConfig.from_pretrained(folder)
    with MlxSession(load_weights(folder, "float32", trust_remote_code=False), None, config, "tiny") as opened:
        yield opened


def pieces(size: int = CHUNK) -> list[np.ndarray]:
    return [IDS[first : first + size] for first in range(0, TOKENS, size)]


# --- transformers: quanto, hqq, fp8


@recent
@pytest.mark.parametrize("name", TORCH)
def test_the_logits_are_those_of_the_library_alone(name, session):
    own = tiny.llama()
    peers.require(ARGUMENTS[name]["backend"])
    ours, theirs = session.new_cache(preset(name), DEPLOY), QuantizedCache(config=own.config, **ARGUMENTS[name])
    for piece in (*pieces()[:5], *(IDS[i : i + 1] for i in range(320, 324))):  # a text, then single tokens
        with torch.inference_mode():
            expected = own(torch.from_numpy(piece)[None], past_key_values=theirs).logits[0]
        assert torch.equal(session.forward(piece, ours), expected)


@recent
def test_generate_gives_the_same_logits(session):
    """It multiplies the last position alone by the output matrix, which rounds in another order: float32, logits of about 1."""
    own = tiny.llama()
    options = {key: value for key, value in ARGUMENTS["peer:hqq4"].items() if key != "backend"}
    done = own.generate(
        torch.from_numpy(IDS[:200])[None],
        attention_mask=torch.ones(1, 200, dtype=torch.long),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        cache_implementation="quantized",
        cache_config={"backend": "hqq", **options},
        output_logits=True,
        return_dict_in_generate=True,
    )
    written = done.sequences[0, 200:].numpy()
    cache = session.new_cache(preset("peer:hqq4"), DEPLOY)
    found = [session.forward(piece, cache)[-1:] for piece in (IDS[:200], *(written[i : i + 1] for i in range(5)))]
    assert torch.allclose(torch.cat(found), torch.cat(done.logits), rtol=0, atol=1e-5)


@recent
@pytest.mark.parametrize("name", TORCH)
def test_evidence_passes_the_audit(name, session):
    cache = session.new_cache(preset(name), DEPLOY)
    scores = session.score(IDS, cache, TARGETS, session.new_cache(None), chunk=CHUNK)
    evidence = cache.evidence()
    assert scores.kld.mean() > 1e-7
    assert audit(evidence, session.info.kv_layers, lossless=False, identical=False) == []
    assert len(evidence) == 4
    assert all(e.tokens == TOKENS and e.error and e.error < 0.25 for e in evidence)
    # A query sees the tokens before its call in packed form; of quanto and hqq those that were flushed, every 128 after the first 64.
    flushed = [0, 64, 64, 192, 192, 320, 320]
    starts = range(0, TOKENS, CHUNK)
    expected = sum(end * min(CHUNK, TOKENS - first) for end, first in zip(flushed, starts, strict=True))
    if name == "peer:fp8":  # packs at once, but for the first call
        expected = sum(range(CHUNK + 1, TOKENS + 1))
    assert {e.attended for e in evidence} == {TOKENS * (TOKENS + 1) // 2}
    assert {e.attended_packed for e in evidence} == {expected}
    assert coverage(evidence) == pytest.approx(expected / (TOKENS * (TOKENS + 1) // 2))


@recent
@pytest.mark.parametrize(
    ("name", "dtype", "payload", "metadata", "tables"),
    [
        # 320 tokens of 2 heads of 64 channels, two values per group of 64 in the model's dtype
        ("peer:hqq8", "float32", 320 * 2 * 64, 320 * 2 * 2 * 4, 0),
        ("peer:hqq4", "float32", 320 * 2 * 32, 320 * 2 * 2 * 4, 0),
        ("peer:hqq2", "bfloat16", 320 * 2 * 16, 320 * 2 * 2 * 2, 0),
        pytest.param("peer:quanto4", "bfloat16", 320 * 2 * 32, 320 * 2 * 2 * 2, 0, marks=pytest.mark.slow),
        ("peer:fp8", "bfloat16", 400 * 2 * 64, 0, 4),  # all tokens, and one scale of four bytes
    ],
)
def test_bytes_are_those_of_the_arrays_that_exist(name, dtype, payload, metadata, tables):
    with TransformersSession(tiny.llama(dtype), None, "tiny") as session:
        cache = session.new_cache(preset(name), DEPLOY)
        session.score(IDS, cache, TARGETS, chunk=CHUNK)
        recent = 0 if name == "peer:fp8" else 80 * 2 * 64 * (4 if dtype == "float32" else 2)
        for e in cache.evidence():
            assert (e.bytes_payload, e.bytes_metadata, e.bytes_tables, e.bytes_exact) == (payload, metadata, tables, recent)
            assert e.bytes_declared == payload + metadata


@recent
def test_the_error_is_that_of_what_the_library_kept_against_what_came_in(session):
    """Against the keys and values of the model's own cache, which in the first layer are the same."""
    base, cache = session.new_cache(None), session.new_cache(preset("peer:hqq2"), DEPLOY)
    for piece in pieces()[:3]:
        session.forward(piece, base)
        session.forward(piece, cache)
    exact, kept = base.layers[0].keys, cache.layers[0].own
    lost = (kept._dequantize(kept._quantized_keys) - exact).double().square().sum() / exact.double().square().sum()
    assert cache.evidence()[0].error == pytest.approx(float(lost), rel=1e-9)


@recent
def test_a_library_that_gives_out_exact_vectors_is_caught(session):
    """It says that it has packed and decoded, and hands attention what came in."""
    cache = session.new_cache(preset("peer:hqq4"), DEPLOY)
    session.forward(IDS[:CHUNK], cache)
    for layer in cache.layers:
        layer.own._dequantize = lambda packed, watch=layer.watch: watch.samples["k"][:, :, :CHUNK]
    with pytest.raises(EvidenceError, match="layer 0 k: what hqq gave out is exact where it counts as packed"):
        session.forward(IDS[CHUNK : 2 * CHUNK], cache)


@recent
def test_a_library_that_packs_less_than_it_is_known_to_is_caught(session):
    cache = session.new_cache(preset("peer:hqq4"), DEPLOY)
    for layer in cache.layers:
        layer.own.residual_length = 10**6
    session.score(IDS, cache, TARGETS, chunk=CHUNK)
    found = audit(cache.evidence(), 2, lossless=False, identical=False)
    assert "layer 0 k: 64 tokens are packed, the policy declares 320" in found
    assert "layer 0 k: attention was handed 21504 packed positions, the policy declares 58368" in found  # 64 in each of 336 queries


@recent
def test_queries_that_read_something_else_are_an_error(session):
    cache = session.new_cache(preset("peer:hqq4"), DEPLOY)
    session.close()
    with pytest.raises(EvidenceError, match="layer 0: 5 of 5 tokens taken by hqq, 0 attended"):
        session.forward(IDS[:5], cache)


@recent
@pytest.mark.parametrize(("name", "tokens", "groups"), [("peer:hqq2", 5, 10), ("peer:hqq2", 65, 130)])
def test_groups_that_hqq_would_mix_up_are_refused(name, tokens, groups, session):
    with pytest.raises(
        Unsupported, match=f"{tokens} tokens are {groups} groups of 64 channels, hqq shares bytes between 4; choose a context"
    ):
        session.forward(IDS[:tokens], session.new_cache(preset(name), DEPLOY))


@recent
@pytest.mark.parametrize("model", [tiny.hybrid, tiny.sliding])
def test_models_that_transformers_does_not_quantize_are_refused(model):
    with (
        TransformersSession(model(), None, "tiny") as session,
        pytest.raises(Unsupported, match=r"QuantizedCache does not take this model: .* only full attention"),
    ):
        session.new_cache(preset("peer:hqq4"), DEPLOY)


# --- mlx-lm


@pytest.mark.parametrize("name", MLX)
def test_evidence_of_mlx_passes_the_audit_under_both_protocols(name, mlx_session):
    bits = preset(name).k.codec.bits
    for protocol, packed in (("strict", sum(range(1, TOKENS + 1))), ("deploy", sum(range(CHUNK + 1, TOKENS + 1)))):
        cache = mlx_session.new_cache(preset(name), Terms(protocol=protocol))
        scores = mlx_session.score(IDS, cache, TARGETS, mlx_session.new_cache(None), chunk=CHUNK)
        evidence = cache.evidence()
        assert audit(evidence, 2, lossless=False, identical=not scores.kld.any()) == []
        assert {e.attended_packed for e in evidence} == {packed}
        assert all(e.error and e.error < 0.2 for e in evidence)
        # words of 32 bits, and scale and bias of each group in the model's dtype
        assert {(e.bytes_payload, e.bytes_metadata) for e in evidence} == {(TOKENS * 2 * 64 * bits // 8, TOKENS * 2 * 2 * 4)}
        assert sum(layer.nbytes for layer in cache) == sum(e.bytes_payload + e.bytes_metadata + e.bytes_slack for e in evidence)


@pytest.mark.parametrize("bits", [8, 4])  # of which 32 is a multiple, so that mlx-lm's cache works from empty
def test_strict_logits_are_those_of_mlx_lm_alone(bits, mlx_session, folder):
    own = load_weights(folder, "float32", trust_remote_code=False)
    theirs = [QuantizedKVCache(64, bits) for _ in make_prompt_cache(own)]
    ours = mlx_session.new_cache(preset(f"peer:mlx{bits}"))
    for piece in pieces():
        assert np.array_equal(mlx_session.forward(piece, ours), own(mx.array(piece)[None], cache=theirs)[0])


def test_what_a_query_sees_in_strict_does_not_depend_on_the_cut(mlx_session):
    """Float32: the order of sums may turn a code at the edge of a cell. Measured: no difference."""
    nll = [mlx_session.score(IDS, mlx_session.new_cache(preset("peer:mlx4")), TARGETS, chunk=chunk).nll.mean() for chunk in (TOKENS, 64, 7)]
    assert nll == pytest.approx([nll[0]] * 3, abs=1e-4)


def test_deploy_logits_are_those_of_mlx_lms_generate(mlx_session, folder):
    own = load_weights(folder, "float32", trust_remote_code=False)
    options = {"kv_bits": 4, "kv_group_size": 64, "quantized_kv_start": 0, "prefill_step_size": CHUNK}
    steps = list(generate_step(mx.array(IDS[:193]), own, max_tokens=5, **options))  # greedy
    cache = mlx_session.new_cache(preset("peer:mlx4"), DEPLOY)
    for piece in (*pieces()[:3], IDS[192:193]):  # as generate cuts its prompt
        logits = mlx_session.forward(piece, cache)
    for token, expected in steps:
        log_probs = logits[-1] - mx.logsumexp(logits[-1])
        assert np.allclose(log_probs, expected, rtol=0, atol=1e-6)
        logits = mlx_session.forward(np.array([token]), cache)


@pytest.mark.parametrize(("bits", "head_dim"), [(3, 256), (5, 96), (5, 128), (6, 96), (6, 128), (6, 256)])
def test_widths_that_mlx_lm_makes_no_room_for(bits, head_dim):
    """A quantized cache that is filled directly fails for these; through a plain one it holds what `mx.quantize` gives."""
    codec = Peer("mlx", bits=bits, group_size=32)
    watch = Watch(codec, Layer(), Shape("llama", head_dim, "float32"), MlxArrays(), Policy(codec, "strict"), "mlx-lm", "mlx-lm")
    layer = PeerLayer(QuantizedKVCache(32, bits), watch)
    keys = mx.random.normal((1, 2, 300, head_dim), key=mx.random.key(0))
    for first in range(0, 300, 50):
        k, v = layer.update_and_fetch(keys[:, :, first : first + 50], keys[:, :, first : first + 50])
        layer.read(50, k)
    for kept in (k, v):
        assert all(np.array_equal(a, b) for a, b in zip(kept, mx.quantize(keys, group_size=32, bits=bits), strict=True))


def test_the_layers_speak_mlx_lm(mlx_session):
    cache = mlx_session.new_cache(preset("peer:mlx4"), DEPLOY)
    assert all(isinstance(layer.own, KVCache) and not hasattr(layer, "bits") for layer in cache)
    mlx_session.forward(IDS[:9], cache)
    assert all(isinstance(layer.own, QuantizedKVCache) and layer.bits == 4 and layer.offset == 9 for layer in cache)


def test_queries_that_mlx_reads_elsewhere_are_an_error(mlx_session):
    cache = mlx_session.new_cache(preset("peer:mlx4"))
    mlx_session.close()
    with pytest.raises(EvidenceError, match="layer 0: 5 of 5 tokens taken by mlx-lm, 0 attended"):
        mlx_session.forward(IDS[:5], cache)


# --- refusals


@pytest.mark.parametrize("name", ARGUMENTS)
def test_strict_is_refused_for_what_attends_exact_first(name, session):
    with pytest.raises(Unsupported, match=r"attends keys and values exact .* no protocol strict; in the suite's task, set .protocol"):
        session.new_cache(preset(name))


def test_each_backend_refuses_the_caches_of_the_other(session, mlx_session):
    with pytest.raises(Unsupported, match="runs on the mlx backend only; set `backend: mlx`"):
        session.new_cache(preset("peer:mlx4"), DEPLOY)
    with pytest.raises(Unsupported, match="runs on the transformers backend only; set `backend: transformers`"):
        mlx_session.new_cache(preset("peer:hqq4"), DEPLOY)


def test_kernels_are_ours_and_refused(session):
    with pytest.raises(Unsupported, match="runs inside hqq, which has no kernel 'native'; only `auto`"):
        session.new_cache(preset("peer:hqq4"), Terms("native", "deploy"))


PEER = {"codec": "peer", "library": "hqq", "bits": 4, "group_size": 64}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"k": {**PEER, "rotation": "hadamard"}, "v": PEER}, "k.rotation"),
        ({"k": {**PEER, "center": True}, "v": {**PEER, "center": True}}, "k.center, v.center"),
        ({"k": {**PEER, "order": "interleaved"}, "v": PEER}, "k.order"),
        ({"k": {**PEER, "rope": "pre"}, "v": PEER}, "k.rope"),
        ({"k": PEER, "v": PEER, "window": 64}, "k.window, v.window"),
        ({"k": PEER, "v": {**PEER, "flush": 2}}, "v.flush"),
        ({"k": PEER, "v": PEER, "sinks": 4}, "sinks"),
        ({"k": PEER, "v": PEER, "bypass": "bridge"}, "bypass"),
        ({"k": PEER, "v": PEER, "protect": {"first": 1, "scheme": "f16"}}, "protect"),
        ({"k": "q8_0", "v": "q8_0", "layers": {"first": 1, "scheme": "peer:hqq4"}}, "layers"),
        ({"k": "q8_0", "v": "q8_0", "gqa": {"at_least": 6, "scheme": "peer:hqq4"}}, "gqa"),
        ({"k": PEER, "v": PEER, "logits": {"form": "grow", "value": 0.1}}, "logits"),
        ({"k": PEER, "v": {**PEER, "bits": 2}}, "k and v that differ"),
        ({"k": PEER, "v": "q8_0"}, "k and v that differ"),
        ({"k": "turbo4", "v": PEER}, "k and v that differ"),
    ],
)
def test_what_the_library_does_not_know_is_refused_by_its_key(data, named, session):
    scheme = read({"name": "mine", **data})
    for refuse in (lambda: scheme.check(64), lambda: session.new_cache(scheme, DEPLOY)):
        with pytest.raises(Unsupported, match=rf"the cache of another library, which runs as it is: no .*{named}"):
            refuse()


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"library": "quanto", "bits": 8}, "bits must be one of 2, 4 for library 'quanto', got 8"),
        ({"library": "hqq", "bits": 3}, "bits must be one of 2, 4, 8 for library 'hqq', got 3"),
        ({"library": "fp8", "bits": 8}, "group_size must be one of 0 for library 'fp8', got 64"),
        ({"library": "mlx", "group_size": 16}, "group_size must be one of 32, 64, 128 for library 'mlx', got 16"),
        ({"library": "mlx", "residual": 128}, "residual must be 0 for library 'mlx'"),
        ({"library": "hqq", "residual": -1}, "residual must be 0 or more for library 'hqq'"),
    ],
)
def test_what_a_library_does_not_take_is_refused(params, text):
    with pytest.raises(ConfigError) as error:
        Peer(**params)
    assert error.value.problems == [text]


def test_a_head_dim_that_groups_would_straddle_is_refused():
    assert preset("peer:quanto4").k.codec.check(128) is None
    with pytest.raises(Unsupported, match="groups of 64 channels do not fit head_dim 80"):
        preset("peer:quanto4").check(80)
    preset("peer:fp8").check(80)
    read({"name": "mine", "k": {**PEER, "group_size": 16}, "v": {**PEER, "group_size": 16}}).check(80)


@pytest.mark.parametrize(
    ("library", "missing", "text"),
    [
        ("quanto", {"optimum-quanto", "ninja"}, "the cache of quanto needs optimum-quanto and ninja; "),
        ("quanto", {"ninja"}, "the cache of quanto needs ninja; "),
        ("hqq", {"hqq"}, "the cache of hqq needs hqq; "),
    ],
)
def test_what_is_not_installed_is_named_with_the_command(library, missing, text, monkeypatch, session):
    def version(package: str) -> str:
        if package in missing:
            raise PackageNotFoundError(package)
        return "9.9"

    monkeypatch.setattr(peers, "version", version)
    with pytest.raises(Unsupported) as error:
        session.new_cache(preset(f"peer:{library}4"), DEPLOY)
    assert str(error.value) == text + 'install with: pip install "tqbench[peers]"'


def test_transformers_of_another_policy_is_refused(monkeypatch):
    monkeypatch.setattr(peers, "version", {"hqq": "0.2.8", "transformers": "5.18.0"}.__getitem__)
    with pytest.raises(Unsupported, match=r"needs transformers 5.20 or later, here is 5.18.0"):
        peers.require("hqq")


def test_a_library_that_does_not_run_here_says_why(monkeypatch):
    def broken(**_: Any) -> Any:
        raise RuntimeError("Error building extension\nunpack.cpp:1: error: no compiler\nstopped")

    monkeypatch.setattr(peers, "cache_utils", SimpleNamespace(HQQQuantizedLayer=broken))
    with pytest.raises(Unsupported, match=r"^hqq does not run here: unpack.cpp:1: error: no compiler$"):
        peers.try_out.__wrapped__("hqq", "cpu")


# --- a worker without PATH


@pytest.mark.parametrize("path", [None, "", "/bin", f"/bin{os.pathsep}{sysconfig.get_path('scripts')}"])
def test_the_programs_that_quanto_builds_with_are_found(path, monkeypatch):
    monkeypatch.setenv("PATH", path) if path is not None else monkeypatch.delenv("PATH")
    peers.find_programs()
    found = os.environ["PATH"].split(os.pathsep)
    assert found.count(sysconfig.get_path("scripts")) == 1
    assert "/bin" in found


@pytest.mark.slow
def test_quanto_runs_in_a_process_that_was_started_without_a_path():
    code = "from backends.transformers.peers import try_out; try_out('quanto', 'cpu')"
    done = subprocess.run([sys.executable, "-c", code], env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

"""What codecs learn: from the right vectors, once, kept on disk by content, never from what is scored."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.calibration import Calibration, Piece
from tqbench.cache.rope import Rope
from tqbench.cache.store import Store
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import read
from tqbench.core.session import Terms
from tqbench.corpora._held_out import held_out

ROPE = Rope(tuple(10000 ** (-i / 64) for i in range(0, 64, 2)))
FOLDER = None
CENTRED = {"codec": "block", "bits": 4, "center": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "FOLDER", tmp_path)
    return tmp_path


def piece(mean, start=0, seed=0):
    k, v = torch.randn(2, 1, 2, 300, 64, generator=torch.Generator().manual_seed(seed))
    return Piece(k + mean, v - mean, start)


def open_store(scheme, pieces, rope=ROPE, layer=Layer()):
    terms = Terms(calibration=Calibration(pieces, FOLDER) if pieces else None)
    return Store(read(scheme), Shape("llama", 64, "float32", 2, 4, rope), TorchArrays(), terms, layer)


def test_each_layer_and_side_learns_from_its_own_vectors():
    scheme = {"name": "mine", "k": CENTRED, "v": CENTRED}
    calibration = [[piece(1.0)], [piece(5.0, seed=1), piece(5.0, seed=2)]]
    for position, mean in ((0, 1.0), (1, 5.0)):
        store = open_store(scheme, calibration, layer=Layer(index=position, position=position))
        for side, expected in ((store.k, mean), (store.v, -mean)):
            assert float(side.codec.learned["mean"].mean()) == pytest.approx(expected, abs=0.05)


def test_keys_before_rope_are_what_a_bias_is_constant_in():
    bias = torch.zeros(64)
    bias[[5, 40]] = 30
    before = torch.randn(1, 2, 300, 64, generator=torch.Generator().manual_seed(0)) + bias
    seen = Piece(ROPE.redo(before, 100), torch.zeros(1, 2, 300, 64), 100)
    pre = open_store({"name": "pre", "k": {**CENTRED, "rope": "pre"}, "v": "q8_0"}, [[seen]])
    post = open_store({"name": "post", "k": CENTRED, "v": "q8_0"}, [[seen]])
    assert torch.allclose(pre.k.codec.learned["mean"][:, 0], before.mean(2)[0], rtol=0, atol=1e-3)
    assert float(post.k.codec.learned["mean"].abs().max()) < 5  # the rotation has averaged it away


def test_rope_is_undone_exactly_and_redone_at_the_right_positions():
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        x = torch.randn(1, 2, 7, 80, generator=torch.Generator().manual_seed(0), dtype=dtype)
        assert (ROPE.undo(ROPE.redo(x, 1000), 1000) - x).abs().max() < bound
        assert torch.equal(ROPE.redo(x, 0)[..., 64:], x[..., 64:])  # partial rotary: the rest does not turn
        assert torch.equal(ROPE.redo(x, 5)[:, :, 2:], ROPE.redo(x[:, :, 2:], 7))


def test_our_rope_is_the_model_s():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    from backends.transformers import tiny

    model = tiny.llama()
    rotary = model.model.rotary_emb
    rope = Rope(tuple(rotary.inv_freq.tolist()), rotary.attention_scaling)
    x = torch.randn(1, 2, 40, 64, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary(x, torch.arange(700, 740)[None])
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    assert torch.equal(rope.redo(x, 700), expected)


@pytest.mark.parametrize("chunk", [1, 7, 60])
def test_a_store_of_keys_before_rope_answers_as_one_that_keeps_them_exactly(chunk):
    """Without a quantizer nothing may change, sinks and window included, however the text is cut."""
    scheme = {"name": "pre", "k": {"codec": "cast", "dtype": "float32", "rope": "pre", "window": 5}, "v": "f32", "sinks": 3}
    store = open_store(scheme, None)
    q, k, v = (torch.randn(1, heads, 60, 64, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    out = []
    for first in range(0, 60, chunk):
        store.append(k[:, :, first : first + chunk], v[:, :, first : first + chunk])
        out.append(store.attend(q[:, :, first : first + chunk], 0.125))
    wide = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(q, *wide, is_causal=True, scale=0.125)
    assert torch.allclose(torch.cat(out, 2), expected, rtol=0, atol=1e-5)


def test_what_was_learned_is_kept_by_content_and_reused(own_cache, monkeypatch):
    scheme = {"name": "mine", "k": {**CENTRED, "rotation": "haar"}, "v": CENTRED}
    first = open_store(scheme, [[piece(1.0)]])
    kept = sorted(own_cache.iterdir())
    assert len(kept) == 2
    monkeypatch.setattr("tqbench.codecs.blocks.wrap.Centered.calibrate", lambda self, x: pytest.fail("learned again"))
    again = open_store(scheme, [[piece(1.0)]])
    assert again.k.codec == first.k.codec
    assert again.v.codec == first.v.codec
    with pytest.raises(pytest.fail.Exception):
        open_store(scheme, [[piece(1.001)]])  # other vectors
    with pytest.raises(pytest.fail.Exception):
        open_store(scheme | {"k": {**CENTRED, "rotation": "haar", "seed": 7}, "v": "q8_0"}, [[piece(1.0)]])  # another codec


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-8] + b"\1\2\3\4\5\6\7\0"])
def test_a_damaged_file_is_learned_again(damage, own_cache):
    scheme = {"name": "mine", "k": CENTRED, "v": "q8_0"}
    first = open_store(scheme, [[piece(1.0)]])
    (file,) = own_cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert open_store(scheme, [[piece(1.0)]]).k.codec == first.k.codec
    assert file.read_bytes() == whole


def test_the_hash_names_everything_that_was_learned():
    hashes = set()
    for mean in (1.0, 1.001):
        store = Calibration([[piece(mean)]])
        store.fit(read({"name": "mine", "k": CENTRED, "v": "q8_0"}).k.codec, "k", 0, None)
        hashes.add(store.sha256())
    assert len(hashes) == 2


def test_learned_tables_are_counted_once_apart_from_what_is_packed():
    store = open_store({"name": "mine", "k": CENTRED, "v": "q4_0"}, [[piece(1.0)]])
    k, v = store.evidence()
    assert (k.bytes_tables, v.bytes_tables) == (2 * 64 * 4, 0)


def test_a_scheme_that_must_learn_is_refused_without_text():
    with pytest.raises(Unsupported, match="must be calibrated, and no calibration text was given"):
        open_store({"name": "mine", "k": CENTRED, "v": "q8_0"}, None)


def test_keys_before_rope_are_refused_where_the_frequencies_are_unknown():
    with pytest.raises(Unsupported, match=r"rope: pre needs the model's rotary frequencies.*nobody knows"):
        open_store({"name": "pre", "k": {"codec": "block", "rope": "pre"}, "v": "q8_0"}, None, rope="nobody knows")


def test_calibration_text_is_never_scored_text():
    ids = np.random.default_rng(0).integers(0, 1000, 20 * 512)
    scored = [ids[i * 512 : i * 512 + 512] for i in range(10)]
    found = held_out(ids, scored, 4096, seed=0)
    assert len(found) == 8
    everything = np.concatenate(scored)
    for stretch in found:
        assert not any(np.array_equal(stretch[:32], everything[i : i + 32]) for i in range(len(everything) - 31))
    assert {bytes(x) for x in found} != {bytes(x) for x in held_out(ids, scored, 4096, seed=1)}
    with pytest.raises(ConfigError, match=r"wants 16 stretches of 512 tokens that are not scored, its text has 10"):
        held_out(ids, scored, 8192, seed=0)


@pytest.mark.parametrize(("first", "last"), [(100, 132), (600, 632), (490, 550)])
def test_overlap_at_any_offset_is_seen(first, last):
    ids = np.random.default_rng(0).integers(0, 1000, 4 * 512)
    held = held_out(ids, [ids[first:last]], 512, seed=0)
    touched = {i // 512 for i in range(first, last - 31)} | {(i + 31) // 512 for i in range(first, last - 31)}
    left = 4 - len({i // 512 for i in range(first, last) if (i % 512) + 32 <= 512 and i + 32 <= last})
    assert len(held) == 1
    with pytest.raises(ConfigError):
        held_out(ids, [ids[first:last]], 512 * (left + 1), seed=0)
    assert touched


def test_windows_shorter_than_a_run_are_seen_too():
    ids = np.random.default_rng(0).integers(0, 1000, 4 * 512)
    with pytest.raises(ConfigError, match="its text has 0"):
        held_out(ids, [ids[i : i + 16] for i in range(0, len(ids), 16)], 512, seed=0)


def test_bypass_skips_what_is_learned_but_centring_runs_in_the_bridge():
    bridge = dataclasses.replace(read({"name": "mine", "k": CENTRED, "v": "q8_0"}), bypass="bridge")
    identity = dataclasses.replace(bridge, bypass="identity")
    assert bridge.calibrated
    assert not identity.calibrated
    assert open_store(identity.to_data(), None).k.codec.ready

"""A saved cache goes on as if it had never been saved, in another process too; what is not what was saved is refused with the reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.transformers import tiny
from backends.transformers.peers import PeerCache
from backends.transformers.session import TransformersSession
from tqbench.cache.storage import MAGIC, SIZES, Origin, load, save
from tqbench.core.errors import EvidenceError, StorageError, TqbenchError, Unsupported
from tqbench.core.presets import preset, read
from tqbench.core.session import Session, Terms
from tqbench.core.state import State
from tqbench.kernels import entropy

CONTEXT, MORE = 300, 40
IDS = np.random.default_rng(1).integers(0, 256, CONTEXT + MORE)
LEARNS = {"name": "learns", "k": {"codec": "codebook", "bits": 3, "center": True}, "v": {"codec": "block", "window": 20}, "sinks": 4}
WINDOW = {"name": "window", "k": {"codec": "affine", "bits": 4, "axis": "channel", "window": 5}, "v": {"codec": "block"}, "sinks": 3}
TOGETHER = {  # keys of all layers in one array, values of each by itself
    "name": "together",
    "k": {"codec": "kvtc_paper", "ratio": 5.0, "window": 20, "flush": 4, "rope": "pre"},
    "v": "turbo4",
    "sinks": 3,
}
SCHEMES: dict[str, Any] = {name: name for name in ("turbo4", "turbo3", "q8_0", "kivi2", "f16", "mxfp4", "kvtc_lite_4x")} | {
    "learns": LEARNS,
    "window": WINDOW,
    "together": TOGETHER,
}


def opened(model: Any = None) -> TransformersSession:
    return TransformersSession(model or tiny.llama(), None, "tiny")


@pytest.fixture
def session():
    with opened() as found:
        yield found


def terms(session: Any, name: str, seed: int = 2) -> Terms:
    if not read(SCHEMES.get(name, "f16")).calibrated:
        return Terms()
    text = np.random.default_rng(seed).integers(0, 256, (2, 64))
    return Terms(calibration=session.calibrate(list(text)))


def scheme_of(name: str) -> Any:
    return None if name == "own" else read(SCHEMES[name])


def saved(session: Any, path: Path, name: str, coder: str = "zstd", tokens: int = CONTEXT) -> Any:
    """The cache of the context, which is in the file, too."""
    scheme = scheme_of(name)
    cache = session.new_cache(scheme, terms(session, name), session.context(IDS[:tokens]))
    save(path, cache.state(), Origin.of(session, scheme, IDS[:tokens]), coder)
    return cache


def taken(session: Any, path: Path, name: str, tokens: int = CONTEXT) -> Any:
    scheme = scheme_of(name)
    return session.new_cache(scheme, terms(session, name), load(path, Origin.of(session, scheme, IDS[:tokens])))


def continued(session: Any, cache: Any, tokens: int = CONTEXT) -> torch.Tensor:
    """One token, some together, and the rest one by one: windows flush meanwhile."""
    cuts = [1, 7, *[1] * (MORE - 8)]
    starts = np.cumsum([tokens, *cuts])
    return torch.cat([session.forward(IDS[first : first + n], cache) for first, n in zip(starts, cuts, strict=False)])


@pytest.mark.parametrize("coder", ["none", "zlib", "zstd", "ans"])
@pytest.mark.parametrize("name", [*SCHEMES, "own"])
def test_what_is_taken_back_goes_on_as_if_it_had_never_been_saved(session, tmp_path: Path, name: str, coder: str) -> None:
    never_saved = saved(session, tmp_path / "a", name, coder)
    back = taken(session, tmp_path / "a", name)
    if name != "own":
        assert [dataclasses.replace(e, bytes_slack=0) for e in back.evidence()] == [
            dataclasses.replace(e, bytes_slack=0) for e in never_saved.evidence()
        ]
    assert torch.equal(continued(session, never_saved), continued(session, back))
    assert never_saved.kv_bytes() == back.kv_bytes()


ELSEWHERE = """
import hashlib, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.cache import test_storage as here
session = here.opened()
for name in sys.argv[2:]:
    logits = here.continued(session, here.taken(session, Path(sys.argv[1]) / name, name))
    print(name, hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


def test_another_process_goes_on_to_the_last_bit(session, tmp_path: Path) -> None:
    """With the calibration learned anew from the same text."""
    names = ("turbo4", "q8_0", "kivi2", "f16", "learns", "together", "own")
    here = {}
    for name in names:
        cache = saved(session, tmp_path / name, name)
        here[name] = hashlib.sha256(continued(session, cache).numpy().tobytes()).hexdigest()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), *names]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert dict(line.split() for line in done.stdout.splitlines()) == here


@pytest.mark.parametrize("make", [tiny.sliding, tiny.gemma2, tiny.qwen2])
@pytest.mark.parametrize("name", ["turbo4", "f16", "own"])
def test_other_models(tmp_path: Path, make: Any, name: str) -> None:
    """Sliding windows have forgotten their first tokens by then."""
    with opened(make()) as session:
        never_saved = saved(session, tmp_path / "a", name)
        back = taken(session, tmp_path / "a", name)
        assert torch.equal(continued(session, never_saved), continued(session, back))


def test_a_sliding_window_that_was_decoded_into(tmp_path: Path) -> None:
    """Sinks and windows, and units of which the first are gone."""
    scheme = read(WINDOW)
    with opened(tiny.sliding()) as session:
        cache = session.new_cache(scheme)
        for first in range(0, CONTEXT, 10):
            session.forward(IDS[first : first + 10], cache)
        origin = Origin.of(session, scheme, IDS[:CONTEXT])
        save(tmp_path / "a", cache.state(), origin)
        back = session.new_cache(scheme, context=load(tmp_path / "a", origin))
        assert torch.equal(continued(session, cache), continued(session, back))


def test_other_dtypes(tmp_path: Path) -> None:
    for dtype in ("bfloat16", "float64"):
        with opened(tiny.llama(dtype)) as session:
            for name in ("turbo4", "kivi2", "own"):
                never_saved = saved(session, tmp_path / name, name)
                assert torch.equal(continued(session, never_saved), continued(session, taken(session, tmp_path / name, name)))


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 31, 32, 33])
def test_short_contexts(session, tmp_path: Path, tokens: int) -> None:
    """Nothing packed yet, or sinks alone."""
    for name in ("window", "kivi2", "turbo4", "own"):
        never_saved = saved(session, tmp_path / name, name, tokens=tokens)
        back = taken(session, tmp_path / name, name, tokens)
        assert torch.equal(continued(session, never_saved, tokens), continued(session, back, tokens))


def test_the_same_cache_is_the_same_file(session, tmp_path: Path) -> None:
    for name in ("one", "two"):
        saved(session, tmp_path / name, "turbo4")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_bytes_by_part_are_those_of_the_file(session, tmp_path: Path) -> None:
    cache = session.new_cache(preset("kivi2"), context=session.context(IDS[:CONTEXT]))
    found = save(tmp_path / "a", cache.state(), Origin.of(session, preset("kivi2"), IDS[:CONTEXT]), "zlib", 9)
    evidence = cache.evidence()
    assert found.nbytes == (tmp_path / "a").stat().st_size
    assert found.before["payload"] == sum(e.bytes_payload for e in evidence)
    assert found.before["metadata"] == sum(e.bytes_metadata for e in evidence)
    assert found.before["window"] + found.before["sinks"] == sum(e.bytes_exact for e in evidence)
    assert all(found.after[role] <= found.before[role] for role in found.before)


def test_other_origins_are_refused_by_name(session, tmp_path: Path) -> None:
    saved(session, tmp_path / "a", "turbo4")
    right = Origin.of(session, preset("turbo4"), IDS[:CONTEXT])
    refused = {
        "another model: dtype is 'float32' in the file and 'bfloat16' here": dataclasses.replace(
            right, model=right.model | {"dtype": "bfloat16"}
        ),
        "another scheme: scheme.k.bits is at its default in the file and 3 here": Origin.of(session, preset("turbo3"), IDS[:CONTEXT]),
        "another scheme: scheme.sinks is at its default in the file and 2 here": Origin.of(
            session, dataclasses.replace(preset("turbo4"), sinks=2), IDS[:CONTEXT]
        ),
        "another scheme: scheme is {": Origin.of(session, None, IDS[:CONTEXT]),
        "another text: tokens is 300 in the file and 299 here": Origin.of(session, preset("turbo4"), IDS[: CONTEXT - 1]),
        "another text: ids_sha256 is": Origin.of(session, preset("turbo4"), IDS[1 : CONTEXT + 1]),
    }
    for reason, origin in refused.items():
        with pytest.raises(StorageError) as told:
            load(tmp_path / "a", origin)
        assert reason in str(told.value)
    assert isinstance(load(tmp_path / "a", right), State)


def test_other_weights_of_the_same_shape_are_refused(session, tmp_path: Path) -> None:
    saved(session, tmp_path / "a", "turbo4")
    other = tiny.llama()
    other.model.layers[1].self_attn.k_proj.weight.data[3] += 1e-3
    frequencies = tiny.llama(rope_parameters={"rope_type": "default", "rope_theta": 20000.0})
    for model in (other, frequencies):
        with opened(model) as strange, pytest.raises(StorageError, match="another model: weights_sha256 is"):
            taken(strange, tmp_path / "a", "turbo4")


def test_another_calibration_is_refused(session, tmp_path: Path) -> None:
    saved(session, tmp_path / "a", "learns")
    state = load(tmp_path / "a", Origin.of(session, read(LEARNS), IDS[:CONTEXT]))
    with pytest.raises(StorageError, match=r"0\.k was packed after another calibration"):
        session.new_cache(read(LEARNS), terms(session, "learns", seed=3), state)


def test_a_state_that_fits_another_cache_is_refused(session) -> None:
    """Where no origin has been compared: arrays, policy and layers are."""
    context = session.context(IDS[:CONTEXT])
    states = {name: session.new_cache(read(SCHEMES[name]), context=context).state() for name in ("turbo4", "q8_0", "kivi2", "f16")}
    states["own"] = session.new_cache(None, context=context).state()
    for name in states:
        for other, state in states.items():
            if name != other:
                with pytest.raises(StorageError):
                    session.new_cache(scheme_of(name), context=state)
    with pytest.raises(StorageError, match=r"it holds 0\.k, 0\.v; this model and scheme have 0\.k, 0\.v, 1\.k, 1\.v"):
        session.new_cache(read(SCHEMES["turbo4"]), context=State(states["turbo4"].entries[:2]))


def test_what_cannot_be_saved_says_why(session) -> None:
    with opened(tiny.hybrid()) as other:
        for scheme in (None, preset("turbo4")):
            with pytest.raises(Unsupported, match="keeps LinearAttentionLayer beside keys and values, which cannot be saved yet"):
                other.new_cache(scheme).state()
    cache = session.new_cache(preset("turbo4"), context=session.context(IDS[:CONTEXT]))
    cache.stores[0].append(*(torch.zeros(1, 2, 1, 64) for _ in "kv"))
    with pytest.raises(EvidenceError, match="1 tokens wait to be attended"):
        cache.state()
    with pytest.raises(Unsupported, match="another library's cache cannot be saved here"):
        PeerCache.__new__(PeerCache).state()


def tried(session: Session, path: Path, origin: Origin, name: str, expected: torch.Tensor) -> bool:
    """Whether a file is refused; taken back it must be the same cache."""
    try:
        back = session.new_cache(scheme_of(name), Terms(), load(path, origin))
    except StorageError:
        return True
    assert torch.equal(session.forward(IDS[CONTEXT : CONTEXT + 1], back), expected)
    return False


@pytest.mark.parametrize(("name", "coder"), [("kivi2", "zstd"), ("turbo4", "ans"), ("window", "zlib"), ("q8_0", "none"), ("own", "zstd")])
def test_damage_is_refused_wherever_it_is(session, tmp_path: Path, name: str, coder: str) -> None:
    """Bits flipped, bytes replaced, ends cut off, bytes added: all over the file, and often in its header."""
    cache = saved(session, tmp_path / "a", name, coder)
    expected = session.forward(IDS[CONTEXT : CONTEXT + 1], cache)
    whole, rng = (tmp_path / "a").read_bytes(), np.random.default_rng(0)
    origin, path = Origin.of(session, scheme_of(name), IDS[:CONTEXT]), tmp_path / "b"
    assert not tried(session, tmp_path / "a", origin, name, expected)
    refused = 0
    for i in range(250):
        data, at = bytearray(whole), int(rng.integers(len(whole) if i % 3 else min(1500, len(whole))))
        match i % 5:
            case 0 | 1:
                data[at] ^= 1 << rng.integers(8)
            case 2:
                data[at : at + 4] = rng.bytes(4)
            case 3:
                del data[at : at + int(rng.integers(1, 64))]
            case 4:
                data = data[:at] if i % 2 else data + rng.bytes(at % 99 + 1)
        path.write_bytes(bytes(data))
        refused += data == whole or tried(session, path, origin, name, expected)
    assert refused == 250


def forged(whole: bytes, change: Any) -> bytes:
    """The file with another header, under checksums that fit."""
    start = len(MAGIC) + SIZES.size
    plain, coded = SIZES.unpack(whole[len(MAGIC) : start])
    header = json.loads(entropy.decode(whole[start : start + coded], plain).tobytes())
    header = change(header) or header
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    stream = entropy.encode(text, "zlib")
    return MAGIC + SIZES.pack(len(text), len(stream)) + stream + whole[start + coded :]


def test_a_forged_header_is_no_crash(session, tmp_path: Path) -> None:
    """Every value of the header replaced by others, with checksums that fit: an error of ours, or the same cache."""
    cache = saved(session, tmp_path / "a", "kivi2")
    expected = session.forward(IDS[CONTEXT : CONTEXT + 1], cache)
    whole, path, origin = (tmp_path / "a").read_bytes(), tmp_path / "b", Origin.of(session, preset("kivi2"), IDS[:CONTEXT])
    strange: list[Any] = [None, -1, 0, 1, 7, 1 << 40, 1 << 70, 0.5, float("nan"), "", "x", [], [1], {}, True]
    places = [place for place in _places(json.loads(json.dumps(_header(whole)))) if not _same(place)]
    assert len(places) > 100
    rng = np.random.default_rng(0)
    for place in places:
        for value in (strange[i] for i in rng.choice(len(strange), 3, replace=False)):
            path.write_bytes(forged(whole, lambda header, place=place, value=value: _put(header, place, value)))
            tried(session, path, origin, "kivi2", expected)


def _header(whole: bytes) -> Any:
    found: list[Any] = []
    forged(whole, lambda header: found.append(header))
    return found[0]


def _places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of nested data is."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(place for key, value in items for place in _places(value, (*at, key)))]


def _same(place: tuple[Any, ...]) -> bool:
    """What describes the cache and is not needed to take it back; the last layer stands for those like it."""
    return place[:1] in (("tqbench",), ("coder",), ("model",), ("scheme",)) or (
        place[:1] == ("entries",) and len(place) > 1 and place[1] in (1, 2)
    )


def _put(header: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return [value]
    for key in place[:-1]:
        header = header[key]
    header[place[-1]] = value
    return None


def _asking_for_more(header: Any) -> None:
    """As much as its streams may stand for, which is far more than any cache of this context."""
    header["entries"][0]["arrays"][0][3] = [1 << 30]


def test_each_kind_of_damage_is_named(session, tmp_path: Path) -> None:
    saved(session, tmp_path / "a", "turbo4")
    whole, origin = (tmp_path / "a").read_bytes(), Origin.of(session, preset("turbo4"), IDS[:CONTEXT])
    middle = len(whole) // 2
    named = {
        "its schema is 'tqbench.cache/2', this version of tqbench reads 'tqbench.cache/1'": forged(
            whole, lambda h: h | {"schema": "tqbench.cache/2"}
        ),
        "this is no cache saved by tqbench": b"GGUF" + whole[4:],
        "its header is damaged: KeyError: 'entries'": forged(whole, lambda h: {k: v for k, v in h.items() if k != "entries"}),
        "something was added": whole + b"\0",
        "cut off": whole[:-1],
        "cut off after 10 bytes": whole[:10],
        "checksum": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "a stream is cut off: 0 bytes": whole[: len(MAGIC) + SIZES.size],
        "its header says that it has 4294967295 bytes": MAGIC + SIZES.pack(2**32 - 1, 100) + whole[len(MAGIC) + SIZES.size :],
        "its arrays would take": forged(whole, _asking_for_more),
    }
    for reason, data in named.items():
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(StorageError) as told:
            load(tmp_path / "b", origin)
        assert reason in str(told.value)
        assert str(tmp_path / "b") in str(told.value)
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        load(tmp_path / "none", origin)
    assert issubclass(StorageError, TqbenchError)


def test_a_write_that_fails_leaves_the_old_file(session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(session, tmp_path / "a", "turbo4")
    whole = (tmp_path / "a").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError, match="no space"):
        saved(session, tmp_path / "a", "q8_0")
    assert (tmp_path / "a").read_bytes() == whole

"""Entropy coders: what goes in comes out, sizes follow from counts, and what is damaged is an error of ours before anything else."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from tqbench.codecs.blocks.packing import pack
from tqbench.core.errors import ConfigError, StorageError, Unsupported
from tqbench.kernels import entropy, native
from tqbench.kernels.entropy import CHECK, CODERS, HEAD, Grain

RNG = np.random.default_rng(0)
LEVELS = [("none", None), ("zlib", None), ("zlib", 1), ("zlib", 9), ("zstd", None), ("zstd", 1), ("zstd", 19), ("ans", None)]


def codes(bits: int, count: int = 1 << 20) -> tuple[np.ndarray, float]:
    """Normal values as packed codes, and the entropy of a code in bits."""
    top = (1 << bits) - 1
    drawn = np.clip(np.rint(RNG.normal(top / 2, top / 6, count)), 0, top).astype(np.uint8)
    shares = np.bincount(drawn) / count
    import torch

    return pack(torch.from_numpy(drawn), bits).numpy(), float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


DATA = {
    "empty": np.zeros(0, np.uint8),
    "one": np.full(24, 7, np.uint8),
    "constant": np.full(20_001 * 24, 255, np.uint8),
    "random": RNG.integers(0, 256, 24 * 9001, dtype=np.uint8),
    "two symbols": (RNG.random(24 * 5000) < 1e-4).astype(np.uint8),
    "floats": RNG.normal(size=24 * 1000).astype(np.float16).view(np.uint8),
}


@pytest.mark.parametrize(("coder", "level"), LEVELS)
@pytest.mark.parametrize("name", DATA)
def test_what_goes_in_comes_out(coder: str, level: int | None, name: str) -> None:
    data = DATA[name]
    for grain in (Grain(), Grain(bits=3), Grain(bits=5), Grain(width=2), Grain(width=4)):
        stream = entropy.encode(data, coder, level, grain)
        assert np.array_equal(entropy.decode(stream, len(data)), data)
        assert len(stream) <= len(data) + HEAD.size + CHECK.size  # what does not get smaller stays as it is
        assert entropy.encode(data, coder, level, grain) == stream


@pytest.mark.parametrize("size", [1, 2, 3, 7, 65535, 65536, 65537])
@pytest.mark.parametrize("bits", range(1, 9))
def test_runs_may_end_anywhere(size: int, bits: int) -> None:
    data = np.minimum(RNG.geometric(0.2, size), 255).astype(np.uint8)
    assert np.array_equal(entropy.decode(entropy.encode(data, "ans", None, Grain(bits=bits)), size), data)


def test_ans_needs_as_many_bits_as_the_symbols_hold() -> None:
    """Codes of three bits lie across bytes: counted as codes they reach their entropy, counted as bytes they do not."""
    for bits in (2, 3, 4, 5):
        data, information = codes(bits)
        found = 8 * len(entropy.encode(data, "ans", None, Grain(bits=bits))) / (1 << 20)
        assert information <= found < 1.004 * information, bits
    data, information = codes(3)
    assert 8 * len(entropy.encode(data, "ans")) / (1 << 20) > 1.02 * information


def test_the_native_and_the_plain_unpacking_give_the_same_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = codes(3)
    stream = entropy.encode(data, "ans", None, Grain(bits=3))
    monkeypatch.setattr(native, "missing", lambda: "not here")
    assert entropy.encode(data, "ans", None, Grain(bits=3)) == stream
    assert np.array_equal(entropy.decode(stream, len(data)), data)


def test_elements_laid_apart_code_better() -> None:
    """The exponents of neighbours are alike, their last bits are not."""
    floats = (1 + RNG.random(20_000) / 8).astype(np.float32).view(np.uint8)
    for coder in ("zlib", "zstd", "ans"):
        assert len(entropy.encode(floats, coder, None, Grain(width=4))) < len(entropy.encode(floats, coder))


@pytest.mark.parametrize("coder", ["none", "zlib", "zstd", "ans"])
def test_damage_is_an_error_of_ours(coder: str) -> None:
    """Any flipped bit and any cut: the checksums see it."""
    data, _ = codes(4, 1 << 14)
    stream = entropy.encode(data, coder)
    for _ in range(1000):
        broken = bytearray(stream)
        broken[RNG.integers(len(stream))] ^= 1 << RNG.integers(8)
        with pytest.raises(StorageError):
            entropy.decode(bytes(broken), len(data))
    for cut in (*range(60), *RNG.integers(0, len(stream), 100)):
        with pytest.raises(StorageError):
            entropy.decode(stream[:cut], len(data))
    with pytest.raises(StorageError, match="were expected"):
        entropy.decode(stream, len(data) + 1)
    with pytest.raises(StorageError):
        entropy.decode(stream + b"\0", len(data))


def forged(stream: bytes, **changes: int) -> bytes:
    """A stream whose head says something else, with checksums that fit."""
    names = ("magic", "tag", "width", "bits", "plain", "coded", "before", "after")
    found = dict(zip(names, HEAD.unpack(stream[: HEAD.size]), strict=True))
    body = stream[HEAD.size + CHECK.size :]
    head = HEAD.pack(*(found | {"coded": len(body), "after": zlib.crc32(body)} | changes).values())
    return head + CHECK.pack(zlib.crc32(head)) + body


@pytest.mark.parametrize("coder", CODERS)
def test_a_forged_head_is_no_crash(coder: str) -> None:
    """Another coder, another grain, another length: whatever the checksums of the coded bytes say."""
    data, _ = codes(4, 1 << 16)
    stream = entropy.encode(data, coder)
    tags = {one.tag for one in CODERS.values()} - {HEAD.unpack(stream[: HEAD.size])[1]}
    grains = [{"width": 0}, {"width": 200}, {"bits": 0}, {"bits": 9}, *([{"width": 2}] if coder != "none" else [])]
    for changes in (*({"tag": tag} for tag in (*tags, 9, 255)), *grains):
        with pytest.raises(StorageError):
            entropy.decode(forged(stream, **changes), len(data))
    if coder not in ("none", "zlib"):
        with pytest.raises(StorageError):
            entropy.decode(forged(stream, width=2), len(data))
    for size in (0, 1, len(data) - 1, len(data) + 1, 1 << 20):
        with pytest.raises(StorageError):
            entropy.decode(forged(stream, plain=size), size)


@pytest.mark.parametrize("coder", ["zlib", "zstd", "ans"])
def test_forged_bodies_are_no_crash(coder: str) -> None:
    """Random changes that the checksums were told about reach the decoder itself."""
    data, _ = codes(4, 1 << 16)
    start, stream = HEAD.size + CHECK.size, entropy.encode(data, coder)
    for _ in range(500):
        broken = bytearray(stream)
        for _ in range(RNG.integers(1, 4)):
            broken[RNG.integers(start, len(stream))] = RNG.integers(256)
        cut = bytes(broken[: RNG.integers(start, len(stream))] if RNG.random() < 0.3 else broken)
        try:
            assert np.array_equal(entropy.decode(forged(cut), len(data)), data)
        except StorageError:
            continue


@pytest.mark.parametrize("coder", ["none", "zlib", "zstd", "ans"])
def test_a_forged_length_takes_no_memory(coder: str) -> None:
    stream = entropy.encode(np.zeros(100, np.uint8), coder)
    tracemalloc.start()
    for size in (1 << 40, 1 << 62, 500_000):
        with pytest.raises(StorageError):
            entropy.decode(forged(stream, plain=size), size)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_zstd_frames_are_asked_for_their_size_first() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    head = HEAD.pack(b"TQE1", 2, 1, 8, 100, len(bomb), zlib.crc32(bytes(100)), zlib.crc32(bomb))
    with pytest.raises(StorageError, match="stands for 16777216 bytes, 100 were expected"):
        entropy.decode(head + CHECK.pack(zlib.crc32(head)) + bomb, 100)


def test_levels_and_names_are_checked() -> None:
    for coder, level, what in (("zlib", 0, "from 1 to 9"), ("zstd", 23, "from 1 to 22"), ("ans", 1, "no levels"), ("none", 3, "no levels")):
        with pytest.raises(ConfigError, match=what):
            entropy.encode(DATA["one"], coder, level)
    with pytest.raises(ConfigError, match="did you mean 'zstd'"):
        entropy.encode(DATA["one"], "zst")


def test_what_is_missing_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "_version", lambda package: None)
    with pytest.raises(Unsupported, match=r'needs constriction; install with: pip install "tqbench\[entropy\]"'):
        entropy.encode(DATA["one"], "ans")
    with pytest.raises(Unsupported, match="needs zstandard; install with: pip install zstandard"):
        entropy.encode(DATA["one"], "zstd")
    assert entropy.decode(entropy.encode(DATA["one"], "zlib"), 24).tolist() == [7] * 24


def test_deflate_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unsupported, match="CUDA device, and there is none here"):
        entropy.encode(DATA["one"], "deflate")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(entropy, "_version", lambda package: None)
    with pytest.raises(Unsupported, match="pip install nvidia-nvcomp-cu1"):
        entropy.encode(DATA["one"], "deflate")


def test_the_head_is_what_it_says() -> None:
    stream = entropy.encode(np.arange(64, dtype=np.uint8) // 32, "zlib", None, Grain(2, 4))
    assert struct.unpack_from("<4sBBB", stream) == (b"TQE1", 1, 2, 4)

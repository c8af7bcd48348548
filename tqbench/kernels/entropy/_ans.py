"""Asymmetric numeral systems, order 0, by constriction: a symbol takes as many bits as its share of the stream says.

A plane (see `Grain.width`) is its table, then runs of 65,536 symbols that are coded apart, so that what a stream stands for is bounded by
what it holds. The table is 256 bits that say which symbols occur, then 16 bits for each of them: its count, the largest being 65,535.
A run is how many 32-bit words it takes, and these: none where only one symbol occurs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import constriction
import numpy as np
import torch
from numpy.typing import NDArray

from tqbench.core.errors import StorageError
from tqbench.core.op import Op
from tqbench.kernels import native, packbits
from tqbench.kernels.entropy import Grain

RUN = 1 << 16
TOP = (1 << 16) - 1
PRESENT = 32  # bytes of the table's bits
WORDS = struct.Struct("<I")
ERRORS = (AssertionError,)

Symbols = NDArray[np.uint8]


def encode(data: bytes, level: int | None, grain: Grain) -> bytes:  # noqa: ARG001 - the same for every coder
    """Every plane with a table of its own."""
    size = len(data) // grain.width
    return b"".join(part for i in range(grain.width) for part in _plane(_symbols(data[i * size : (i + 1) * size], grain.bits)))


def decode(body: memoryview, size: int, grain: Grain) -> bytes:
    """Plane by plane; what is left over is an error."""
    rest, planes = body, []
    for _ in range(grain.width):
        found, rest = _decoded(rest, _count(size // grain.width, grain.bits))
        planes.append(_bytes(found, grain.bits)[: size // grain.width].tobytes())
    if rest:
        raise StorageError(f"a stream of coder 'ans' has {len(rest)} bytes more than it needs")
    return b"".join(planes)


def _plane(symbols: Symbols) -> Iterator[bytes]:
    counts = np.bincount(symbols, minlength=256)
    present = np.flatnonzero(counts)
    shares = np.maximum(1, np.rint(counts[present] * (TOP / max(1, counts.max())))).astype("<u2")
    yield np.packbits(counts > 0, bitorder="little").tobytes() + shares.tobytes()
    model, rank = _model(shares), np.zeros(256, np.int32)
    rank[present] = np.arange(len(present))
    for first in range(0, len(symbols), RUN):
        stack = constriction.stream.stack.AnsCoder()
        if model is not None:
            stack.encode_reverse(rank[symbols[first : first + RUN]], model)
        words = stack.get_compressed()
        yield WORDS.pack(len(words)) + words.astype("<u4").tobytes()


def _decoded(body: memoryview, count: int) -> tuple[Symbols, memoryview]:
    table, rest = _cut(body, PRESENT)
    present = np.flatnonzero(np.unpackbits(np.frombuffer(table, np.uint8), bitorder="little")).astype(np.uint8)
    table, rest = _cut(rest, 2 * len(present))
    shares = np.frombuffer(table, "<u2")
    if bool(count) != bool(len(present)) or not shares.all():
        raise StorageError(f"a stream of coder 'ans' has a table of {len(present)} symbols for {count}")
    model, runs = _model(shares), [present[:0]]
    for first in range(0, count, RUN):
        size, rest = _cut(rest, WORDS.size)
        words, rest = _cut(rest, 4 * WORDS.unpack(size)[0])
        stack = constriction.stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
        symbols = min(RUN, count - first)
        runs.append(np.repeat(present, symbols) if model is None else present[stack.decode(model, symbols)])
        if not stack.is_empty():
            raise StorageError("a run of coder 'ans' has more in it than its symbols")
    return np.concatenate(runs), rest


def _cut(body: memoryview, size: int) -> tuple[memoryview, memoryview]:
    if len(body) < size:
        raise StorageError(f"a stream of coder 'ans' is cut off: {len(body)} bytes where {size} are needed")
    return body[:size], body[size:]


def _model(shares: NDArray[np.uint16]) -> Any:
    """None where there is nothing to tell apart."""
    if len(shares) < 2:
        return None
    wide = shares.astype(np.float64)
    return constriction.stream.model.Categorical(wide / wide.sum(), perfect=False)


def _lane(bits: int) -> int:
    """Bits of a symbol: a byte where codes fill it, two codes of three bits, else one code."""
    return 8 if 8 % bits == 0 else 6 if bits == 3 else bits


def _count(size: int, bits: int) -> int:
    """How many symbols so many bytes are; the last ones may be padding."""
    lane = _lane(bits)
    return size if lane == 8 else -(-size // lane) * 8


def _symbols(data: bytes, bits: int) -> Symbols:
    plain = np.frombuffer(data, np.uint8)
    if (lane := _lane(bits)) == 8 or not data:
        return plain
    padded = np.pad(plain, (0, -len(plain) % lane))
    return np.asarray(_form(packbits.UNPACK)(torch.from_numpy(padded), lane))


def _bytes(symbols: Symbols, bits: int) -> Symbols:
    if (lane := _lane(bits)) == 8 or not len(symbols):
        return symbols
    return np.asarray(_form(packbits.PACK)(torch.from_numpy(symbols), lane))


def _form(op: Op) -> Any:
    """The native form where there is one: on the host, for any codec."""
    return op.impls[-1 if native.missing() else 0].load()

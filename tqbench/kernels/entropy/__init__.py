"""Entropy: the bytes of packed arrays into fewer bytes and back, losslessly.

encode(data, coder, level, grain) -> stream, and decode(stream, size) -> the same bytes. A stream carries its coder, its lengths and
checksums, and whoever reads it knows how many bytes it must come to; anything else is a `StorageError`, found before a decoder sees it
where that is possible. Coders are no forms of one operation, because each writes other bytes: so this folder has a table of coders where
others have an op record.

| coder     | what it counts                                                                                    |
|-----------|---------------------------------------------------------------------------------------------------|
| `none`    | nothing: the bytes as they are, checked all the same                                              |
| `zlib`    | DEFLATE (levels 1 to 9): repeated runs, then Huffman codes of bytes                               |
| `zstd`    | Zstandard (levels 1 to 22): repeated runs, then finite-state codes of bytes                       |
| `ans`     | asymmetric numeral systems, order 0: each symbol by how often it occurs, and nothing about others |
| `deflate` | DEFLATE on a CUDA device (nvCOMP); not zlib's streams: only nvCOMP reads them                     |

The symbols of `ans` are bytes, and where codes of 3, 5, 6 or 7 bits would lie across them, runs of one or two whole codes (`Grain.bits`).
Elements of several bytes are laid apart first (`Grain.width`): all lowest bytes, then the next, each with counts of its own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqbench.core.errors import ConfigError, StorageError, Unsupported, unknown

Bytes = NDArray[np.uint8]
MAGIC = b"TQE1"
HEAD = struct.Struct("<4sBBBxQQII")  # magic, coder, width and bits of the grain, bytes before and after, their checksums
CHECK = struct.Struct("<I")  # of the head
EXPANSION = 1 << 15  # a stream stands for at most so many times its own bytes: what a forged length may ask for is bounded by the file


@dataclass(frozen=True)
class Grain:
    """What the bytes of a stream are made of."""

    width: int = 1  # bytes of an element
    bits: int = 8  # of a code, where codes are packed into one bit stream


@dataclass(frozen=True)
class Coder:
    """One way to code bytes. `form` is its module here: encode(data, level, grain) -> bytes, and decode(body, size, grain) -> bytes."""

    name: str
    tag: int  # in streams; never given to another
    form: str
    levels: range | None = None
    level: int | None = None  # unless another is asked for
    package: str | None = None
    install: str = ""
    device: Callable[[], str | None] = lambda: None  # why it cannot run on this machine, or None

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if (reason := self.device()) is not None:
            return f"coder {self.name!r} {reason}"
        if self.package and _version(self.package) is None:
            return f"coder {self.name!r} needs {self.package}; install with: {self.install}"
        return None

    def check(self, level: int | None) -> int | None:
        """The level to use; ConfigError if there is none such."""
        if level is None:
            return self.level
        if self.levels is None:
            raise ConfigError(f"coder {self.name!r} has no levels; leave `level` out")
        if level not in self.levels:
            raise ConfigError(f"level of coder {self.name!r} must be from {self.levels[0]} to {self.levels[-1]}, got {level}")
        return level

    @property
    def described(self) -> str:
        """With the version of its package, for records."""
        return f"{self.package} {_version(self.package)}" if self.package else "built in"

    def load(self) -> Any:
        """Its module; Unsupported if it cannot run here."""
        if (reason := self.missing()) is not None:
            raise Unsupported(reason)
        return import_module(f"{__name__}.{self.form}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _no_cuda() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "runs on a CUDA device, and there is none here"


def _nvcomp() -> str:
    """The package is named after the CUDA that torch was built for."""
    import torch

    return f"nvidia-nvcomp-cu{(torch.version.cuda or '12').partition('.')[0]}"


CODERS = {
    coder.name: coder
    for coder in (
        Coder("none", 0, "_none"),
        Coder("zlib", 1, "_zlib", range(1, 10), 6),
        Coder("zstd", 2, "_zstd", range(1, 23), 3, "zstandard", "pip install zstandard"),
        Coder("ans", 3, "_ans", package="constriction", install='pip install "tqbench[entropy]"'),
    )
}


def coder(name: str) -> Coder:
    """The coder of that name."""
    if name == "deflate":  # asks torch, which nothing else here needs
        return Coder("deflate", 4, "_nvcomp", package=_nvcomp(), install=f"pip install {_nvcomp()}", device=_no_cuda)
    if name not in CODERS:
        raise ConfigError(unknown("coder", name, NAMES))
    return CODERS[name]


NAMES = (*CODERS, "deflate")
_TAGS = {**{one.tag: one.name for one in CODERS.values()}, 4: "deflate"}


def encode(data: Bytes, name: str, level: int | None = None, grain: Grain = Grain()) -> bytes:
    """A stream: a head that says what it is, and the coded bytes. What would not get smaller is kept as it is."""
    chosen = coder(name)
    level, plain = chosen.check(level), data.tobytes()
    body = chosen.load().encode(_apart(plain, grain.width), level, grain)
    if len(body) >= len(plain):
        chosen, body = CODERS["none"], plain
    head = HEAD.pack(MAGIC, chosen.tag, grain.width, grain.bits, len(plain), len(body), zlib.crc32(plain), zlib.crc32(body))
    return b"".join((head, CHECK.pack(zlib.crc32(head)), body))


def decode(stream: bytes | memoryview, size: int) -> Bytes:
    """The bytes of a stream that must come to so many."""
    name, grain, before, body = _opened(memoryview(stream), size)
    form = coder(name).load()
    try:
        found = form.decode(body, size, grain)
    except StorageError:
        raise
    except (ValueError, IndexError, OverflowError, MemoryError, RuntimeError, *form.ERRORS) as error:
        raise StorageError(f"a stream of coder {name!r} cannot be decoded: {error}") from error
    if len(found) != size:
        raise StorageError(f"a stream of coder {name!r} came to {len(found)} bytes, {size} were expected")
    plain = found if name == "none" else _together(found, grain.width)
    if zlib.crc32(plain) != before:
        raise StorageError(f"a stream of coder {name!r} is damaged: the checksum of its content is wrong")
    return np.frombuffer(plain, dtype=np.uint8)


def _opened(stream: memoryview, size: int) -> tuple[str, Grain, int, memoryview]:
    """Coder, grain, checksum of the content, and the coded bytes: all checked, before anything is decoded or allocated."""
    start = HEAD.size + CHECK.size
    if len(stream) < start:
        raise StorageError(f"a stream is cut off: {len(stream)} bytes, its head alone has {start}")
    head = stream[: HEAD.size]
    magic, tag, width, bits, plain, coded, before, after = HEAD.unpack(head)
    if magic != MAGIC:
        raise StorageError("this is no stream of tqbench's, or of another version")
    if CHECK.unpack(stream[HEAD.size : start]) != (zlib.crc32(head),):
        raise StorageError("a stream is damaged: the checksum of its head is wrong")
    if tag not in _TAGS or not 1 <= width <= 8 or not 1 <= bits <= 8:
        raise StorageError(f"a stream names coder {tag}, elements of {width} bytes and codes of {bits} bits, which are not known here")
    body = stream[start:]
    if coded != len(body):
        raise StorageError(f"a stream has {len(body)} coded bytes, its head says {coded}")
    if plain != size or plain % width:
        raise StorageError(f"a stream says that it stands for {plain} bytes in elements of {width}, {size} were expected")
    if plain > EXPANSION * len(stream):
        raise StorageError(f"a stream of {len(stream)} bytes cannot stand for {plain}")
    if zlib.crc32(body) != after:
        raise StorageError("a stream is damaged: the checksum of its coded bytes is wrong")
    return _TAGS[tag], Grain(width, bits), before, body


def _apart(data: bytes, width: int) -> bytes:
    """First all first bytes of the elements, then all second ones …"""
    return data if width == 1 else np.frombuffer(data, dtype=np.uint8).reshape(-1, width).T.tobytes()


def _together(data: bytes, width: int) -> bytes:
    """Undo `_apart`."""
    return data if width == 1 else np.frombuffer(data, dtype=np.uint8).reshape(width, -1).T.tobytes()

"""A cache in one file: every array through an entropy coder, everything checked, and bound to what it was made by.

    TQCACHE\\n   8 bytes
    sizes       bytes of the header as JSON, and of its stream: two 32-bit integers, least byte first
    header      a stream of coder zlib (see `kernels/entropy`): JSON with the schema, the origin, and the form of every array
    arrays      one stream each, in the order of the header, and nothing after the last

Every byte is under a checksum or compared with what it must be. A file is written whole or not at all. It is taken back only where the
model, its weights, the scheme and the text are the same; what codecs learned is compared when stores take their arrays (`cache/state`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tqbench.core.codec import ITEMSIZE
from tqbench.core.errors import StorageError
from tqbench.core.files import write_atomic
from tqbench.core.scheme import Scheme
from tqbench.core.session import Ids, Session
from tqbench.core.state import ROLES, Entry, Form, Role, State
from tqbench.kernels import entropy
from tqbench.kernels.entropy import Grain
from tqbench.measure.environment import versions
from tqbench.measure.stages import stage

SCHEMA = "tqbench.cache/1"
MAGIC = b"TQCACHE\n"
SIZES = struct.Struct("<II")
HEAD = entropy.HEAD.size + entropy.CHECK.size  # of every stream
HEADER_BYTES = 16 << 20
BEGUN = 1024  # tokens beyond those that are there, for which a store may hold room
MODEL = ("architecture", "layers", "kv_layers", "heads", "kv_heads", "head_dim", "vocab", "dtype")


@dataclass(frozen=True)
class Origin:
    """What a saved cache belongs to: model, scheme (None: the model's own cache) and the tokens of its context."""

    model: dict[str, Any]
    scheme: dict[str, Any] | None
    tokens: int
    ids_sha256: str

    @staticmethod
    def of(session: Session, scheme: Scheme | None, ids: Ids) -> Origin:
        """The origin of a cache of these tokens in this session."""
        facts = {name: getattr(session.info, name) for name in MODEL} | {"weights_sha256": session.weights_sha256()}
        return Origin(
            facts,
            None if scheme is None else json.loads(scheme.definition()),
            len(ids),
            hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
        )

    @property
    def most_bytes(self) -> int:
        """No cache of these tokens is larger: all keys and values twice in float64, and units that are begun."""
        values = 2 * self.model["kv_layers"] * self.model["kv_heads"] * self.model["head_dim"] * (self.tokens + BEGUN)
        return 16 * values

    def check(self, other: dict[str, Any]) -> None:
        """Raise unless a file says the same of itself."""
        for name, what in (
            ("model", "another model"),
            ("scheme", "another scheme"),
            ("tokens", "another text"),
            ("ids_sha256", "another text"),
        ):
            here, there = getattr(self, name), other[name]
            if here != there:
                raise StorageError(f"it was saved from {what}: {_difference(name, here, there)}")


@dataclass(frozen=True)
class Saved:
    """What a file holds, in bytes: before and after the entropy stage by role, and what is neither: header, heads of streams."""

    before: dict[Role, int]
    after: dict[Role, int]
    overhead: int

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return sum(self.after.values()) + self.overhead


def save(path: Path, state: State, origin: Origin, coder: str = "zstd", level: int | None = None) -> Saved:
    """Write a cache to a file."""
    chosen = entropy.coder(coder)
    forms = [form for entry in state.entries for form, _ in entry.arrays]
    with stage("entropy"):
        streams = [entropy.encode(data, coder, level, _grain(form)) for entry in state.entries for form, data in entry.arrays]
        about = {"name": coder, "level": chosen.check(level), "package": chosen.described}
        head = _head(origin, state, about, [len(stream) for stream in streams])
    with stage("write"):
        write_atomic(path, b"".join((head, *streams)))
    before = {role: sum(form.nbytes for form in forms if form.role == role) for role in ROLES}
    after = {role: sum(len(s) - HEAD for form, s in zip(forms, streams, strict=True) if form.role == role) for role in ROLES}
    return Saved(before, after, len(head) + HEAD * len(streams))


def load(path: Path, origin: Origin) -> State:
    """Read a cache back; StorageError with the reason if it is damaged or of another origin."""
    try:
        with stage("read"):
            data = memoryview(path.read_bytes())
        with stage("entropy"):
            return _parsed(data, origin)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    except StorageError as error:
        raise StorageError(f"{path}: {error}") from error


def _grain(form: Form) -> Grain:
    return Grain(ITEMSIZE[form.dtype], form.bits)


def _head(origin: Origin, state: State, coder: dict[str, Any], sizes: list[int]) -> bytes:
    """Magic, sizes and header. It says nothing of when and where: the same cache gives the same file."""
    rest = iter(sizes)
    entries = [
        {"key": entry.key, "facts": entry.facts, "arrays": [[*dataclasses.astuple(form), next(rest)] for form, _ in entry.arrays]}
        for entry in state.entries
    ]
    header = {"schema": SCHEMA, "tqbench": versions()["tqbench"], **dataclasses.asdict(origin), "coder": coder, "entries": entries}
    plain = np.frombuffer(json.dumps(header, separators=(",", ":"), allow_nan=False).encode(), np.uint8)
    stream = entropy.encode(plain, "zlib", 9)
    return b"".join((MAGIC, SIZES.pack(len(plain), len(stream)), stream))


def _parsed(data: memoryview, origin: Origin) -> State:
    start = len(MAGIC) + SIZES.size
    if bytes(data[: len(MAGIC)]) != MAGIC[: len(data)]:
        raise StorageError("this is no cache saved by tqbench")
    if len(data) < start:
        raise StorageError(f"it is cut off after {len(data)} bytes")
    plain, coded = SIZES.unpack(data[len(MAGIC) : start])
    if plain > HEADER_BYTES:
        raise StorageError(f"its header says that it has {plain} bytes; {HEADER_BYTES} are allowed")
    header = _header(entropy.decode(data[start : start + coded], plain).tobytes())
    try:
        origin.check(header)
        layout = [_entry(data) for data in header["entries"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise StorageError(f"its header is damaged: {type(error).__name__}: {error}") from error
    if (needs := sum(form.nbytes for *_, arrays in layout for form, _ in arrays)) > (most := origin.most_bytes):
        raise StorageError(f"its arrays would take {needs} bytes; a cache of these {origin.tokens} tokens has at most {most}")
    ends = start + coded + sum(size for *_, arrays in layout for _, size in arrays)
    if ends != len(data):
        raise StorageError(f"it has {len(data)} bytes, its header says {ends}: {'cut off' if ends > len(data) else 'something was added'}")
    streams = _cut(data[start + coded :], [size for *_, arrays in layout for _, size in arrays])
    return State(
        tuple(
            Entry(key, facts, tuple((form, entropy.decode(next(streams), form.nbytes)) for form, _ in arrays))
            for key, facts, arrays in layout
        )
    )


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"its header is damaged: {error}") from error
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        schema = header.get("schema") if isinstance(header, dict) else None
        raise StorageError(f"its schema is {schema!r}, this version of tqbench reads {SCHEMA!r}")
    return header


def _entry(data: dict[str, Any]) -> tuple[str, dict[str, Any], list[tuple[Form, int]]]:
    """Key, facts, and the arrays with the sizes of their streams."""
    key, facts = data["key"], data["facts"]
    if not isinstance(key, str) or not isinstance(facts, dict):
        raise ValueError(f"{key!r} is no part of a cache")
    return key, facts, [(_form(*array[:-1]), _size(array[-1])) for array in data["arrays"]]


def _form(name: Any, role: Any, dtype: Any, shape: Any, bits: Any) -> Form:
    """An array's form, once its header entry is one."""
    whole = isinstance(shape, list) and len(shape) <= 16 and all(type(n) is int and 0 <= n < 1 << 40 for n in (*shape, bits))
    if not isinstance(name, str) or role not in get_args(Role) or dtype not in ITEMSIZE or not whole:
        raise ValueError(f"{name!r} is no array")
    return Form(name, role, dtype, tuple(shape), bits)


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _cut(data: memoryview, sizes: list[int]) -> Iterator[memoryview]:
    for size in sizes:
        yield data[:size]
        data = data[size:]


def _difference(name: str, here: Any, there: Any) -> str:
    """What differs, as far as it can be named."""
    if isinstance(here, dict) and isinstance(there, dict):
        key = next(key for key in sorted({*here, *there}) if here.get(key) != there.get(key))
        return _difference(key if name == "model" else f"{name}.{key}", here.get(key), there.get(key))
    shown = ("at its default" if value is None else repr(value) for value in (there, here))
    return "{} is {} in the file and {} here".format(name, *shown)

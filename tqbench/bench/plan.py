"""What to measure, from what a user wrote. All mistakes at once, and none after the first minute. Nothing here needs torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tqbench.core.errors import ConfigError, Unsupported, unknown
from tqbench.core.op import Place
from tqbench.core.presets import preset
from tqbench.core.scheme import Scheme

DATA = ("gaussian", "peaky", "sink", "outlier")
TOKENS = {
    "attend": "4k,32k,128k",
    "ablation": "4k,32k",
    "encode": "32,4k",
    "decode": "4k,32k",
    "kvtc": "1k",
}  # encode: a decode step of many layers, and a prefill chunk
SCHEMES = {op: "kvtc_lite_4x,kvtc_lite_8x,kvtc_paper_8x" if op == "kvtc" else "turbo4,turbo3,q8_0,q4_0,f16,bf16" for op in TOKENS}
OPS = tuple(TOKENS)
DEVICES = ("cpu", "cuda")
MOST_TOKENS, MOST_ROUNDS, MOST_THREADS = 1 << 24, 1000, 1024
Found = TypeVar("Found")


@dataclass(frozen=True)
class Geometry:
    """The shape of one layer's attention, with one query per sequence."""

    batch: int = 1
    kv_heads: int = 8
    heads: int = 32
    head_dim: int = 128
    architecture: str = "qwen2"  # decides the channel order of llama.cpp's types: here the channels stay where they are

    def __str__(self) -> str:
        return f"b{self.batch} kv{self.kv_heads} q{self.heads} d{self.head_dim}"


@dataclass(frozen=True)
class Plan:
    """One benchmark."""

    op: str
    geometry: Geometry
    tokens: tuple[int, ...]
    schemes: tuple[Scheme, ...]
    data: str = "gaussian"
    rounds: int = 9
    threads: int | None = None  # None: as torch is set up
    device: str = "cpu"

    @property
    def place(self) -> Place:
        """Where it runs: a model in float32 on the CPU, in bfloat16 on a GPU."""
        return Place(device=self.device, dtype="float32" if self.device == "cpu" else "bfloat16", head_dim=self.geometry.head_dim)

    @property
    def form(self) -> str:
        """The form that our own kernels have there."""
        return "native" if self.device == "cpu" else "triton"


@dataclass(frozen=True)
class Wishes:
    """What a user wrote, as text."""

    op: str = "attend"
    shape: str = str(Geometry())
    tokens: str | None = None
    schemes: str | None = None
    data: str = "gaussian"
    architecture: str = Geometry.architecture
    rounds: int = 9
    threads: int | None = None
    device: str = "cpu"


def read(wishes: Wishes) -> Plan:
    """The plan; ConfigError with every mistake."""
    problems: list[str] = []

    def attempt(parse: Callable[..., Found], *given: Any) -> Found | None:
        try:
            return parse(*given)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    geometry = attempt(shape, wishes.shape, wishes.architecture)
    tokens = attempt(counts, wishes.tokens or TOKENS.get(wishes.op, "4k"))
    schemes = attempt(named, wishes.schemes or SCHEMES.get(wishes.op, SCHEMES["attend"]))
    problems += _choices(wishes)
    if geometry is None or tokens is None or schemes is None or problems:
        raise ConfigError(problems)
    if misfits := [text for scheme in schemes for text in _misfit(scheme, geometry)]:
        raise ConfigError(misfits)
    return Plan(wishes.op, geometry, tokens, schemes, wishes.data, wishes.rounds, wishes.threads, wishes.device)


def shape(text: str, architecture: str = Geometry.architecture) -> Geometry:
    """`b1 kv8 q32 d128`; what is left out is as there."""
    fields = {"b": "batch", "kv": "kv_heads", "q": "heads", "d": "head_dim"}
    sizes: dict[str, int] = {}
    for word in text.split():
        match = re.fullmatch(r"(b|kv|q|d)([1-9][0-9]{0,4})", word)
        if match is None:
            raise ConfigError(
                f"--shape {text!r}: {word!r} is not b (sequences), kv (KV heads), q (query heads) or d (head_dim) and a number"
            )
        sizes[fields[match[1]]] = int(match[2])
    found = Geometry(**sizes, architecture=architecture)
    if found.heads % found.kv_heads:
        raise ConfigError(f"--shape {text!r}: {found.heads} query heads cannot share {found.kv_heads} KV heads evenly")
    return found


def counts(text: str) -> tuple[int, ...]:
    """`4k,32k,500`: token counts, each once, in rising order."""
    found = set()
    for word in _words(text, "--tokens"):
        match = re.fullmatch(r"([1-9][0-9]{0,7})(k?)", word.lower())
        count = int(match[1]) * (1024 if match[2] else 1) if match else 0
        if not 0 < count <= MOST_TOKENS:
            raise ConfigError(f"--tokens: {word!r} is not a number of tokens from 1 to {MOST_TOKENS:,}, such as 500 or 4k")
        found.add(count)
    return tuple(sorted(found))


def named(text: str) -> tuple[Scheme, ...]:
    """`turbo4,q8_0/turbo3`: schemes by name."""
    problems, found = list[str](), dict[str, Scheme]()
    for word in _words(text, "--schemes"):
        try:
            found[word] = preset(word)
        except ConfigError as error:
            problems += [f"--schemes: {problem}" for problem in error.problems]
    problems += [f"--schemes: {name!r} runs inside its own library, so there is no operation to time" for name in found if found[name].peer]
    if problems:
        raise ConfigError(problems)
    return tuple(found.values())


def _words(text: str, option: str) -> Sequence[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ConfigError(f"{option}: nothing is named")
    return words


def _choices(wishes: Wishes) -> Iterable[str]:
    if wishes.op not in OPS:
        yield unknown("operation", wishes.op, OPS)
    if wishes.data not in DATA:
        yield unknown("--data", wishes.data, DATA)
    if not 1 <= wishes.rounds <= MOST_ROUNDS:
        yield f"--rounds: {wishes.rounds} is not a number from 1 to {MOST_ROUNDS}"
    if wishes.device not in DEVICES:
        yield unknown("--device", wishes.device, DEVICES)
    if wishes.threads is not None and not 1 <= wishes.threads <= MOST_THREADS:
        yield f"--threads: {wishes.threads} is not a number from 1 to {MOST_THREADS}"


def _misfit(scheme: Scheme, geometry: Geometry) -> Iterable[str]:
    try:
        scheme.check(geometry.head_dim, geometry.kv_heads)
    except Unsupported as reason:
        yield f"scheme {scheme.name!r} does not take this shape: {reason}"
    if scheme.gqa and geometry.heads // geometry.kv_heads >= scheme.gqa.at_least:
        yield f"scheme {scheme.name!r} is {scheme.gqa.scheme.name!r} where so many query heads share a KV head; name that one"

"""Keys and values of calibration text, and what codecs learn from them: kept on disk by the hash of the vectors and the codec."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tqbench.cache.rope import Rope
from tqbench.core import registry
from tqbench.core.codec import Codec, Learned
from tqbench.core.files import short_hash, write_atomic
from tqbench.measure.environment import sources


@dataclass(frozen=True)
class Piece:
    """K and V of one stretch of text in one layer, [1, kv_heads, tokens, head_dim], as attention had them."""

    k: Tensor
    v: Tensor
    start: int  # position of the first


@dataclass
class Calibration:
    """What every layer that holds K and V showed on calibration text. Codecs are fitted once per layer and side."""

    layers: list[list[Piece]]
    folder: Path | None = None  # where what was learned is kept, and found again
    fitted: dict[tuple[Codec, str, int, Rope | None, int], Codec] = field(default_factory=dict)

    def fit(self, codec: Codec, side: Literal["k", "v"], position: int, rope: Rope | None, sinks: int = 0) -> Codec:
        """The codec after it has seen one side of one layer, or of all layers one after another if it packs them together."""
        skip = sinks if codec.tags.learns_packed else 0
        key = (codec, side, position, rope, skip)
        if key not in self.fitted:
            layers = self.layers if codec.tags.across_layers else self.layers[position : position + 1]
            x = torch.cat([torch.cat([_from(skip, piece, side, rope) for piece in pieces], dim=2) for pieces in layers], dim=1)
            self.fitted[key] = codec.calibrate(x) if self.folder is None else _learn(codec, x, self.folder)
        return self.fitted[key]

    def sha256(self) -> str:
        """The hash of everything that was learned so far."""
        found = [(side, at, learned_sha256(codec)) for (_, side, at, _, _), codec in self.fitted.items()]
        return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def _from(position: int, piece: Piece, side: Literal["k", "v"], rope: Rope | None) -> Tensor:
    """The vectors of a stretch from a position on."""
    x: Tensor = getattr(piece, side).to(torch.float32)
    return (x if rope is None else rope.undo(x, piece.start))[:, :, max(0, position - piece.start) :]


def _learn(codec: Codec, x: Tensor, folder: Path) -> Codec:
    """Learn, or read what was learned before from the same vectors by the same code. A file that is not whole is learned again."""
    digest = hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()
    path = folder / f"{short_hash([digest, repr(codec), _code()], 32)}.safetensors"
    found = _read(codec, path)
    if found is None:
        found = codec.calibrate(x)
        arrays = {f"{depth}.{name}": array for depth, learned in _learned(found) for name, array in learned.items()}
        whole = save({name: array.cpu().contiguous() for name, array in arrays.items()}, {"sha256": learned_sha256(found)})
        write_atomic(path, whole)
    return found


def _read(codec: Codec, path: Path) -> Codec | None:
    """The codec with what the file holds, if that is what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            found = _restored(codec, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
            return found if file.metadata().get("sha256") == learned_sha256(found) else None
    except (OSError, SafetensorError, AttributeError):
        return None


def learned_sha256(codec: Codec) -> str:
    """The hash of what a codec and those inside it have learned."""
    return hashlib.sha256(repr([(depth, learned.sha256) for depth, learned in _learned(codec)]).encode()).hexdigest()


@cache
def _code() -> str:
    """The hash of the code that learns, that of other packages included."""
    return sources(registry.outside())


def _learned(codec: Codec, depth: int = 0) -> Iterator[tuple[int, Learned]]:
    """What a codec and those inside it have learned, by depth."""
    if codec.learned is not None:
        yield depth, codec.learned
    inner: Any = getattr(codec, "inner", None)
    if inner is not None:
        yield from _learned(inner, depth + 1)


def _restored(codec: Codec, arrays: dict[str, Tensor], depth: int = 0) -> Codec:
    """The codec with what was learned put back."""
    own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{depth}.")}
    changes: dict[str, Any] = {"learned": Learned(own)} if own else {}
    if (inner := getattr(codec, "inner", None)) is not None:
        changes["inner"] = _restored(inner, arrays, depth + 1)
    return dataclasses.replace(codec, **changes)


def tables(codec: Codec) -> int:
    """Bytes of what was learned: resident once per layer and side, however many tokens there are."""
    return sum(int(array.nbytes) for _, learned in _learned(codec) for array in learned.values())

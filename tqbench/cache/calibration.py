"""Keys and values of calibration text, and what codecs learn from them: kept on disk by the hash of the vectors and the codec."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tqbench.cache.rope import Rope
from tqbench.core.codec import Codec, Learned
from tqbench.core.files import cache_root, short_hash
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
    fitted: dict[tuple[Codec, str, int, Rope | None], Codec] = field(default_factory=dict)

    def fit(self, codec: Codec, side: Literal["k", "v"], position: int, rope: Rope | None) -> Codec:
        """The codec after it has seen one side of one layer."""
        key = (codec, side, position, rope)
        if key not in self.fitted:
            pieces = [self._vectors(piece, side, rope) for piece in self.layers[position]]
            self.fitted[key] = _learn(codec, torch.cat(pieces, dim=2))
        return self.fitted[key]

    def sha256(self) -> str:
        """The hash of everything that was learned so far."""
        found = [(side, at, depth, own.sha256) for (_, side, at, _), codec in self.fitted.items() for depth, own in _learned(codec)]
        return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()

    @staticmethod
    def _vectors(piece: Piece, side: Literal["k", "v"], rope: Rope | None) -> Tensor:
        x: Tensor = getattr(piece, side).to(torch.float32)
        return x if rope is None else rope.undo(x, piece.start)


def _learn(codec: Codec, x: Tensor) -> Codec:
    """Learn, or read what was learned before from the same vectors by the same code."""
    digest = hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()
    path = cache_root() / "calibration" / f"{short_hash([digest, repr(codec), _code()], 32)}.safetensors"
    if path.is_file():
        return _restored(codec, load_file(path))
    fitted = codec.calibrate(x)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    save_file(
        {f"{depth}.{name}": array.cpu().contiguous() for depth, found in _learned(fitted) for name, array in found.items()}, temporary
    )
    temporary.replace(path)
    return fitted


@cache
def _code() -> str:
    return sources()


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

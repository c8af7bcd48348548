"""What `bench kvtc` times and judges on the sides of layers: encoding, decoding, and both with the entropy coder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tqbench.bench.contender import relative
from tqbench.bench.convert import codes_off
from tqbench.core.codec import Codec, Packed
from tqbench.kernels import entropy
from tqbench.kernels.entropy import Grain
from tqbench.measure.stages import stage

CODER, LEVEL = "zstd", 1
Direction = Literal["compress", "encode", "decompress", "decode"]
THERE: tuple[Direction, ...] = ("compress", "encode")
Streams = dict[str, bytes]


@dataclass(frozen=True)
class Half:
    """Keys or values, of one layer or of all, with the codec that stores them and what its reference makes of them."""

    codec: Codec
    x: Tensor
    packed: Packed
    streams: Streams
    decoded: Tensor

    @staticmethod
    def of(codec: Codec, x: Tensor) -> Half:
        """By the codec's own mathematics."""
        packed = codec.encode(x)
        return Half(codec, x, packed, _squeeze(packed), codec.decode(packed, x.shape[-1], torch.float32))


@dataclass(frozen=True)
class Way:
    """A form of encoding with one of decoding."""

    encode: Callable[[Half], Packed]
    decode: Callable[[Half, Packed], Tensor]


def _encode(halves: list[Half], way: Way) -> list[Packed]:
    return [way.encode(half) for half in halves]


def _decode(halves: list[Half], way: Way) -> list[Tensor]:
    return [way.decode(half, half.packed) for half in halves]


def _compress(halves: list[Half], way: Way) -> list[Streams]:
    return [_squeeze(packed) for packed in _encode(halves, way)]


def _decompress(halves: list[Half], way: Way) -> list[Tensor]:
    return [way.decode(half, _expand(half.streams, half.packed)) for half in halves]


def _squeeze(packed: Packed) -> Streams:
    if any(array.is_cuda for array in packed.values()):
        with stage("gather"):
            packed = {name: array.cpu() for name, array in packed.items()}
    with stage("entropy"):
        return {
            name: entropy.encode(array.numpy().reshape(-1).view("u1"), CODER, LEVEL, Grain(array.element_size()))
            for name, array in packed.items()
        }


def _expand(streams: Streams, like: Packed) -> Packed:
    """The arrays of streams, in the shapes of these and where they are."""
    with stage("entropy"):
        found = {
            name: torch.from_numpy(entropy.decode(stream, like[name].nbytes).copy()).view(like[name].dtype).view(like[name].shape)
            for name, stream in streams.items()
        }
    if not any(array.is_cuda for array in like.values()):
        return found
    with stage("restore"):
        return {name: array.to(like[name].device) for name, array in found.items()}


def _packed_error(halves: list[Half], packed: list[Packed]) -> float:
    return max(codes_off(mine, half.packed) for mine, half in zip(packed, halves, strict=True))


def _codes_error(halves: list[Half], streams: list[Streams]) -> float:
    return max(codes_off(_expand(mine, half.packed), half.packed) for mine, half in zip(streams, halves, strict=True))


def _values_error(halves: list[Half], values: list[Tensor]) -> float:
    return max(relative(mine, half.decoded) for mine, half in zip(values, halves, strict=True))


WORK: dict[Direction, tuple[Callable[..., Any], Callable[..., float]]] = {
    "compress": (_compress, _codes_error),
    "encode": (_encode, _packed_error),
    "decompress": (_decompress, _values_error),
    "decode": (_decode, _values_error),
}

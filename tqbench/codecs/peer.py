"""Another library's own quantized cache, run by that library: this file only says what it keeps. Nothing is encoded here.

`quanto`, `hqq`, `fp8`: transformers' QuantizedCache with that backend. `quanto` and `hqq` quantize groups of consecutive channels of a
token (axis 0 of quanto, axis 1 of hqq), 8 / bits groups to a byte, with a scale and a shift per group in the model's dtype. They take the
first forward call as a whole, then keep new tokens exact until there are `residual`, and quantize everything again. hqq searches for the
zero that suits each group. `fp8` is e4m3 with one scale for K and one for V of each layer, from the first forward call; no groups.
`mlx`: mlx-lm's QuantizedKVCache, the mathematics of codec `mlx_affine`, its scales in the model's dtype.

The layout is for float16 models. hqq's axis 0 mixes channels of different tokens and its 3 bits are cut wrongly for four dimensions, and
quanto's axis −1 groups consecutive tokens across heads: none of these is offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

from tqbench.core.codec import ITEMSIZE, Codec, Layout, Packed, Part, Tags
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch


@dataclass(frozen=True)
class _Library:
    """What a library's cache takes."""

    backend: str  # that it belongs to
    bits: tuple[int, ...]
    groups: tuple[int, ...] = (16, 32, 64, 128)
    names: tuple[str, ...] = ()  # of what each group has beside its codes
    residual: bool = False  # whether it holds back new tokens


LIBRARIES = {
    "quanto": _Library("transformers", (2, 4), names=("scales", "shifts"), residual=True),
    "hqq": _Library("transformers", (2, 4, 8), names=("scales", "zeros"), residual=True),
    "fp8": _Library("transformers", (8,), (0,)),
    "mlx": _Library("mlx", (2, 3, 4, 5, 6, 8), (32, 64, 128), ("scales", "biases")),
}


@dataclass(frozen=True)
class Peer(Codec):
    """A cache that another library runs."""

    name: ClassVar[str] = "peer"
    source: ClassVar[str] = "huggingface/transformers QuantizedCache; ml-explore/mlx-lm QuantizedKVCache"

    library: Literal["quanto", "hqq", "fp8", "mlx"] = "quanto"
    bits: Literal[2, 3, 4, 5, 6, 8] = 4
    group_size: Literal[0, 16, 32, 64, 128] = 64  # 0: one scale for all, as fp8 has it
    residual: int = 0  # recent tokens that quanto and hqq keep exact until there are so many

    def __post_init__(self) -> None:
        for name, allowed in (("bits", self.facts.bits), ("group_size", self.facts.groups)):
            if getattr(self, name) not in allowed:
                listed = ", ".join(map(str, allowed))
                raise ConfigError(f"{name} must be one of {listed} for library {self.library!r}, got {getattr(self, name)}")
        if self.residual < 0 or (self.residual and not self.facts.residual):
            raise ConfigError(f"residual must be {'0 or more' if self.facts.residual else '0'} for library {self.library!r}")

    @property
    def facts(self) -> _Library:
        """What the library takes."""
        return LIBRARIES[self.library]

    @property
    def tags(self) -> Tags:
        return Tags(peer=True, backend=self.facts.backend, deploy_only=self.facts.backend == "transformers")

    @property
    def per_byte(self) -> int:
        """Groups that share bytes: quanto and hqq put codes of distant groups together."""
        return 8 // self.bits if self.facts.residual else 1

    def check(self, head_dim: int) -> None:
        if self.group_size and head_dim % self.group_size:
            raise Unsupported(f"groups of {self.group_size} channels do not fit head_dim {head_dim}")

    def layout(self, head_dim: int) -> Layout:
        groups = head_dim // self.group_size if self.group_size else 0
        metadata = (Part(name, "float16", (groups,), "metadata") for name in self.facts.names)
        return Layout(1, (Part("codes", "uint8", (head_dim * self.bits // 8,)), *metadata))

    def groups(self, tokens: int, heads: int, head_dim: int) -> int:
        """Groups of channels in so many tokens."""
        return tokens * heads * head_dim // (self.group_size or head_dim)

    def resident(self, tokens: int, heads: int, head_dim: int, dtype: str) -> int:
        """Bytes of so many packed tokens in a model of that dtype. The last bytes of quanto may be shared by fewer groups."""
        groups = self.groups(tokens, heads, head_dim)
        rows = -(-groups // self.per_byte)
        codes = rows * self.per_byte * (self.group_size or head_dim) * self.bits // 8
        return codes + groups * len(self.facts.names) * ITEMSIZE[dtype]

    def quantize(self, y: Tensor) -> Packed:  # noqa: ARG002
        self._refuse()

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Unsupported(f"codec 'peer' runs inside its own library, {self.library}, on the {self.facts.backend} backend only")

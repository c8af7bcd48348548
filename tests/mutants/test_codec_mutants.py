"""A small honest codec, and for every codec check one that is broken in exactly that way."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tqbench.core.codec import Codec, Layout, Part, Tags
from tqbench.core.errors import Unsupported
from tqbench.testing import codec_checks as checks

UNIT = 4
MUTANTS: list[tuple[Callable, Codec, str]] = []


@dataclass(frozen=True)
class Toy(Codec):
    """Eight bits per value and a scale per channel, over four tokens; channels are stored backwards."""

    name: ClassVar[str] = Path(__file__).stem
    source: ClassVar[str] = "this file"

    @property
    def unit(self):
        return UNIT

    def check(self, head_dim):
        if head_dim == 80:
            raise Unsupported("head_dim 80 is not for toys")

    def layout(self, head_dim):
        return Layout(UNIT, (Part("codes", "int8", (UNIT, head_dim)), Part("scales", "float16", (head_dim,), "metadata")))

    def transform(self, x):
        return x.flip(-1)

    def inverse(self, y, head_dim):
        return y.flip(-1)

    def quantize(self, y):
        units = y.unflatten(2, (-1, UNIT))
        scales = (units.abs().amax(3) / 127).to(torch.float16)
        step = torch.where(scales == 0, 1.0, scales.to(y.dtype)).unsqueeze(3)
        return {"codes": (units / step).round().clamp(-127, 127).to(torch.int8), "scales": scales}

    def dequantize(self, packed, dtype):
        return (packed["codes"].to(dtype) * packed["scales"].to(dtype).unsqueeze(3)).flatten(2, 3)


@dataclass(frozen=True)
class Exact(Toy):
    """Keeps float32 as it is."""

    @property
    def tags(self):
        return Tags(lossless_in=("float32", "bfloat16", "float16"))

    def layout(self, head_dim):
        return Layout(UNIT, (Part("values", "float32", (UNIT, head_dim)),))

    def quantize(self, y):
        return {"values": y.float().unflatten(2, (-1, UNIT)).contiguous()}

    def dequantize(self, packed, dtype):
        return packed["values"].flatten(2, 3).to(dtype)


def breaks(check: Callable, message: str) -> Callable:
    """This codec is what the check is there to find."""

    def add(cls: type[Codec]) -> type[Codec]:
        MUTANTS.append((check, cls(), message))
        return cls

    return add


@breaks(checks.check_identity_card, "is named")
class Misnamed(Toy):
    name = "another"


@breaks(checks.check_identity_card, "names no source")
class Unsourced(Toy):
    source = " "


@breaks(checks.check_identity_card, "can be changed")
class Changeable(Toy):
    __setattr__ = object.__setattr__


@breaks(checks.check_head_dims, "without naming it")
class RefusesWithoutReason(Toy):
    def check(self, head_dim):
        if head_dim > 128:
            raise Unsupported("no")


@breaks(checks.check_head_dims, "takes none")
class RefusesAll(Toy):
    def check(self, head_dim):
        raise Unsupported(f"head_dim {head_dim} is refused")


@breaks(checks.check_layout, "bytes|declared")
class ForgetsScales(Toy):
    def layout(self, head_dim):
        return Layout(UNIT, super().layout(head_dim).parts[:1])


@breaks(checks.check_layout, "declared float16")
class WideScales(Toy):
    def quantize(self, y):
        packed = super().quantize(y)
        return packed | {"scales": packed["scales"].float()}


@breaks(checks.check_layout, "not contiguous")
class PacksViews(Toy):
    def quantize(self, y):
        packed = super().quantize(y)
        return packed | {"codes": packed["codes"].mT.contiguous().mT}


@breaks(checks.check_decoded_form, "asked for torch.float64")
class AlwaysFloat32(Toy):
    def dequantize(self, packed, dtype):
        return super().dequantize(packed, torch.float32)


@breaks(checks.check_decoded_form, "decodes to")
class FlatTokens(Toy):
    def decode(self, packed, head_dim, dtype):
        return super().decode(packed, head_dim, dtype).flatten(0, 1)


@breaks(checks.check_transform, "is not x")
class ForgetsInverse(Toy):
    def inverse(self, y, head_dim):
        return y


@breaks(checks.check_transform, "declared, got")
class PadsInSilence(Toy):
    def transform(self, x):
        return torch.nn.functional.pad(super().transform(x), (0, 8))

    def inverse(self, y, head_dim):
        return super().inverse(y[..., :head_dim], head_dim)


@breaks(checks.check_float64, "loses float64 precision")
class NarrowTransform(Toy):
    def transform(self, x):
        return super().transform(x).float().to(x.dtype)


@breaks(checks.check_float64, "disagree")
class OtherInFloat64(Toy):
    def dequantize(self, packed, dtype):
        return super().dequantize(packed, dtype) * (1.01 if dtype == torch.float64 else 1)


@breaks(checks.check_input_untouched, "encode changes its input")
class NormalizesInPlace(Toy):
    def transform(self, x):
        return super().transform(x.mul_(0.5)) * 2


@breaks(checks.check_input_untouched, "decode changes")
class DecodesInPlace(Toy):
    def dequantize(self, packed, dtype):
        packed["codes"].neg_()
        return -super().dequantize(packed, dtype)


@breaks(checks.check_deterministic, "different bytes")
class Dithers(Toy):
    CALLS = count(1)

    def quantize(self, y):
        return super().quantize(y + next(self.CALLS) / 100)


@breaks(checks.check_append_equals_batch, "unit by unit")
class ScalesWholeCall(Toy):
    def quantize(self, y):
        return super().quantize(y * (y.shape[2] / UNIT))


@breaks(checks.check_rows_independent, "depends on its neighbours")
class SharesScales(Toy):
    def quantize(self, y):
        return super().quantize(y / y.abs().amax((0, 1), keepdim=True))


@breaks(checks.check_blocks_round_trip, "is not packed")
class SwapsBytes(Toy):
    def from_blocks(self, blocks, head_dim):
        return super().from_blocks(blocks.flip(-1), head_dim)


@breaks(checks.check_blocks_round_trip, "blocks are")
class PaddedBlocks(Toy):
    def to_blocks(self, packed):
        return torch.nn.functional.pad(super().to_blocks(packed), (0, 2))


@breaks(checks.check_extremes, "zeros decodes to NaN")
class DividesByZero(Toy):
    def dequantize(self, packed, dtype):
        scales = packed["scales"].to(dtype)
        return super().dequantize(packed | {"scales": scales * scales / scales}, dtype)


@breaks(checks.check_overflow, "instead of being refused")
class Overflows(Toy):
    def encode(self, x):
        return self.quantize(self.transform(x))


@breaks(checks.check_nonfinite_refused, "without complaint")
class CleansUp(Toy):
    def encode(self, x):
        return super().encode(x.nan_to_num(posinf=1.0, neginf=-1.0))


@breaks(checks.check_views, "view gives other bytes")
class IgnoresStrides(Toy):
    def encode(self, x):
        return super().encode(x.as_strided(x.shape, torch.empty(x.shape).stride()))


@breaks(checks.check_views, "strided arrays decode")
class DecodesMemory(Toy):
    def dequantize(self, packed, dtype):
        codes = packed["codes"]
        return super().dequantize(packed | {"codes": codes.as_strided(codes.shape, torch.empty(codes.shape).stride())}, dtype)


@breaks(checks.check_error, "nothing is lost")
class HidesThatItIsExact(Exact):
    tags = Tags()


@breaks(checks.check_error, "relative squared error is")
class ForgetsScale(Toy):
    def dequantize(self, packed, dtype):
        return packed["codes"].to(dtype).flatten(2, 3)


@breaks(checks.check_error, "declared destructive")
class HarmlessControl(Toy):
    tags = Tags(destructive=True)


@breaks(checks.check_lossless, "values are refused")
class ClaimsToBeExact(Toy):
    tags = Tags(lossless_in=("float32",))


@breaks(checks.check_lossless, "but values change")
class DropsBits(Exact):
    def quantize(self, y):
        return super().quantize((y.view(torch.int32) & -2).view(torch.float32))


@breaks(checks.check_partial_unit, "its unit is 4")
class PadsUnits(Toy):
    def encode(self, x):
        return super().encode(torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % UNIT)))


@pytest.mark.parametrize(("check", "mutant", "message"), MUTANTS, ids=[type(mutant).__name__ for _, mutant, _ in MUTANTS])
def test_mutant_is_rejected(check, mutant, message):
    with pytest.raises(AssertionError, match=message):
        check(mutant)


@pytest.mark.parametrize("toy", [Toy(), Exact()], ids=lambda toy: type(toy).__name__)
def test_honest_toy_passes(toy):
    for check in checks.checks_for(toy):
        check(toy)


def test_every_check_has_a_mutant_and_is_offered(all_checks):
    assert {check for check, _, _ in MUTANTS} == all_checks(checks) == {*checks.checks_for(Toy()), *checks.checks_for(Exact())}

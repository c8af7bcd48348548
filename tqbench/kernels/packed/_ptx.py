"""Codes become halves in registers, four bytes of them at a time. A level from a table is two bytes, and each of them is looked up by
`prmt`, for four codes at once. An integer is written into the last digits of a half of 1024, which is then taken away.

The texts are PTX for `tl.inline_asm_elementwise`, with the levels as constants. What is interpreted looks the same levels up in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

LOW, EVEN = 0x0F0F0F0F, 0x00FF00FF  # bits of each byte; bytes of each pair


class _Text:
    """Lines of PTX. Operands are `$0`, `$1` …, outputs first; what is made has a name of its own. An output may be the register of an
    input: none is filled before all inputs have been read."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names = (f"r{i}" for i in count())

    def make(self, op: str, *given: str | int, to: str = "") -> str:
        """One instruction, and the register that it fills."""
        into = to or next(self.names)
        words = [into, *(one if isinstance(one, str) else f"{one:#x}" for one in given)]
        self.lines += ([] if to else [f".reg .b32 {into};"]) + [f"{op} {', '.join(words)};"]
        return into

    def choose(self, mask: int, x: str, y: str) -> str:
        """Bits of x where the mask is set, of y elsewhere."""
        return self.make("lop3.b32", mask, x, y, 0xCA)

    def __str__(self) -> str:
        return "{ " + " ".join(self.lines) + " }"


def lookup(bits: int, high: int, levels: Sequence[float]) -> str:
    """Four bytes, each of 8 / `high or bits` codes, to as many lots of four halves: codes that lie lowest, those above them, and so on.
    With `high` a byte has the last bits of the codes of two, in order, and is handed in twice."""
    text, table = _Text(), _bytes(levels)
    parts = 8 // (high or bits)
    code = f"${2 * parts}"
    if parts == 2:
        _halves(text, code, table, 0)
    else:
        words = _pairs(text, code) if not high else _with_top(text, code, f"${2 * parts + 1}")
        for i, word in enumerate(words):
            _eight(text, word, table, 4 * i)
    return str(text)


def integers(parts: int, flip: int, bias: int) -> str:
    """The same of (code ^ flip) + bias, without a table: a half of 1024 has room for a code in its last digits."""
    text, bits = _Text(), 8 // parts
    code = f"${2 * parts}"
    if flip:
        code = text.make("xor.b32", code, flip * (0xFFFFFFFF // (2**bits - 1)))
    offset = text.make("mov.b32", _half(bias - 1024) * 0x00010001)
    pairs = [text.make("prmt.b32", code, 0x64646464, picked) for picked in (0x4140, 0x4342)]  # after each byte the upper one of 1024
    for i, pair in enumerate(pairs):
        for part in range(parts):
            shifted = text.make("shr.u32", pair, part * bits) if part else pair
            in_1024 = pair if parts == 1 else text.make("lop3.b32", shifted, (2**bits - 1) * 0x00010001, 0x64006400, 0xEA)
            text.make("add.f16x2", in_1024, offset, to=f"${2 * part + i}")
    return str(text)


def minifloats(form: str) -> str:
    """Four eight-bit floats to four halves. e5m2 is the upper byte of a half. e4m3 is one whose exponent is too small by 8; its NaN would
    be 480, larger than every number, so that alone overflows in a product that the largest number just survives, and ∞ − ∞ is NaN."""
    text = _Text()
    pairs = [text.make("prmt.b32", "$2", 0, picked) for picked in (0x1404, 0x3424)]
    if form == "e4m3":
        by = [text.make("mov.b32", _half(factor) * 0x00010001) for factor in (256, 37408)]
    for i, pair in enumerate(pairs):
        if form == "e5m2":
            text.make("mov.b32", pair, to=f"${i}")
        else:
            shifted = text.make("shr.u32", text.make("and.b32", pair, 0x7F007F00), 1)
            small = text.make("lop3.b32", pair, 0x80008000, shifted, 0xEA)
            over = text.make("mul.f16x2", small, by[1])
            text.make("fma.rn.f16x2", small, by[0], text.make("sub.f16x2", over, over), to=f"${i}")
    return str(text)


def _half(x: float) -> int:
    return int(np.float16(x).view(np.uint16))


def _bytes(levels: Sequence[float]) -> tuple[list[int], list[int]]:
    """Low and high bytes of the levels as halves, four in a word."""
    halves = np.asarray(levels, dtype=np.float16).view(np.uint16)
    return tuple(np.resize(part.astype(np.uint8), max(8, len(halves))).view(np.uint32).tolist() for part in (halves, halves >> 8))  # type: ignore[return-value]


def _halves(text: _Text, code: str, table: tuple[list[int], list[int]], out: int) -> None:
    """Bytes of two codes of four bits. Most tables are eight levels and the same with the other sign."""
    low, high = table
    codes = np.array([low, high], dtype=np.uint32).view(np.uint8).astype(np.uint16)
    levels, upper = codes[0] | codes[1] << 8, 0x88888888
    if (levels[:8] ^ 0x8000 == levels[8:]).all():
        sign = text.make("shr.u32", text.make("and.b32", code, upper), 3)
        _eight(text, text.make("and.b32", code, 0x77777777), (low[:2], high[:2]), out, sign)
    elif (levels[:8][::-1] ^ 0x8000 == levels[8:]).all():
        negative = text.make("lop3.b32", code, upper, 0, 0x0C)
        sign = text.make("shr.u32", negative, 3)
        turned = text.make("sub.u32", negative, sign)  # 7 in each nibble of those
        _eight(text, text.make("lop3.b32", code, turned, 0x77777777, 0x28), (low[2:], high[2:]), out, sign)
    else:
        second = text.make("shr.u32", text.make("and.b32", code, upper), 3)
        _eight(text, text.make("and.b32", code, 0x77777777), table, out, second=second)


def _eight(text: _Text, index: str, table: tuple[list[int], list[int]], out: int, sign: str = "", second: str = "") -> None:
    """Eight nibbles of three bits to four registers of halves: of the lower nibbles, of the upper ones. `sign` says in nibbles which are
    negative, `second` which are looked up in the second half of the table."""
    for i in range(2):
        shift = lambda x: x if i == 0 or not x else text.make("shr.u32", x, 16)  # noqa: B023, E731 - used in this round
        at, below, above = shift(index), shift(sign), shift(second)
        parts = [text.make("prmt.b32", *words[:2], at) for words in table]
        if sign:
            parts[1] = text.make("xor.b32", parts[1], text.make("prmt.b32", 0x8000, 0, below))
        if second:
            mask = text.make("prmt.b32", 0xFF00, 0, above)
            others = [text.make("prmt.b32", *words[2:], at) for words in table]
            parts = [text.make("lop3.b32", mask, other, part, 0xCA) for part, other in zip(parts, others, strict=True)]
        for j, picked in enumerate((0x6240, 0x7351)):
            text.make("prmt.b32", *parts, picked, to=f"${out + 2 * j + i}")


def _pairs(text: _Text, code: str) -> list[str]:
    """Bytes of four codes of two bits, as two words of nibbles."""
    words = text.choose(LOW, code, text.make("shl.b32", code, 2)), _upper(text, code)
    return [text.make("and.b32", word, 0x33333333) for word in words]


def _upper(text: _Text, code: str) -> str:
    return text.choose(LOW, text.make("shr.u32", code, 4), text.make("shr.u32", code, 2))


def _with_top(text: _Text, code: str, twice: str) -> list[str]:
    """The same with a third bit, which lies in the lower half of its byte for every other byte of codes, else in the upper half."""
    top = text.choose(EVEN, twice, text.make("shr.u32", twice, 4))
    first = text.choose(LOW, text.make("shl.b32", top, 2), text.make("shl.b32", top, 5))
    last = text.choose(LOW, top, text.make("shl.b32", top, 3))
    words = text.choose(LOW, code, text.make("shl.b32", code, 2)), _upper(text, code)
    return [text.make("and.b32", text.choose(0x33333333, word, bit), 0x77777777) for word, bit in zip(words, (first, last), strict=True)]

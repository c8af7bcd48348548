"""The PTX that makes halves of codes, carried out here instruction by instruction, on every byte in every place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tqbench.core.codec import Codec
from tqbench.core.presets import preset, presets
from tqbench.kernels import triton
from tqbench.kernels.packed import _ptx, refuses

Words = NDArray[np.uint32]
RNG = np.random.default_rng(0)
BYTES = np.concatenate([RNG.permutation(256).astype(np.uint8) for _ in range(64)]).reshape(-1, 4)  # each 64 times, anywhere
BYTES = np.concatenate([BYTES, np.repeat(np.arange(256, dtype=np.uint8), 4).reshape(-1, 4)])


def lop3(a: Words, b: Words, c: Words, table: Words) -> Words:
    found = np.zeros_like(a)
    for i in range(8):
        if int(table.flat[0]) >> i & 1:
            found |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return found


def prmt(a: Words, b: Words, picked: Words) -> Words:
    found = np.zeros_like(picked)
    for place in range(4):
        nibble = picked >> (4 * place) & 15
        shift = (nibble & 3) * 8
        byte = np.where(nibble & 4, b >> shift, a >> shift) & 255
        byte = np.where(nibble & 8, np.where(byte & 128, 255, 0), byte)
        found |= byte.astype(np.uint32) << 8 * place
    return found


def on_halves(op: Callable[..., Any]) -> Callable[..., Words]:
    """Rounded once, as the device does."""

    def run(*given: Words) -> Words:
        with np.errstate(over="ignore", invalid="ignore"):
            wide = (np.ascontiguousarray(x).view(np.float16).astype(np.float64) for x in given)
            return op(*wide).astype(np.float16).view(np.uint32)

    return run


OPS: dict[str, Callable[..., Words]] = {
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    "add.f16x2": on_halves(np.add),
    "sub.f16x2": on_halves(np.subtract),
    "mul.f16x2": on_halves(np.multiply),
    "fma.rn.f16x2": on_halves(lambda x, y, z: x * y + z),
    "and.b32": np.bitwise_and,
    "xor.b32": np.bitwise_xor,
    "sub.u32": np.subtract,
    "shr.u32": np.right_shift,
    "shl.b32": np.left_shift,
    "mov.b32": lambda a: a,
}


def run(text: str, outputs: int, *inputs: Words) -> list[Words]:
    """Carry out a text on as many words as there are; operands are outputs first."""
    held: dict[str, Words] = {f"${outputs + i}": x for i, x in enumerate(inputs)}
    declared: set[str] = set()
    filled = False
    for line in filter(None, (part.strip() for part in text.strip("{} ").split(";"))):
        op, rest = line.split(" ", 1)
        if op == ".reg":
            declared.add(rest.removeprefix(".b32 "))
            continue
        into, *given = re.split(r", *", rest)
        assert into in declared or (into.startswith("$") and int(into[1:]) < outputs), line
        assert not (filled and any(one.startswith("$") for one in given)), f"an input is read after an output was filled: {line}"
        filled |= into.startswith("$")
        words = [held[one] if one in held else np.broadcast_to(np.uint32(int(one, 16)), inputs[0].shape) for one in given]
        held[into] = OPS[op](*words).astype(np.uint32)
    return [held[f"${i}"] for i in range(outputs)]


def words(x: Any) -> Words:
    return np.ascontiguousarray(x, dtype=np.uint8).view(np.uint32)[:, 0]


def halves(found: list[Words], part: int) -> NDArray[np.uint16]:
    """[words, 4]: what came out for one lot of codes."""
    return np.stack(found[2 * part : 2 * part + 2], 1).view(np.uint16).reshape(-1, 4)


def as_bits(levels: Any) -> NDArray[np.uint16]:
    return np.asarray(levels, dtype=np.float16).view(np.uint16)


LEVELS16 = RNG.normal(size=16)
TABLES = {
    "any": LEVELS16,
    "mirrored": np.concatenate([-LEVELS16[7::-1], LEVELS16[:8]]),
    "signed": np.concatenate([LEVELS16[:8], -LEVELS16[:8]]),
}


@pytest.mark.parametrize("kind", TABLES)
def test_two_codes_of_four_bits_share_a_byte(kind: str) -> None:
    found = run(_ptx.lookup(4, 0, TABLES[kind]), 4, words(BYTES))
    for part in range(2):
        assert (halves(found, part) == as_bits(TABLES[kind])[BYTES >> 4 * part & 15]).all()


def test_tables_with_a_sign_are_shorter_to_look_up() -> None:
    length = {kind: _ptx.lookup(4, 0, levels).count(";") for kind, levels in TABLES.items()}
    assert length["signed"] < length["mirrored"] < length["any"]


def test_four_codes_of_two_bits() -> None:
    found = run(_ptx.lookup(2, 0, LEVELS16[:4]), 8, words(BYTES))
    for part in range(4):
        assert (halves(found, part) == as_bits(LEVELS16[:4])[BYTES >> 2 * part & 3]).all()


def test_a_third_bit_comes_from_the_plane_of_its_own() -> None:
    top = RNG.integers(0, 256, (len(BYTES), 2), dtype=np.uint8)  # bit 4 · (byte % 2) + part of byte // 2
    found = run(_ptx.lookup(3, 2, LEVELS16[:8]), 8, words(BYTES), words(np.repeat(top, 2, axis=1)))
    for part in range(4):
        bit = np.stack([top[:, i // 2] >> (4 * (i % 2) + part) & 1 for i in range(4)], 1)
        assert (halves(found, part) == as_bits(LEVELS16[:8])[(BYTES >> 2 * part & 3) | bit << 2]).all()


@pytest.mark.parametrize(("parts", "flip", "bias"), [(1, 128, -128), (1, 0, 0), (2, 0, -8), (2, 8, -8), (2, 0, 0), (4, 2, -2), (4, 0, 0)])
def test_integers(parts: int, flip: int, bias: int) -> None:
    bits = 8 // parts
    found = run(_ptx.integers(parts, flip, bias), 2 * parts, words(BYTES))
    for part in range(parts):
        code = (BYTES >> bits * part & (2**bits - 1)).astype(int)
        assert (halves(found, part) == as_bits((code ^ flip) + bias)).all()


def test_the_first_byte_of_a_half_is_an_eight_bit_float() -> None:
    found = run(_ptx.minifloats("e5m2"), 2, words(BYTES))
    assert (halves(found, 0) == BYTES.astype(np.uint16) << 8).all()


def codecs() -> dict[str, Codec]:
    """One of each codec that Triton kernels read, by its preset and side."""
    sides = {f"{name}.{side}": getattr(preset(name), side).codec for name in presets() if not preset(name).peer for side in "kv"}
    return {name: codec for name, codec in sides.items() if codec is not None and refuses(codec, 128) is None}


@pytest.mark.skipif(triton.missing() is not None, reason=str(triton.missing()))
@pytest.mark.parametrize("codec", [pytest.param(codec, id=name) for name, codec in codecs().items()])
def test_what_is_compiled_finds_the_levels_that_are_interpreted_here(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    from tqbench.kernels.packed import _triton as tiles

    monkeypatch.setattr(tiles, "interpreting", lambda: False)
    form, _, known = tiles._known.__wrapped__(codec, 128, "cpu", torch.float16)
    by_bytes = form.unit == 1 and form.bits in (2, 3, 4, 8) and (form.high or 8 % form.bits == 0)
    assert bool(form.text) == bool(not form.floats and by_bytes), (
        "levels of codes that share no byte with another token's are made in registers"
    )
    if not form.text:
        return
    stored = 8 // form.parts
    top = RNG.integers(0, 256, (len(BYTES), 2), dtype=np.uint8)
    inputs = [words(BYTES), words(np.repeat(top, 2, axis=1))][: 1 + bool(form.high)]
    found = run(form.text, 2 * form.parts, *inputs)
    for part in range(form.parts):
        code = (BYTES >> stored * part & (2**stored - 1)).astype(int)
        if form.high:
            code |= np.stack([top[:, i // 2] >> (4 * (i % 2) + part) & 1 for i in range(4)], 1).astype(int) << form.high
        levels = (code ^ form.flip) + form.bias if known.table is None else known.table.numpy()[code]
        made = halves(found, part).view(np.float16)
        expected = np.asarray(levels, dtype=np.float16)
        assert (made == expected)[np.isfinite(expected)].all()
        assert not np.isfinite(made[~np.isfinite(expected)]).any()

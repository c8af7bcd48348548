"""What every codec owes a store: one fact per check, at every head_dim that the codec takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tqbench.core.codec import Codec, Packed, nbytes
from tqbench.testing.refusal import refusal
from tqbench.testing.samples import HEAD_DIMS, gaussian, relative, strided

Check = Callable[[Codec], None]
BATCH = 2
CALIBRATION = 256  # random vectors per head for codecs that learn
# Scales and norms are kept in fp16 in every published format, and some are larger than the vector: as large as one value may be expected.
LARGE = 1e4


def checks_for(codec: Codec) -> Iterator[Check]:
    """The checks that apply to a codec, by its tags."""
    yield from ALWAYS
    if codec.tags.lossless_in:
        yield check_lossless
    if codec.unit > 1:
        yield check_partial_unit


def vectors(codec: Codec, head_dim: int, units: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random K or V: [batch, kv_heads, units · unit, head_dim]."""
    return gaussian(BATCH, kv_heads(codec), units * codec.unit, head_dim, dtype=dtype)


def kv_heads(codec: Codec) -> int:
    """KV heads enough for three groups that are encoded together."""
    return 3 * codec.heads


def taken(codec: Codec) -> list[int]:
    """The head_dims among the usual ones that the codec takes."""
    return [head_dim for head_dim in HEAD_DIMS if refusal(codec.check, head_dim) is None]


def fitted(codec: Codec) -> Iterator[tuple[int, Codec]]:
    """Each head_dim that the codec takes, with the codec as a store has it there: one that must learn has seen random vectors."""
    for head_dim in taken(codec):
        yield head_dim, codec.calibrate(gaussian(1, kv_heads(codec), CALIBRATION, head_dim, seed=8))


def back(codec: Codec, x: Tensor) -> Tensor:
    """What is left of x once it has been encoded and decoded."""
    return codec.decode(codec.encode(x), x.shape[-1], x.dtype)


def same(a: Packed, b: Packed) -> bool:
    """Whether two packed tensors hold the same arrays, bit for bit."""
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and _equal(a[name], b[name]) for name in a)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def check_identity_card(codec: Codec) -> None:
    """It is a frozen value, named like its file, and says where its mathematics comes from."""
    stem = type(codec.plain).__module__.rpartition(".")[2]
    assert codec.plain.name == stem, f"{codec} is named {codec.plain.name!r} and lives in {stem}.py"
    assert codec.plain.source.strip(), f"{codec} names no source"
    assert hash(codec) == hash(dataclasses.replace(codec)), f"{codec}: equal codecs have different hashes"
    try:
        setattr(codec, "name", "changed")  # noqa: B010 - a plain assignment is a type error, which is the point
    except dataclasses.FrozenInstanceError:
        return
    raise AssertionError(f"{codec} can be changed; declare the class with @dataclass(frozen=True)")


def check_head_dims(codec: Codec) -> None:
    """A head_dim is either stored or refused as Unsupported with a sentence that names it."""
    for head_dim in (*HEAD_DIMS, 40, 112, 192, 512):
        reason = refusal(codec.check, head_dim)
        if reason is None:
            back(codec.calibrate(gaussian(1, kv_heads(codec), CALIBRATION, head_dim, seed=8)), vectors(codec, head_dim))
        else:
            assert str(head_dim) in reason, f"{codec} refuses head_dim {head_dim} without naming it: {reason!r}"
    assert taken(codec), f"{codec} takes none of the head_dims {HEAD_DIMS}"


def check_layout(codec: Codec) -> None:
    """The declared layout is what is there: names, types, shapes, contiguous memory, bytes."""
    for head_dim, ready in fitted(codec):
        layout, packed = ready.layout(head_dim), ready.encode(vectors(codec, head_dim))
        where = f"{codec} at head_dim {head_dim}"
        assert layout.unit == codec.unit, f"{where}: unit {codec.unit}, but the layout is for {layout.unit} tokens"
        assert list(packed) == [part.name for part in layout.parts], f"{where}: {list(packed)} is packed, {layout.parts} is declared"
        for part in layout.parts:
            array = packed[part.name]
            assert array.dtype == getattr(torch, part.dtype), f"{where}: {part.name} is {array.dtype}, declared {part.dtype}"
            shape = (BATCH, kv_heads(codec) // codec.heads, 2, *part.shape)
            assert array.shape == shape, f"{where}: {part.name} is {list(array.shape)}, declared {list(shape)}"
            assert array.is_contiguous(), f"{where}: {part.name} is not contiguous"
        assert nbytes(packed) == BATCH * kv_heads(codec) // codec.heads * 2 * layout.nbytes, (
            f"{where}: {nbytes(packed)} bytes, declared {layout.nbytes} per unit"
        )
        most = codec.layout(head_dim).nbytes
        fits = layout.nbytes <= most if codec.tags.learned_layout else layout.nbytes == most
        assert fits, f"{where}: {layout.nbytes} bytes per unit once it has learned, {most} declared before"


def check_decoded_form(codec: Codec) -> None:
    """What is decoded has the shape that was encoded and the type that was asked for."""
    for head_dim, ready in fitted(codec):
        x = vectors(codec, head_dim)
        for dtype in (torch.float32, torch.float64):
            y = ready.decode(ready.encode(x), head_dim, dtype)
            assert y.shape == x.shape, f"{codec}: {list(x.shape)} decodes to {list(y.shape)}"
            assert y.dtype == dtype, f"{codec}: asked for {dtype}, decodes to {y.dtype}"


def check_transform(codec: Codec) -> None:
    """`transform` gives `stored_dim` values, and `inverse` undoes it up to rounding."""
    for head_dim, ready in fitted(codec):
        x, stored = vectors(codec, head_dim), codec.stored_dim(head_dim)
        y = ready.transform(x.clone())
        shape = (x.shape[0], x.shape[1] // codec.heads, x.shape[2], stored)
        assert y.shape == shape, f"{codec} at head_dim {head_dim}: {list(shape)} declared, got {list(y.shape)}"
        again = ready.inverse(y, head_dim)
        assert torch.allclose(again, x, rtol=0, atol=1e-5), f"{codec} at head_dim {head_dim}: inverse(transform(x)) is not x"


def check_float64(codec: Codec) -> None:
    """Float64 stays float64 all the way, and changes nothing but rounding."""
    for head_dim, ready in fitted(codec):
        x = vectors(codec, head_dim, units=8, dtype=torch.float64)
        again = ready.inverse(ready.transform(x.clone()), head_dim)
        assert relative(x, again) < 1e-24, f"{codec} at head_dim {head_dim}: the transform loses float64 precision"
        gap = (back(ready, x) - back(ready, x.float())).abs() / x.abs().amax()
        off = (gap > 1e-3).double().mean()  # an fp16 scale may round the other way, and a few codes may
        assert off < 1e-3, f"{codec} at head_dim {head_dim}: float64 and float32 disagree in {off:.1%} of the values"


def check_input_untouched(codec: Codec) -> None:
    """Encoding does not write to its input, nor decoding to the arrays."""
    for head_dim, ready in fitted(codec):
        x = vectors(codec, head_dim)
        packed = ready.encode(x)
        assert _equal(x, vectors(codec, head_dim)), f"{codec} at head_dim {head_dim}: encode changes its input"
        before = {name: array.clone() for name, array in packed.items()}
        ready.decode(packed, head_dim, torch.float32)
        assert same(packed, before), f"{codec} at head_dim {head_dim}: decode changes the packed arrays"


def check_deterministic(codec: Codec) -> None:
    """Equal codecs give equal bytes for equal values, every time."""
    for head_dim, ready in fitted(codec):
        x = vectors(codec, head_dim)
        packed, again = ready.encode(x), dataclasses.replace(ready).encode(x)
        assert same(packed, again), f"{codec} at head_dim {head_dim}: two runs give different bytes"
        decoded = (ready.decode(packed, head_dim, torch.float32) for _ in range(2))
        assert _equal(*decoded), f"{codec} at head_dim {head_dim}: two runs decode to different values"


def check_append_equals_batch(codec: Codec) -> None:
    """Units encoded one at a time are the bytes of all encoded at once."""
    for head_dim, ready in fitted(codec):
        x = vectors(codec, head_dim, units=5)
        pieces = [ready.encode(piece) for piece in x.split(codec.unit, dim=2)]
        joined = {name: torch.cat([piece[name] for piece in pieces], dim=2) for name in pieces[0]}
        assert same(ready.encode(x), joined), f"{codec} at head_dim {head_dim}: unit by unit gives other bytes than all at once"


def check_rows_independent(codec: Codec) -> None:
    """What other batch rows and KV heads hold has no influence."""
    for head_dim, ready in fitted(codec):
        x = vectors(codec, head_dim)
        whole = ready.encode(x)
        strangers = gaussian(*x.shape, seed=5) * 3
        for row in range(BATCH):
            for group in range(kv_heads(codec) // codec.heads):
                own = slice(group * codec.heads, (group + 1) * codec.heads)
                others = strangers.clone()
                others[row, own] = x[row, own]
                found, kept = ready.encode(others), {name: array[row, group] for name, array in whole.items()}
                unchanged = same({name: array[row, group] for name, array in found.items()}, kept)
                assert unchanged, f"{codec} at head_dim {head_dim}: batch row {row}, head {group} depends on its neighbours"


def check_blocks_round_trip(codec: Codec) -> None:
    """`to_blocks` gives exactly the declared bytes, and `from_blocks` restores every array bit for bit."""
    for head_dim, ready in fitted(codec):
        packed, declared = ready.encode(vectors(codec, head_dim)), ready.layout(head_dim).nbytes
        blocks = ready.to_blocks(packed)
        where = f"{codec} at head_dim {head_dim}"
        assert blocks.dtype == torch.uint8, f"{where}: blocks are {blocks.dtype}, not bytes"
        shape = (BATCH, kv_heads(codec) // codec.heads, 2, declared)
        assert blocks.shape == shape, f"{where}: blocks are {list(blocks.shape)}, declared {list(shape)}"
        assert same(ready.from_blocks(blocks, head_dim), packed), f"{where}: from_blocks(to_blocks(packed)) is not packed"


def check_extremes(codec: Codec) -> None:
    """Zeros, constants, one large value among small ones, and subnormal values decode to finite values."""
    for head_dim, ready in fitted(codec):
        x = vectors(codec, head_dim)
        spike = x.clone()
        spike[0, 0, 0, 0] = LARGE
        inputs = {"zeros": x * 0, "constants": x * 0 - 3.25, "one large value": spike, "tiny": x * 1e-30, "subnormal": x * 1e-42}
        for what, values in inputs.items():
            assert bool(torch.isfinite(back(ready, values)).all()), f"{codec} at head_dim {head_dim}: {what} decodes to NaN or infinity"


def check_overflow(codec: Codec) -> None:
    """Values beyond what the format can hold are refused; they never come back as NaN or infinity."""
    for head_dim, ready in fitted(codec):
        x = vectors(codec, head_dim) * 1e30
        if refusal(ready.encode, x) is None:
            finite = bool(torch.isfinite(back(ready, x)).all())
            assert finite, f"{codec} at head_dim {head_dim}: values of 1e30 decode to NaN or infinity instead of being refused"


def check_nonfinite_refused(codec: Codec) -> None:
    """NaN and infinity are refused as Unsupported: they would become wrong numbers, not missing ones."""
    for head_dim, ready in fitted(codec):
        for bad in (float("nan"), float("inf"), float("-inf")):
            x = vectors(codec, head_dim)
            x[-1, -1, -1, -1] = bad
            assert refusal(ready.encode, x), f"{codec} at head_dim {head_dim} encodes {bad} without complaint"


def check_views(codec: Codec) -> None:
    """Transposed and strided views are worth their values, on the way in and on the way out."""
    for head_dim, ready in fitted(codec):
        x = vectors(codec, head_dim)
        packed = ready.encode(x)
        transposed = x.transpose(1, 2).contiguous().transpose(1, 2)  # as attention layers hand them over
        where = f"{codec} at head_dim {head_dim}"
        assert same(ready.encode(transposed), packed), f"{where}: a transposed view gives other bytes"
        assert same(ready.encode(strided(x)), packed), f"{where}: a strided view gives other bytes"
        views = {name: strided(array) for name, array in packed.items()}
        decoded = (ready.decode(arrays, head_dim, torch.float32) for arrays in (packed, views))
        assert _equal(*decoded), f"{where}: strided arrays decode to other values"
        assert _equal(ready.to_blocks(views), ready.to_blocks(packed)), f"{where}: strided arrays give other blocks"


def check_error(codec: Codec) -> None:
    """A codec that is not declared lossless loses something, a sane one loses less than it keeps, a destructive one does not."""
    for head_dim, ready in fitted(codec):
        for dtype in ("float32", "float64"):
            x = vectors(codec, head_dim, units=4, dtype=getattr(torch, dtype))
            lost = relative(x, back(ready, x))
            where = f"{codec} at head_dim {head_dim} in {dtype}"
            assert lost > 0 or dtype in codec.tags.lossless_in, f"{where}: nothing is lost, and that is not declared"
            if codec.tags.destructive:
                assert lost > 0.5, f"{where}: declared destructive, but the relative squared error is {lost:.3g}"
            else:
                assert lost < 1, f"{where}: the relative squared error is {lost:.3g}"


def check_lossless(codec: Codec) -> None:
    """What is declared lossless comes back bit for bit, over the whole range of the type."""
    for name in codec.tags.lossless_in:
        dtype = getattr(torch, name)
        limits = torch.finfo(dtype)
        for head_dim, ready in fitted(codec):
            x = vectors(codec, head_dim, dtype=dtype)
            x[0, 0, 0, :6] = torch.tensor([limits.max, limits.min, limits.tiny, limits.smallest_normal / 2, 0.0, -0.0], dtype=dtype)
            where = f"{codec} at head_dim {head_dim}: declared lossless in {name}"
            reason = refusal(ready.encode, x)
            assert reason is None, f"{where}, but some of its values are refused: {reason}"
            assert _equal(x, back(ready, x)), f"{where}, but values change"


def check_partial_unit(codec: Codec) -> None:
    """A number of tokens that is not a multiple of the unit is refused as Unsupported."""
    head_dim, ready = next(fitted(codec))
    for tokens in (1, codec.unit - 1, codec.unit + 1):
        assert refusal(ready.encode, gaussian(1, kv_heads(codec), tokens, head_dim)), (
            f"{codec} encodes {tokens} tokens, its unit is {codec.unit}"
        )


ALWAYS: tuple[Check, ...] = (
    check_identity_card,
    check_head_dims,
    check_layout,
    check_decoded_form,
    check_transform,
    check_float64,
    check_input_untouched,
    check_deterministic,
    check_append_equals_batch,
    check_rows_independent,
    check_blocks_round_trip,
    check_extremes,
    check_overflow,
    check_nonfinite_refused,
    check_views,
    check_error,
)

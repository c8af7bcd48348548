"""What `tqbench kernels` shows, and the page docs/kernels.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from tqbench.core.codec import Codec
from tqbench.core.op import Impl, Op, Place
from tqbench.core.presets import preset, presets
from tqbench.kernels import attend, decode, encode

if TYPE_CHECKING:
    from tqbench.bench.ahead import Compiled

OPS = (attend.OP, decode.OP, encode.OP)
CPU, GPU, MLX = Place(head_dim=64), Place(device="cuda", dtype="bfloat16", head_dim=64), Place(platform="mlx", head_dim=64)
COMPILED = ("scheme", "head_dim>", "kernel", "GPU", "registers>", "spilled bytes>", "shared KiB>", "instructions per value>")
PAGE = """# Kernels

Which forms each operation has, and how many of the {count} presets each serves; what it refuses it refuses with the reason, and `auto`
takes the next. `tqbench kernels` shows the same.

{forms}

## Triton, compiled ahead of time

Tests compile these kernels for GPUs that need not be there, here with Triton {triton}. Registers are of one thread, spilled bytes lie in
local memory, shared memory is of one program; the last figure of `partial` is how many instructions a thread runs in the loop over tokens
for each stored value of K and V. A multiprocessor starts 128 a cycle, half as many where they work on integers: times the values of a
context, that is a time that attention cannot beat, whatever memory can. That kernels compile shows that they can run there and what they
take, not how fast they are. Made by `tqbench kernels compile --markdown > docs/kernels.md`.

{compiled}
"""


def rows() -> Iterator[tuple[str, ...]]:
    """One for each form."""
    codecs = _codecs()
    for op in OPS:
        for impl in op.impls:
            yield _row(op, impl, codecs)


def _codecs() -> list[tuple[str, list[Codec]]]:
    return [(one.name, [one.k.codec, one.v.codec]) for one in map(preset, presets()) if not one.peer]


def _row(op: Op, impl: Impl, codecs: list[tuple[str, list[Codec]]]) -> tuple[str, ...]:
    place = MLX if impl.platform == "mlx" else GPU if impl.name == "triton" else CPU
    reasons = [next((why for codec in both if (why := impl.refuses(codec, place))), None) for _, both in codecs]
    refused = Counter(reason for reason in reasons if reason)
    served = sum(reason is None for reason in reasons)
    where = "MLX" if impl.platform == "mlx" else {"native": "CPU", "native_fast": "CPU", "triton": "CUDA"}.get(impl.name, "any")
    words = "; ".join(f"{reason} ({count})" for reason, count in refused.most_common(3))
    return op.name, impl.name, where, f"{served} of {len(codecs)}", words + ("; …" if len(refused) > 3 else "")


def compiled(found: Iterable[Compiled]) -> Iterator[tuple[str, ...]]:
    """One for each kernel and GPU."""
    for one in found:
        shared = f"{one.shared / 1024:.1f}{'' if one.fits else ': too much'}"
        work = "–" if one.per_value is None else f"{one.per_value:.1f}"
        yield one.scheme, str(one.head_dim), one.kernel, one.gpu, str(one.registers), str(one.spilled), shared, work


def merged(found: list[Compiled]) -> Iterator[tuple[str, ...]]:
    """One for each kernel, the GPUs side by side: registers, spilled bytes if any, shared KiB."""
    gpus = list(dict.fromkeys(one.gpu for one in found))
    kernels = dict.fromkeys(replace(one, gpu="", registers=0, spilled=0, shared=0, per_value=None) for one in found)
    by: dict[tuple[str, int, str, str], Compiled] = {}
    for one in found:  # of a kernel compiled several times, for several regions or sides, the one that takes most
        place = (one.scheme, one.head_dim, one.kernel, one.gpu)
        by[place] = max(by.get(place, one), one, key=lambda each: (each.per_value or 0, each.spilled, each.registers))
    for kernel in kernels:
        here = (by.get((kernel.scheme, kernel.head_dim, kernel.kernel, gpu)) for gpu in gpus)
        yield kernel.scheme, str(kernel.head_dim), kernel.kernel, *("–" if one is None else _cell(one) for one in here)


def _cell(one: Compiled) -> str:
    work = "" if one.per_value is None else f" · {one.per_value:.1f}"
    return f"{one.registers}{f' + {one.spilled}' if one.spilled else ''} · {one.shared / 1024:.1f}{'' if one.fits else ', too much'}{work}"


def markdown(found: list[Compiled]) -> str:
    """The page."""
    gpus = list(dict.fromkeys(one.gpu for one in found))
    forms = _table(("operation", "form", "runs on", "presets", "others are refused because"), rows())
    kernels = _table(
        ("scheme", "head_dim", "kernel", *(f"{gpu}: registers + spilled · shared KiB · per value" for gpu in gpus)), merged(found)
    )
    return PAGE.format(count=len(_codecs()), forms=forms, triton=version("triton"), compiled=kernels)


def _table(titles: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    head = [" | ".join(titles), " | ".join("---" for _ in titles)]
    return "\n".join(f"| {line} |" for line in [*head, *(" | ".join(line) for line in lines)])

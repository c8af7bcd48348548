"""Triton kernels compiled ahead of time for GPUs that are not here: what each takes of a multiprocessor, and whether it compiles at all.

The launching code runs as it is, on tensors of the CPU; only the driver is replaced by one that names a GPU and launches nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tqbench.bench import kvtc
from tqbench.bench.data import vectors
from tqbench.bench.plan import Geometry, named
from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Shape
from tqbench.cache.store import Store
from tqbench.core.errors import ConfigError, unknown
from tqbench.core.presets import preset
from tqbench.core.session import Terms
from tqbench.kernels.attend import _triton as attend
from tqbench.kernels.attend._triton_kernels import How
from tqbench.kernels.decode import _triton as decode
from tqbench.kernels.encode import _triton as encode
from tqbench.kernels.triton import interpreting

GPUS = {"sm_80": 163, "sm_86": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}  # and the shared memory that one program may have, in KiB
SCHEMES = ("turbo4", "turbo3", "q8_0", "kivi4", "fp8_e4m3")  # one of each way to lie
HEAD_DIM, TOKENS, LANES = 128, 300, 32
MULTIPROCESSORS = 100  # about as many as such GPUs have: enough that decoding does not fill them with whole blocks of rows


@dataclass(frozen=True)
class Compiled:
    """One kernel for one GPU: registers for each thread, bytes of local memory that spilled registers lie in, and of shared memory; of the
    loop over tokens, how many instructions a thread runs for each stored value."""

    kernel: str
    scheme: str
    head_dim: int
    gpu: str
    registers: int
    spilled: int
    shared: int
    per_value: float | None = None

    @property
    def fits(self) -> bool:
        """Whether there is so much shared memory."""
        return self.shared <= GPUS[self.gpu] * 1024


class _Absent:
    """A driver for a GPU that is not there."""

    arch = 90

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0


@contextmanager
def _collected(found: list[tuple[str, Any]]) -> Iterator[_Absent]:
    """Every launch compiles, and is kept instead of run."""
    absent, before, run = _Absent(), driver._active, JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:  # noqa: ARG001
        made = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append((self.fn.__name__, made))
        return made

    driver.set_active(absent)
    JITFunction.run = compile_only
    try:
        with patch.object(attend, "multiprocessors", lambda _: MULTIPROCESSORS):
            yield absent
    finally:
        driver._active, JITFunction.run = before, run


@dataclass(frozen=True)
class Wanted:
    """What to compile, and for which GPUs."""

    schemes: tuple[str, ...]
    gpus: tuple[str, ...]
    kvtc: bool = False  # its stages too, which belong to no scheme


def wanted(schemes: str | None = None, gpus: str | None = None) -> Wanted:
    """From what a user wrote; ConfigError with every mistake."""
    names = named(schemes) if schemes else tuple(preset(name) for name in SCHEMES)
    chosen = tuple(gpus.split(",")) if gpus else tuple(GPUS)
    if strange := [name for name in chosen if name not in GPUS]:
        raise ConfigError([unknown("--gpus", name, GPUS) for name in strange])
    return Wanted(tuple(one.name for one in names), chosen, kvtc=schemes is None)


def compile_all(what: Wanted) -> Iterator[Compiled]:
    """Every kernel of these schemes, as decoding and as prefill, for these GPUs."""
    if interpreting():
        raise ConfigError("TRITON_INTERPRET=1: what is interpreted cannot be compiled; unset it")
    for scheme in what.schemes:
        calls = list(_calls(scheme, HEAD_DIM))
        for gpu in what.gpus:
            yield from _for(gpu, scheme, HEAD_DIM, calls)
    for scheme, use, call in kvtc.launches(HEAD_DIM) if what.kvtc else ():
        for gpu in what.gpus:
            yield from _for(gpu, scheme, HEAD_DIM, [(use, call)])


def _for(gpu: str, scheme: str, head_dim: int, calls: list[tuple[str, Callable[[], Any]]]) -> Iterator[Compiled]:
    for what, call in calls:
        found: list[tuple[str, Any]] = []
        with _collected(found) as absent:
            absent.arch = int(gpu.removeprefix("sm_"))
            call()
        for name, made in {made.hash: (name, made) for name, made in found}.values():
            kernel, resources = f"{what} {name.strip('_')}", _resources(made.asm["cubin"])
            yield Compiled(kernel, scheme, head_dim, gpu, *resources, made.metadata.shared, _per_value(name, made, head_dim))


def _per_value(name: str, made: Any, head_dim: int) -> float | None:
    """Of attention alone, which is a loop over tiles of tokens, each of K and of V."""
    how = next((value for value in made.src.constants.values() if isinstance(value, How)), None)
    if name != "partial" or how is None:
        return None
    return _loop(made.asm["cubin"]) * made.metadata.num_warps * LANES / (how.tokens * 2 * head_dim)


def _calls(name: str, head_dim: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Encode, decode, and attention of one query and of many, in a model of bfloat16."""
    geometry = Geometry(head_dim=head_dim)
    given = vectors("gaussian", geometry, TOKENS)
    k, v = given.k.bfloat16(), given.v.bfloat16()
    scheme = preset(name)
    shape = Shape(geometry.architecture, head_dim, "bfloat16", geometry.kv_heads, geometry.heads)
    store = Store(scheme, shape, TorchArrays(), Terms("torch"))
    store.append(k, v)
    views = store.k.view(), store.v.view()
    for side in dict.fromkeys((store.k.codec, store.v.codec)):
        if encode.refuses(side) is None:
            yield "encode", lambda side=side: encode.encode(side, k[:, :, : TOKENS // side.unit * side.unit])  # type: ignore[misc]
        stored = side.encode(k[:, :, : TOKENS // side.unit * side.unit])
        yield "decode", lambda side=side, stored=stored: decode.decode(side, stored, head_dim, k[:, :, :0])  # type: ignore[misc]
    many = torch.zeros(1, geometry.heads, TOKENS, head_dim, dtype=torch.bfloat16)
    yield "prefill", lambda: attend.attend(many, *views, 0, given.scale)
    k_view, v_view = (replace(view, bounds=view.bounds[-1:]) for view in views)
    yield "attend", lambda: attend.attend(many[:, :, :1], k_view, v_view, TOKENS - 1, given.scale)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of local memory, as the machine code declares them."""
    text = _asked("cuobjdump", "--dump-resource-usage", cubin)
    match = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if match is None:
        raise RuntimeError(f"cuobjdump says no registers: {text[:200]!r}")
    return int(match[1]), int(match[2])


def _loop(cubin: bytes) -> int:
    """Instructions of the longest loop of the machine code: of a branch that goes back, and of what lies between."""
    places: dict[str, int] = {}
    longest = count = 0
    for line in _asked("nvdisasm", "-c", cubin).splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            places[label[1]] = count
        elif re.search(r"/\*[0-9a-f]{4,}\*/\s+\S", line):
            count += 1
            if back := re.search(r"BRA.*`\((\.L\w+)\)", line):
                longest = max(longest, count - places.get(back[1], count))
    return longest


def _asked(tool: str, option: str, cubin: bytes) -> str:
    """What one of the tools that Triton brings says of machine code."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(Path(triton.__file__).parent / "backends/nvidia/bin" / tool), option, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

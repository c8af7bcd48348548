"""Triton kernels: where they run, and with which configuration.

They run on CUDA devices, and on the CPU in Triton's interpreter (TRITON_INTERPRET=1 before anything imports it), which is for tests: no
operation picks them there by itself. Configurations come from `triton.json`, which `tqbench kernels tune` fills on a device; nothing is
tuned while something is measured, and what is not in the table takes a default that fits.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqbench.core.op import Place

OLDEST = (3, 6)
NUMPY = ((3, 7), (2, 4))  # Triton's interpreter before that turns arrays of one element into numbers, which NumPy from that on refuses
TABLE = Path(__file__).with_name("triton.json")


@dataclass(frozen=True)
class Config:
    """How a kernel is cut."""

    rows: int = 8  # of a block at most: queries times the heads that share a KV head
    tokens: int = 64  # of a tile
    warps: int = 4
    stages: int = 3  # of the software pipeline: tiles that are on their way from memory, and the one that is worked on
    programs: int = 4  # for each multiprocessor: so many splits are made, as registers have room for


@dataclass(frozen=True)
class Work:
    """What a configuration was chosen for."""

    device: str  # compute capability
    width: int  # of a tile: head_dim up to the next power of two
    k_bits: int
    v_bits: int
    decoding: bool  # one query for each sequence
    folded: bool  # one length for each token and side
    wide: bool  # operands of single precision
    in_registers: bool  # codes of both sides become levels there


@cache
def table() -> dict[Work, Config]:
    """What is stored."""
    lines = json.loads(TABLE.read_text())["lines"]
    return {Work(**line["work"]): Config(**line["config"]) for line in lines}


def configuration(work: Work) -> Config:
    """The stored configuration, or the default."""
    return table().get(work, _default(work))


def _default(work: Work) -> Config:
    """Smaller tiles where vectors take more bytes, so that two of them fit the shared memory of every GPU that kernels are compiled for.
    Nothing is fetched ahead where levels are read from memory, for those would go through shared memory too, element by element."""
    size = work.width * (4 if work.wide else 2)
    stages = 3 if work.in_registers else 1
    if work.decoding:
        return Config(tokens=64 if size <= 256 else 32 if size <= 512 else 16, stages=stages)
    return Config(rows=64, tokens=64, stages=1) if size <= 256 else Config(rows=32, tokens=32 if size <= 512 else 16, warps=8, stages=1)


def store(found: dict[Work, Config]) -> None:
    """Write these into the table, over what it has for the same work."""
    lines = [{"work": asdict(work), "config": asdict(config)} for work, config in (table() | found).items()]
    lines.sort(key=lambda line: json.dumps(line["work"]))
    TABLE.write_text(json.dumps({"schema": "tqbench.triton/1", "lines": lines}, indent=1) + "\n")
    table.cache_clear()


def missing() -> str | None:
    """Why there is no Triton, or None."""
    try:
        found = _numbers("triton")
    except PackageNotFoundError:
        return "Triton is not installed (pip install 'triton>=3.6')"
    if found < OLDEST:
        return f"Triton {'.'.join(map(str, found))} is older than {'.'.join(map(str, OLDEST))}"
    if interpreting() and found < NUMPY[0] and _numbers("numpy") >= NUMPY[1]:
        return f"the interpreter of Triton {version('triton')} cannot work with NumPy {version('numpy')} (pip install 'triton>=3.7')"
    return None


def _numbers(package: str) -> tuple[int, ...]:
    """Of its version, the first two."""
    return tuple(int(part) for part in version(package).split(".")[:2])


def refuses(place: Place) -> str | None:
    """Why Triton kernels do not run there, or None."""
    if not place.device.startswith("cuda") or place.dtype == "float64":
        return f"runs on CUDA in at most float32, not on {place.device} in {place.dtype}"
    return missing()


def runs() -> bool:
    """Whether kernels run in this process: on a device, or in the interpreter."""
    import torch

    return missing() is None and (torch.cuda.is_available() or interpreting())


def interpreting() -> bool:
    """Whether kernels are interpreted, step by step."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def capability(device: Any) -> str:
    """The compute capability of a device; of the interpreter there is none."""
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability(device))) if device.type == "cuda" else "interpreter"


def multiprocessors(device: Any) -> int:
    """How many a device has."""
    import torch

    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1


def operand(dtype: Any) -> Any:
    """In which type matrices of this type are multiplied: the interpreter knows no products of bfloat16."""
    import torch

    return torch.float32 if dtype == torch.bfloat16 and interpreting() else dtype


def about(device: str) -> dict[str, Any]:
    """A GPU and what it is driven by, for records."""
    import torch

    p = torch.cuda.get_device_properties(device)
    return {
        "name": p.name,
        "capability": f"{p.major}.{p.minor}",
        "memory_bytes": p.total_memory,
        "multiprocessors": p.multi_processor_count,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
    }

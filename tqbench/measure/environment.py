"""What the machine and the installation are: everything that may change a digit."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqbench.measure import gpu

VECTOR_FLAGS = re.compile(r"\b(?:sse4_2|avx2|fma|f16c|avx512f|avx512_vnni|avx512vbmi|avx512_bf16|amx_int8|asimd|asimddp|i8mm|sve)\b")
COMPUTING = ("core", "codecs", "kernels", "cache", "metrics", "tasks", "corpora", "models")
NUMERICS = ("tqbench", "torch", "transformers", "numpy", "mlx", "mlx-lm", "optimum-quanto", "hqq", "tokenizers")


def versions() -> dict[str, str | None]:
    """The installed versions of what computes digits."""
    return {name: _version(name) for name in NUMERICS}


def numerics() -> dict[str, Any]:
    """What must not change within one run for its numbers to belong together."""
    found = gpu.names()
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "threads": threads(),
        **({"gpus": found} if found else {}),
    }


def sources(others: Iterable[Path] = ()) -> str:
    """The hash of the code that computes digits, and of other files that do: who edits a codec must not see what the old one measured."""
    own = Path(__file__).parents[1]
    folders = [own / name for name in COMPUTING] + [own.parent / "backends"]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".cpp"))
    digest = hashlib.sha256()
    for path in [*files, *sorted(others)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def describe() -> dict[str, Any]:
    """The machine, for people and for `environment.json`."""
    import psutil

    return {
        **numerics(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "variables": _variables(),
    }


def machine(about: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a description says of the machine alone: where it is equal, what was measured there tells how long it takes here. Memory in
    whole GiB, because systems reserve a little more or less of it at each start."""
    size = about.get("memory_bytes")
    return (*(about.get(name) for name in ("cpu", "cores", "threads")), round(size / (1 << 30)) if isinstance(size, int) else None)


def _variables() -> dict[str, str]:
    """The settings that matter. Paths stay private, because results are published: that one was set is enough."""
    names = [name for name in sorted(os.environ) if name.startswith(("OMP_", "MKL_", "TQBENCH_", "CUDA_VISIBLE"))]
    return {name: "set" if os.sep in os.environ[name] else os.environ[name] for name in names}


def threads() -> str:
    """The thread setting that torch will read, or how many cores it may use."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given = re.match(r"[0-9]+", os.environ.get("OMP_NUM_THREADS", ""))  # OpenMP takes a list, one per nesting level
    return given[0] if given and int(given[0]) else str(affinity)


def wait_policy() -> str:
    """How OpenMP's threads wait for work: asleep or spinning."""
    return os.environ.get("OMP_WAIT_POLICY", "default").lower()


def cpu_model() -> str:
    """The processor's own name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")),
        platform.machine(),
    )


def last_level_cache() -> int | None:
    """Bytes of the largest cache that the first core can use; None where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(text[:-1]) * units[text[-1]] for text in found if text[-1:] in units), default=None)


def openmp() -> list[str]:
    """The OpenMP runtimes in this process, by file name: two that compute fight for the cores. Empty where the system does not tell. A
    hash in its name marks the private copy of another package (sentencepiece brings one), which nothing else can share."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted({Path(line.split()[-1]).name for line in maps.splitlines() if re.search(r"/lib(?:gomp|iomp|omp)[^/]*\.so", line)})


def vector_flags() -> list[str]:
    """The vector instructions that kernels choose by, where the system lists them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return VECTOR_FLAGS.findall(line)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""The one native library, built by CMakeLists.txt from every kernels/*/native*.cpp. Without it everything runs, and says so.

It picks the best instruction set that the processor has; TQBENCH_ISA asks for another one (avx512, avx2, neon, scalar).
"""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path

from tqbench import kernels
from tqbench.core.errors import ConfigError
from tqbench.measure import environment


def path() -> Path | None:
    """The library in this package, or None. In an editable install the package spans two folders: sources, and what was built.
    TQBENCH_NATIVE names another one, such as one built with sanitizers."""
    if given := os.environ.get("TQBENCH_NATIVE"):
        return Path(given)
    return next((found for folder in kernels.__path__ for found in Path(folder).glob("*tqbench_native*")), None)


def missing() -> str | None:
    """Why there is no native library, or None."""
    return (
        None
        if path()
        else "the native library was not built (install a C++17 compiler and run `pip install --force-reinstall --no-deps .`)"
    )


@cache
def library() -> ctypes.CDLL:
    """The loaded library. torch must come first, so that its OpenMP runtime is the one that both use."""
    import torch  # noqa: F401 - loads libgomp

    found = path()
    if found is None:
        raise OSError(missing())
    lib = ctypes.CDLL(str(found))
    _same(lib, found)
    shared = [name for name in environment.openmp() if not re.search(r"-[0-9a-f]{8}\.so", name)]
    if len(shared) > 1:
        raise OSError(f"{' and '.join(shared)} are both loaded: two OpenMP runtimes in one process wait for each other's threads")
    lib.tqbench_decode.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
    lib.tqbench_attend.argtypes = [ctypes.c_void_p]
    lib.tqbench_isa.restype = ctypes.c_char_p
    lib.tqbench_use_isa.argtypes = [ctypes.c_char_p]
    _use(lib, os.environ.get("TQBENCH_ISA", ""))
    return lib


def _same(lib: ctypes.CDLL, found: Path) -> None:
    """Raise if library and code do not mean the same structures: one would read the other's wrongly."""
    asked = getattr(lib, "tqbench_abi", None)
    if asked is not None:
        asked.restype = ctypes.c_uint64
    if asked is None or asked() != abi():
        raise OSError(f"{found} is of another version than this code: build it again (pip install --force-reinstall --no-deps .)")


def abi() -> int:
    """The sizes of all structures that the library is handed, folded as in abi/native.cpp."""
    from tqbench.kernels import packed
    from tqbench.kernels.attend import _call as attend
    from tqbench.kernels.encode import _plan as encode

    folded = 0
    for structure in (*encode.STRUCTURES, *packed.STRUCTURES, *attend.STRUCTURES):
        folded = (folded * 1000003 + ctypes.sizeof(structure)) % 2**64
    return folded


def isa() -> str:
    """The instruction set in use."""
    name: bytes = library().tqbench_isa()
    return name.decode()


def use(name: str) -> None:
    """Use another instruction set from now on; "" is the best that this processor has."""
    _use(library(), name)


def _use(lib: ctypes.CDLL, name: str) -> None:
    status = lib.tqbench_use_isa(name.encode())
    if status == 1:
        raise ConfigError(f"TQBENCH_ISA={name}: there is no such instruction set here (avx512, avx2, scalar; neon on ARM)")
    if status:
        raise ConfigError(f"TQBENCH_ISA={name}: this processor cannot run it")

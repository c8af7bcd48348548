"""The one native library, built by CMakeLists.txt from every kernels/*/native*.cpp. Without it everything runs, and says so."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from tqbench import kernels


def path() -> Path | None:
    """The library in this package, or None. In an editable install the package spans two folders: sources, and what was built."""
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
    lib.tqbench_decode_block8.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    lib.tqbench_decode_block8.restype = ctypes.c_int
    return lib

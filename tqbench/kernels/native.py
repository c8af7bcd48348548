"""The one native library, built by CMakeLists.txt from every kernels/*/native*.cpp. Without it everything runs, and says so."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


@cache
def path() -> Path | None:
    """The installed library, or None."""
    try:
        installed = files("tqbench") or []
    except PackageNotFoundError:
        return None
    found = [Path(str(f.locate())) for f in installed if f.name.startswith("libtqbench_native")]
    return next((p for p in found if p.exists()), None)


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

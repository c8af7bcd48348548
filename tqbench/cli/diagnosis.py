"""What this machine can run, fact by fact, each with the command that helps. Nothing heavy is imported to find out."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqbench.core.op import Op
from tqbench.core.quantity import size

if TYPE_CHECKING:
    from tqbench.measure.gpu import Gpu

HUB_SECONDS = 3.0  # that the hub has to answer


@dataclass(frozen=True)
class Fact:
    """One thing, how it is, and what to do about it. `missing` is something that may be had; `wrong` something that will fail."""

    topic: str
    name: str
    state: Literal["ready", "missing", "wrong"]
    value: str
    next: str = ""


def facts() -> Iterator[Fact]:
    """All of them, from the interpreter to the disk."""
    yield from _python()
    yield from _machine()
    yield from _devices()
    yield from _kernels()
    yield from _backends()
    yield from _extras()
    yield from _hub()
    yield from _texts()
    yield from _files()


def _python() -> Iterator[Fact]:
    from tqbench.measure.environment import versions

    yield Fact("software", "python", "ready", f"{platform.python_version()} ({sys.executable})")
    for name, found in versions().items():
        yield Fact("software", name, "ready" if found else "missing", found or "not installed")


def _machine() -> Iterator[Fact]:
    from tqbench.measure.environment import describe
    from tqbench.measure.memory import available

    machine = describe()
    yield Fact("machine", "system", "ready", str(machine["system"]))
    yield Fact("machine", "processor", "ready", f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores")
    yield Fact("machine", "memory", "ready", f"{size(machine['memory_bytes'])}, {size(available())} of it free")


def _devices() -> Iterator[Fact]:
    from tqbench.measure import device, gpu

    seen, why = ", ".join(device.gpus()), device.absent("cuda")
    if why and seen:
        helps = 'pip install --force-reinstall torch   # on Linux, PyPI\'s own build is the one for CUDA; "device: cuda" then works'
        yield Fact("devices", "cuda", "missing", f"{seen}; torch {device.torch_version() or 'is not installed'} cannot use it", helps)
    elif why:
        yield Fact("devices", "cuda", "missing", why, "suites run with `device: cpu`")
    else:
        yield Fact("devices", "cuda", "ready", f"{seen or 'a GPU'}; torch {device.torch_version()}")
    yield from _nvml(gpu.all_of_them(), bool(seen))
    triton = _version("triton")
    helps = "" if triton or not seen else "pip install triton   # comes with torch's build for CUDA"
    yield Fact("devices", "triton", "ready" if triton else "missing", triton or "not installed", helps)
    metal = device.absent("mps")
    yield Fact("devices", "metal", "missing" if metal else "ready", metal or "Apple silicon")


def _nvml(found: list[Gpu] | str, seen: bool) -> Iterator[Fact]:
    """What the driver tells of each GPU; without it, power and use stay unknown."""
    if isinstance(found, str):
        helps = "power, energy, clocks and use of a GPU are then null in records, with this reason"
        yield Fact("devices", "nvml", "missing", found, helps if seen else "")
        return
    for i, one in enumerate(found):
        facts = one.facts()
        said = {name: told.reason if told.value is None else str(told.value) for name, told in facts.items()}
        memory, watts = facts["memory_bytes"].value, facts["power_limit_w"].value
        held = size(memory) if memory else f"memory: {said['memory_bytes']}"
        words = f"{said['name']}, capability {said['capability']}, {held}, driver {said['driver']}"
        yield Fact("devices", f"gpu {i}", "ready", f"{words}{f', at most {watts:g} W' if watts else ''}")


def _kernels() -> Iterator[Fact]:
    from tqbench.kernels import native
    from tqbench.measure.environment import vector_flags

    yield Fact("kernels", "vector instructions", "ready", " ".join(vector_flags()) or "the system does not list them")
    library = native.path()
    if library is None:
        yield Fact("kernels", "native", "missing", "not built: attention runs in plain torch", native.missing() or "")
    else:
        yield _native(library)
    for op in _ops():
        platforms: dict[str, list[str]] = {}
        for impl in op.impls:
            platforms.setdefault(impl.platform, []).append(impl.name)
        forms = "; ".join(f"{name}: {', '.join(impls)}" for name, impls in platforms.items())
        yield Fact("kernels", op.name, "ready", forms)


def _native(library: Path) -> Fact:
    """What the library would run here. torch is not loaded for this, so the system's OpenMP runtime serves."""
    try:
        found = ctypes.CDLL(str(library))
        found.tqbench_isa.restype = ctypes.c_char_p
        name = found.tqbench_isa().decode()
    except (OSError, AttributeError) as error:
        return Fact("kernels", "native", "wrong", f"{library} cannot be loaded: {error}", "pip install --force-reinstall --no-deps .")
    asked = os.environ.get("TQBENCH_ISA")
    return Fact("kernels", "native", "ready", f"{name}{f' (TQBENCH_ISA asks for {asked})' if asked else ''}, {library}")


def _ops() -> list[Op]:
    from tqbench.kernels import attend, decode, encode

    return [attend.OP, decode.OP, encode.OP]


def _backends() -> Iterator[Fact]:
    for entry in sorted(entry_points(group="tqbench.backends"), key=lambda entry: entry.name):
        missing = [name for name in _packages(entry) if _version(name) is None]
        if missing:
            extra = entry.dist.name if entry.dist else "tqbench"
            yield Fact("backends", entry.name, "missing", f"needs {', '.join(missing)}", f'pip install "{extra}[{entry.name}]"')
        else:
            yield Fact("backends", entry.name, "ready", "ready")


def _packages(entry: EntryPoint) -> list[str]:
    """What a backend needs, as its distribution declares it: the extra of its name, or the dependency of its name."""
    if entry.dist is None:
        return []
    return _of_extra(entry.dist, entry.name) or [name for name in _of_extra(entry.dist, "") if name == entry.name]


def _of_extra(dist: Distribution, extra: str) -> list[str]:
    """The packages that an extra adds on this system; of none, those that are always needed."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in dist.requires or []]
    if not extra:
        return [one.name for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [one.name for one in found if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})]


def _extras() -> Iterator[Fact]:
    dist = distribution("tqbench")
    for extra in sorted(dist.metadata.get_all("Provides-Extra") or []):
        needed = [name for name in _of_extra(dist, extra) if name != "tqbench"]
        if missing := [name for name in needed if _version(name) is None]:
            yield Fact("extras", extra, "missing", f"needs {', '.join(missing)}", f'pip install "tqbench[{extra}]"')
        else:
            yield Fact("extras", extra, "ready", ", ".join(f"{name} {_version(name)}" for name in needed))


def _hub() -> Iterator[Fact]:
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield Fact("hub", "hub", "missing", "HF_HUB_OFFLINE is set: only what is in its cache", "unset HF_HUB_OFFLINE to download models")
        return
    try:
        request = urllib.request.Request(place, method="HEAD")  # noqa: S310 - the user's own endpoint
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        yield Fact("hub", "hub", "ready", f"{place} answers")
    except (OSError, ValueError) as error:
        helps = "packaged models and corpus python-docs need no hub; HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy"
        yield Fact("hub", "hub", "missing", f"{place} does not answer: {getattr(error, 'reason', None) or error}", helps)
    else:
        yield Fact("hub", "hub", "ready", f"{place} answers")


def _texts() -> Iterator[Fact]:
    from tqbench import corpora
    from tqbench.core.errors import TqbenchError

    try:
        text = corpora.load({"name": "python-docs"})
    except TqbenchError as error:
        yield Fact("texts", "python-docs", "missing", str(error))
    else:
        yield Fact("texts", "python-docs", "ready", f"{size(len(text.text))} of {text.origin}")
    yield _wikitext()


def _wikitext() -> Fact:
    from tqbench import corpora
    from tqbench.core.errors import TqbenchError

    path = os.environ.get("TQBENCH_WIKITEXT")
    if path is not None:
        try:
            return Fact("texts", "wikitext-2", "ready", f"{size(len(corpora.load({'name': 'wikitext-2'}).text))} in {path}")
        except TqbenchError as error:
            why = "TQBENCH_WIKITEXT names no file" if not Path(path).is_file() else str(error)
            return Fact("texts", "wikitext-2", "wrong", f"{path}: {why}", "set it to wiki.test.raw, or unset it to use the hub")
    if _version("datasets") is None:
        helps = 'pip install "tqbench[hub]", or set TQBENCH_WIKITEXT to wiki.test.raw'
        return Fact("texts", "wikitext-2", "missing", "needs datasets to come from the hub", helps)
    if (found := _hub_text()) is not None:
        return Fact("texts", "wikitext-2", "ready", f"in the hub's cache, {found}")
    helps = "it is downloaded once; TQBENCH_WIKITEXT names a wiki.test.raw where there is no network"
    return Fact("texts", "wikitext-2", "missing", "not here; the hub has it", helps)


def _hub_text() -> Path | None:
    """Where `datasets` keeps it."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    folder = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / "Salesforce___wikitext" / "wikitext-2-raw-v1"
    return folder if folder.is_dir() else None


def _files() -> Iterator[Fact]:
    from tqbench.core.files import cache_root
    from tqbench.models.packaged import PACKAGED

    root = cache_root()
    parts = {folder.name: _used(folder) for folder in sorted(root.iterdir()) if folder.is_dir()} if root.is_dir() else {}
    held = ", ".join(f"{name} {size(used)}" for name, used in parts.items())
    moved = "" if os.environ.get("TQBENCH_CACHE") else "TQBENCH_CACHE would move it"
    yield Fact("files", "cache", "ready", f"{root}, {size(sum(parts.values()))}{f' ({held})' if held else ''}", moved)
    for name, model in PACKAGED.items():
        there = model.path.is_file()
        state = size(model.path.stat().st_size) if there else f"not fetched, {size(model.download_bytes)} to download"
        yield Fact("files", name, "ready" if there else "missing", state, "" if there else f"tqbench models fetch {name}")
    for name, folder in (("disk here", Path()), ("disk of the cache", _existing(root))):
        disk = shutil.disk_usage(folder)
        yield Fact("files", name, "ready", f"{size(disk.free)} free of {size(disk.total)}")


def _used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return path if path.exists() else _existing(path.parent)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""Things are found by file name, then by entry point. Nothing is listed by hand."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.errors import ConfigError, unknown


def modules(package: str) -> dict[str, str]:
    """File name -> module path for every public module of a package (subpackages hold shared blocks)."""
    path = importlib.import_module(package).__path__
    return {m.name: f"{package}.{m.name}" for m in pkgutil.iter_modules(path) if not m.ispkg and not m.name.startswith("_")}


@cache
def codecs() -> dict[str, type[Codec]]:
    """Every codec by name: `tqbench/codecs/<name>.py`, then the entry points `tqbench.codecs`."""
    found = {name: _only_codec(importlib.import_module(path)) for name, path in modules("tqbench.codecs").items()}
    for entry in entry_points(group="tqbench.codecs"):
        _claim(found, entry.name, entry.load(), "codec")
    return found


def wrappers() -> tuple[type[Codec], ...]:
    """What a side may wrap around its codec (rotation, padding, centring), innermost first."""
    found: tuple[type[Codec], ...] = importlib.import_module("tqbench.codecs.blocks.wrap").WRAPPERS
    return found


@cache
def refused() -> dict[str, str]:
    """Names that people take for KV-cache schemes, with the reason why they are not: `REFUSED` in the families' files."""
    families = (importlib.import_module(path) for path in modules("tqbench.schemes").values())
    return {name: reason for family in families for name, reason in getattr(family, "REFUSED", {}).items()}


@cache
def preset_data() -> dict[str, dict[str, Any]]:
    """Every preset as plain data: `PRESETS` in `tqbench/schemes/<family>.py`, then the entry points `tqbench.schemes`."""
    found: dict[str, dict[str, Any]] = {}
    for family, path in modules("tqbench.schemes").items():
        for name, data in importlib.import_module(path).PRESETS.items():
            _claim(found, name, {"family": family, **data}, "scheme")
    for entry in entry_points(group="tqbench.schemes"):
        for name, data in entry.load().items():
            _claim(found, name, {"family": entry.name, **data}, "scheme")
    return found


def outside() -> list[Path]:
    """Every source file of the other packages that bring codecs, schemes or backends."""
    entries = [entry for kind in ("codecs", "schemes", "backends") for entry in entry_points(group=f"tqbench.{kind}")]
    tops = {entry.module.partition(".")[0] for entry in entries} - {"tqbench", "backends"}
    specs = [spec for top in sorted(tops) if (spec := importlib.util.find_spec(top))]
    files = [Path(spec.origin) for spec in specs if spec.origin]
    folders = [Path(folder) for spec in specs for folder in spec.submodule_search_locations or ()]
    return sorted({*files, *(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".so", ".cpp"))})


def backend(name: str) -> Any:
    """The function that opens a session of that backend, from the entry points `tqbench.backends`."""
    found = {entry.name: entry for entry in entry_points(group="tqbench.backends")}
    if name not in found:
        raise ConfigError(unknown("backend", name, found))
    return found[name].load()


def backend_names() -> list[str]:
    """The installed backends."""
    return sorted({entry.name for entry in entry_points(group="tqbench.backends")})


def _only_codec(module: ModuleType) -> type[Codec]:
    """The one public codec of a file; its name is the file's."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Codec)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    stem = module.__name__.rpartition(".")[2]
    if len(found) != 1 or found[0].name != stem:
        raise ConfigError(f"{module.__name__} must hold exactly one public codec, named {stem!r}")
    return found[0]


def _claim(found: dict[str, Any], name: str, value: Any, what: str) -> None:
    if name in found:
        raise ConfigError(f"two installed packages offer a {what} called {name!r}; rename one of them")
    found[name] = value

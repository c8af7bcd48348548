"""What an installation would say of tqbench, where it runs from its sources: version, dependencies and entry points, from `pyproject.toml`.

A GPU machine often has a folder with the sources and no network, and no reason to build anything. An installed tqbench is found first.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@cache
def _project() -> dict[str, Any] | None:
    """Of the project file beside the package, if it is this project's own: among installed packages lie files of others."""
    try:
        project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, ValueError):
        return None
    return project if project.get("name") == "tqbench" else None


class Sources(Distribution):
    """The distribution that these sources would be."""

    def __init__(self, project: dict[str, Any]):
        self.project = project

    def read_text(self, filename: str) -> str | None:
        """The two files of an installation that anybody asks for."""
        lines = {"METADATA": self._metadata, "entry_points.txt": self._entry_points}.get(filename)
        return None if lines is None else "\n".join(lines()) + "\n"

    def locate_file(self, path: Any) -> Path:
        """Beside the package."""
        return ROOT / str(path)

    def _metadata(self) -> Iterator[str]:
        project = self.project
        yield from ("Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}")
        yield from (f"Requires-Dist: {one}" for one in project["dependencies"])
        for extra, needed in project["optional-dependencies"].items():
            yield f"Provides-Extra: {extra}"
            for one in needed:
                what, _, marker = one.partition(";")
                yield f'Requires-Dist: {what}; {f"({marker}) and " if marker else ""}extra == "{extra}"'

    def _entry_points(self) -> Iterator[str]:
        for group, entries in self.project["entry-points"].items():
            yield f"[{group}]"
            yield from (f"{name} = {value}" for name, value in entries.items())


def sources() -> list[Distribution]:
    """These sources as a distribution, where they are whole."""
    project = _project()
    return [] if project is None else [Sources(project)]


def lacking() -> list[str]:
    """Of the packages that tqbench always needs, those that are not installed, as pip takes them."""
    needed = [re.sub(r"\s+", "", one) for one in requires("tqbench") or () if ";" not in one]
    return [one for one in needed if not _installed(re.split(r"[^\w.-]", one)[0])]


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False

"""tqbench from its sources, with nothing installed: `python -S` sees no package but the standard library."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tqbench import __main__
from tqbench.core import uninstalled
from tqbench.core.finder import Finder
from tqbench.core.uninstalled import ROOT, Sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(*args: str) -> subprocess.CompletedProcess[str]:
    """A fresh one without packages, that finds the sources in the working folder."""
    return subprocess.run([sys.executable, "-S", *args], cwd=ROOT, capture_output=True, text=True, check=False)


def test_backends_and_version_are_found() -> None:
    code = "import tqbench; from tqbench.core import registry; print(tqbench.__version__, *registry.backend_names())"
    assert python("-c", code).stdout == f"{PROJECT['version']} mlx transformers\n"


def test_what_is_needed_is_named_at_once() -> None:
    done = python("-m", "tqbench", "plan", "suites/quickstart.yaml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("tqbench: needs accelerate>=1.0 and gguf>=0.17 and ")
    assert done.stderr.endswith("'torch>=2.11' 'transformers>=5.17' 'typer>=0.15' 'zstandard>=0.23'\n")


def test_what_lacks_though_all_is_installed_is_a_mistake_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(__main__, "_crashed", lambda error: told.append(error) or 70)
    monkeypatch.setattr(uninstalled, "lacking", list)
    assert __main__._lacking(error := ModuleNotFoundError("no such module")) == 70
    assert told == [error]


def said(dist: Distribution) -> tuple[str, set[str], list[str], list[tuple[str, str, str]]]:
    needed = {str(Requirement(text)) for text in dist.requires or ()}
    entries = sorted((entry.group, entry.name, entry.value) for entry in dist.entry_points if entry.group != "console_scripts")
    return dist.version, needed, sorted(dist.metadata.get_all("Provides-Extra")), entries


def test_it_says_what_the_project_file_says() -> None:
    found = Sources(PROJECT)
    assert found.name == PROJECT["name"]
    _, needed, extras, entries = said(found)
    assert {str(Requirement(one)) for one in PROJECT["dependencies"]} < needed
    assert extras == sorted(PROJECT["optional-dependencies"])
    assert len(needed) == len(PROJECT["dependencies"]) + sum(map(len, PROJECT["optional-dependencies"].values()))
    assert ("tqbench.backends", "transformers", "backends.transformers:open_session") in entries


def test_an_installed_one_comes_first() -> None:
    """Entry points are those of the first distribution of a name, or each would be found twice."""
    assert sum(isinstance(one, Sources) for one in distributions(name="tqbench")) == 1
    others = [one for one in distributions(name="tqbench") if not isinstance(one, Sources)]
    assert isinstance(distribution("tqbench"), Sources) == (not others)


@pytest.mark.parametrize("text", ["[tool.poetry]", "[project]\nname = 'another'", "[project", None])
def test_the_project_file_of_another_says_nothing(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some packages leave theirs among what is installed."""
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(uninstalled, "ROOT", tmp_path)
    monkeypatch.setattr(uninstalled, "_project", cache(uninstalled._project.__wrapped__))
    assert Finder().find_distributions() == []


def test_nothing_is_loaded_before_somebody_asks() -> None:
    """Whoever imports tqbench does not wait for it."""
    code = "import sys, tqbench; print('importlib.metadata' in sys.modules, 'tomllib' in sys.modules)"
    assert python("-c", code).stdout == "False False\n"

"""What keeps the shape: one-way imports, lint, types, names that mean what they say, documents that do not rot."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tqbench.core import registry

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("tqbench/**/*.py"), *ROOT.glob("backends/**/*.py")])


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["importlinter.cli", "lint-imports"],
        ["mypy"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_tools_agree(command: list[str]) -> None:
    if command[0] == "importlinter.cli":
        command = ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    else:
        command = ["-m", *command]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_public_names() -> None:
    tqbench = importlib.import_module("tqbench")
    assert sorted(tqbench.__all__) == ["__version__", "load", "run"]


def test_every_codec_is_one_file_with_a_source() -> None:
    for name, codec in registry.codecs().items():
        assert codec.name == name
        assert codec.source
        assert importlib.import_module(codec.__module__).__doc__


def test_every_preset_has_a_source() -> None:
    assert all(data.get("source") for data in registry.preset_data().values())


def test_backends_lie_beside_tqbench_and_do_not_look_like_what_they_adapt() -> None:
    backends = importlib.import_module("backends")
    tqbench = importlib.import_module("tqbench")
    assert Path(str(backends.__file__)).parents[1] == Path(str(tqbench.__file__)).parents[1]


def test_no_file_is_called_utils() -> None:
    assert not [path for path in SOURCES if path.stem in ("utils", "helpers", "common", "misc")]


def test_sizes_are_reported(record_property: pytest.RecordProperty) -> None:
    """Figures, not limits: they go into the test report and are printed with -s."""
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    )
    files = sorted(len(path.read_text().splitlines()) for path in SOURCES)
    figures = {
        "functions": len(lengths),
        "function_median": lengths[len(lengths) // 2],
        "function_p90": lengths[len(lengths) * 9 // 10],
        "function_max": lengths[-1],
        "files": len(files),
        "file_median": files[len(files) // 2],
        "file_max": files[-1],
        "lines": sum(files),
    }
    for name, value in figures.items():
        record_property(name, value)
    print(figures)
    assert figures["lines"] > 0


def test_the_outside_is_not_named() -> None:
    """Paths of one machine and hosts of registries have no place in the project."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"/(work|opt|root|tmp)/[a-z]")
    allowed = {"tests/architecture/test_architecture.py"}
    text = [
        name for name in files if Path(name).suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".cpp", ".json"} and name not in allowed
    ]
    assert not [name for name in text if (ROOT / name).exists() and pattern.search((ROOT / name).read_text())]

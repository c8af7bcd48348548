"""An outside package with schemes of its own, installed beside tqbench."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "outside"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The package, installed by pip into a folder on the path."""
    source, target = tmp_path_factory.mktemp("source") / "outside", tmp_path_factory.mktemp("site")
    shutil.copytree(HERE, source)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True, capture_output=True)
    return {"PYTHONPATH": str(target)}


def test_it_appears_beside_the_presets(tqbench: Callable[..., Any], outside: dict[str, str]) -> None:
    done = tqbench("schemes", env=outside)
    assert done.returncode == 0, done.stderr
    assert "ternary" in done.stdout
    assert "turbo4" in done.stdout


def test_it_runs_in_a_suite(tqbench: Callable[..., Any], small_suite: Callable[..., str], outside: dict[str, str], tmp_path: Path) -> None:
    done = tqbench("run", small_suite("ternary"), env=outside)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("results/small/*/cells/ternary-*/record.json")]
    assert record["outcome"] == "ok"
    assert record["ledger"]["bits"] == 2.25
    assert record["coverage"] == 1.0


def test_it_gets_the_conformance_checks_in_three_lines(outside: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(HERE / "check_ternary.py", tmp_path / "test_ternary.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_ternary.py"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **outside}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


def test_a_scheme_that_does_nothing_is_inactive(
    tqbench: Callable[..., Any], small_suite: Callable[..., str], outside: dict[str, str], tmp_path: Path
) -> None:
    done = tqbench("run", small_suite("liar", "q8_0"), env=outside)
    assert done.returncode == 4, done.stdout + done.stderr
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("results/small/*/cells/liar-*/record.json")]
    assert record["outcome"] == "inactive"
    assert record["metrics"] == {}
    assert any("the codec error is zero" in audit for audit in record["audits"])
    (summary,) = tmp_path.glob("results/small/*/summary.csv")
    (row,) = [line for line in summary.read_text().splitlines() if ",liar," in line]
    assert not [part for part in row.split(",") if part.replace(".", "", 1).isdigit() and "." in part]

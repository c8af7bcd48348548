"""Running the real command line in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SUITE = """
name: small
model: {model}
corpus: python-docs
schemes: {schemes}
tasks:
  - perplexity: {{context: 64, tokens: 256, warmup: 8}}
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tqbench(tmp_path: Path) -> Command:
    """Runs `python -m tqbench …` in an empty folder."""

    def run(*args: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tqbench", *args]
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False, **options
        )

    return run


@pytest.fixture(scope="session")
def suite_text(tiny_model: Path) -> Callable[..., str]:
    """A suite called `small` on the tiny model."""
    return lambda *schemes: SUITE.format(model=tiny_model, schemes=f"[{', '.join(schemes)}]")


@pytest.fixture
def small_suite(tmp_path: Path, suite_text: Callable[..., str]) -> Callable[..., str]:
    """Writes that suite into the folder that commands run in, and returns its name."""

    def write(*schemes: str) -> str:
        (tmp_path / "small.yaml").write_text(suite_text(*schemes))
        return "small.yaml"

    return write

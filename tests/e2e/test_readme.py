"""The README's commands, run as they stand, and its result table against the records it comes from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ELSEWHERE = {"make test"}  # it is what runs this test


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


COMMANDS = [line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.model
def test_the_commands_run() -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        if command not in ELSEWHERE:
            done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.model
def test_the_python_runs() -> None:
    """After the commands: the run is there, so this measures nothing."""
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "turbo4" in done.stdout


def test_the_suite_is_one(tmp_path: Path) -> None:
    from tqbench.suite.load import load
    from tqbench.suite.plan import plan

    (text,) = blocks("yaml")
    (tmp_path / "readme.yaml").write_text(text)
    (suite,) = load([tmp_path / "readme.yaml"])
    cells = plan(suite).cells
    assert list(dict.fromkeys(cell.label for cell in cells)) == ["baseline", "q8_0", "q8_0/turbo3", "turbo4[bridge]", "mine"]
    tasks = {"perplexity", "decode", "prefill", "memory", "storage", "sensitivity", "needle", "generation", "breakdown"}
    assert {cell.task for cell in cells} == tasks


def test_the_table_is_the_committed_run() -> None:
    from tqbench.report.embed import embed
    from tqbench.report.run import load

    assert embed(README, load(ROOT / "results" / "reference" / "quickstart-cpu")) == README, "stale: make docs"


@pytest.mark.parametrize(("folder", "run"), [("", "quickstart-cpu"), ("long_ctx_small", "long_ctx_small-cpu")])
def test_the_sample_page_and_its_plots_are_those_of_the_committed_run(folder: str, run: str, tmp_path: Path) -> None:
    from tqbench.report import together
    from tqbench.report.conclusion import conclude
    from tqbench.report.run import load
    from tqbench.report.write import write_pages

    found, committed = load(ROOT / "results" / "reference" / run), ROOT / "reports" / "sample" / folder
    write_pages([(found, conclude(found))], together.views([found]), tmp_path)
    stale = [
        path.name
        for path in tmp_path.iterdir()
        if not (committed / path.name).exists() or path.read_bytes() != (committed / path.name).read_bytes()
    ]
    assert stale == [], "stale: make docs"
    assert {path.name for path in committed.iterdir() if path.is_file()} == {path.name for path in tmp_path.iterdir()}
    shown = re.findall(r"\]\(reports/sample/([^)]+)\)", README)
    assert shown
    assert all((ROOT / "reports" / "sample" / name).exists() for name in shown)


@pytest.mark.parametrize("table", sorted((ROOT / "results" / "reference").glob("*/table.md")), ids=lambda table: table.parent.name)
def test_a_committed_table_is_that_of_its_run(table: Path) -> None:
    from tqbench.report.markdown import brief
    from tqbench.report.run import load

    assert brief(load(table.parent)) in table.read_text()

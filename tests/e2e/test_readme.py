"""What the README and the guide show: commands, run as they stand, suites, links, and the table of the records it comes from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, GUIDE = ((ROOT / name).read_text() for name in ("README.md", "docs/guide.md"))
ELSEWHERE = {"make test"}  # it is what runs this test


def blocks(language: str, document: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document, flags=re.S | re.M)


LINES = [
    line.partition("#")[0].strip() for document in (README, GUIDE) for block in blocks("bash", document) for line in block.splitlines()
]
COMMANDS = list(dict.fromkeys(LINES))


@pytest.mark.model
def test_the_commands_run() -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    assert len(COMMANDS) >= 20
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


@pytest.mark.parametrize(
    ("document", "schemes", "tasks"),
    [
        (README, ["q8_0", "q8_0/turbo3", "mine"], {"perplexity", "decode"}),
        (
            GUIDE,
            ["q8_0", "q8_0/turbo3", "turbo4[bridge]", "mine"],
            {"perplexity", "decode", "prefill", "memory", "storage", "sensitivity", "needle", "generation", "breakdown"},
        ),
    ],
    ids=["README", "guide"],
)
def test_the_suite_is_one(tmp_path: Path, document: str, schemes: list[str], tasks: set[str]) -> None:
    from tqbench.suite.load import load
    from tqbench.suite.plan import plan

    (text,) = blocks("yaml", document)
    (tmp_path / "shown.yaml").write_text(text)
    (suite,) = load([tmp_path / "shown.yaml"])
    cells = plan(suite).cells
    assert list(dict.fromkeys(cell.label for cell in cells)) == ["baseline", *schemes]
    assert {cell.task for cell in cells} == tasks


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/guide.md", "results/README.md"])
def test_what_is_linked_is_there(name: str) -> None:
    page = ROOT / name
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_guide_has_every_ready_suite_and_every_exit_code() -> None:
    from tqbench.cli import app

    assert [path.stem for path in (ROOT / "suites").glob("*.yaml") if f"`{path.stem}`" not in GUIDE] == []
    codes = str(app.info.epilog).partition(": ")[2]
    assert codes in " ".join(GUIDE.split())


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

"""What shells complete, asked in the way that shells ask; fast, and without what is heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from tqbench.cli import app, complete

ROOT = Path(__file__).parents[2]
SHELL = """
import sys
from tqbench.__main__ import main
code = main([])
print("imported:", *sorted(set(sys.modules) & {"torch", "transformers", "pandas", "matplotlib", "huggingface_hub"}), file=sys.stderr)
sys.exit(code)
"""


def completed(*words: str, cwd: Path = ROOT) -> list[str]:
    """What bash would offer for the last of these words."""
    variables = {"COMP_WORDS": " ".join(["tqbench", *words]), "COMP_CWORD": str(len(words)), "_TQBENCH_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", SHELL], cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "imported:\n"
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (("plan", "suites/q"), ["suites/quickstart.yaml"]),
        (("schemes", "show", "q8_0/kivi"), ["q8_0/kivi2", "q8_0/kivi4"]),
        (("gate", "reference/q"), ["reference/quickstart-cpu"]),
        (("run", "suites/gate.yaml", "--dtype", "f1"), []),
        (("run", "suites/gate.yaml", "--dtype", "b"), ["bfloat16"]),
    ],
)
def test_a_shell_is_answered(words: tuple[str, ...], some: list[str]) -> None:
    assert completed(*words) == some


def test_suites_are_found_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suites" / "deep").mkdir(parents=True)
    for name in ("mine.yaml", "other.yml", "suites/ready.yaml", "suites/deep/one.yaml", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert complete.suites("") == ["suites/ready.yaml", "mine.yaml", "other.yml", "suites/"]
    assert complete.suites("m") == ["mine.yaml"]
    assert complete.suites("suites/") == ["suites/ready.yaml", "suites/deep/"]
    assert complete.suites("suites/deep/o") == ["suites/deep/one.yaml"]
    assert complete.suites(f"{tmp_path}/mi") == [f"{tmp_path}/mine.yaml"]
    assert complete.suites("nowhere/x") == []


def test_runs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("small/abc", "small/def", "reference/large"):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        (folder / "plan.json").touch()
    monkeypatch.chdir(tmp_path)
    assert complete.runs("") == ["small", "reference/large", "small/abc", "small/def"]
    assert complete.runs("small/d") == ["small/def"]
    monkeypatch.chdir("/")
    assert complete.runs("") == []


def test_names_are_completed_behind_commas_and_slashes() -> None:
    assert complete.labels("q8_0,kiv") == ["q8_0,kivi2", "q8_0,kivi4"]
    assert complete.labels("kiv") == ["kivi2", "kivi4"]
    assert complete.backends("m") == ["mlx"]
    assert complete.corpora("py") == ["python-docs"]
    assert complete.models("smol") == ["smollm2-135m-instruct-q4_1"]


def test_the_words_offered_are_those_that_are_taken() -> None:
    from tqbench.cli.options import DTYPES
    from tqbench.suite.published import KINDS
    from tqbench.suite.schema import Settings

    assert set(complete.kinds("")) == KINDS.keys()
    assert get_args(get_type_hints(Settings)["dtype"]) == DTYPES


def test_every_command_has_an_example_of_itself() -> None:
    """In its help, and it begins with what one types."""
    from typer.main import get_command

    top = get_command(app)
    commands = dict(top.commands)  # type: ignore[attr-defined]
    for name, command in list(commands.items()):
        commands |= {f"{name} {inner}": one for inner, one in getattr(command, "commands", {}).items()}
    assert {"run", "plan", "schemes show", "check scheme", "models fetch", "doctor", "schema"} <= commands.keys()
    for name, command in commands.items():
        assert f"tqbench {name}" in (command.epilog or ""), name

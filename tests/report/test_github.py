"""What GitHub reads: annotations, the step summary, figures; and the workflow that comes with the project."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from tqbench.core.record import Estimate
from tqbench.report import github
from tqbench.report.conclusion import conclude

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(make, run_of):
    """A run of a suite whose gates stand on lines 7, 8 and 9: one fails, one cannot be decided, one passes."""
    limits = [make.gate("bad"), make.gate("unclear"), make.gate("good")]
    records = [
        make.baseline(),
        make.record(make.cell("good"), dppl=Estimate(0.05, 0.03, 0.07)),
        make.record(make.cell("bad"), dppl=Estimate(0.5, 0.4, 0.6)),
        make.record(make.cell("unclear"), dppl=Estimate(0.19, 0.1, 0.28)),
        make.broken(make.cell("lost"), reason="100 % full:\n::error::forged"),
    ]
    found = run_of(records, limits)
    return dataclasses.replace(found, source="suites/x.yaml", lines={gate: 7 + i for i, gate in enumerate(found.gates)})


def test_annotations_stand_at_the_lines_of_their_gates_errors_first(run):
    lost, bad, unclear = sorted(github.notices(run, conclude(run)), key=lambda line: ("lost" not in line, "bad" not in line))
    assert [line.split()[0] for line in github.notices(run, conclude(run))] == ["::error", "::error", "::warning"]
    assert bad.startswith("::error file=suites/x.yaml,line=7,title=fail%3A bad Δppl::bad: Δppl ")
    assert unclear.startswith("::warning file=suites/x.yaml,line=8,title=inconclusive%3A unclear Δppl::")
    assert lost.startswith("::error file=suites/x.yaml,title=lost%3A oom::lost, ")
    assert lost.endswith("oom: 100 %25 full: ::error::forged")
    assert "\n" not in lost


def test_a_limit_from_the_command_line_has_no_line_and_an_old_run_no_file(run):
    unplaced = dataclasses.replace(run, lines={})
    assert all("line=" not in line for line in github.notices(unplaced, conclude(unplaced)))
    old = dataclasses.replace(unplaced, source="")
    assert all(line.split("::")[1].split(" ", 1)[1].startswith("title=") for line in github.notices(old, conclude(old)))


def test_the_file_is_named_from_the_root_of_the_checkout(run, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert "file=sub/suites/x.yaml,line=7" in github.notices(run, conclude(run))[0]


def test_the_summary_has_verdicts_and_tables_or_the_verdicts_alone(run, monkeypatch):
    text = github.summary(run, conclude(run))
    assert text.startswith("## suite: a required cell did not complete (exit code 3)\n")
    for part in ("| **fail** | bad |", "| **inconclusive** | unclear |", "| **pass** | good |", "<details>", "| scheme | bits |"):
        assert part in text
    monkeypatch.setattr(github, "LARGEST", 1000)
    short = github.summary(run, conclude(run))
    assert "| **fail** | bad |" in short
    assert "<details>" not in short


def test_figures_of_which_smaller_is_better(run):
    found = json.loads(github.benchmark(run))
    assert {figure["name"].rpartition(" · ")[2] for figure in found} == {
        f"{scheme}: {metric}" for scheme in ("good", "bad", "unclear") for metric in ("ppl", "KLD", "99 % KLD")
    }
    kld = next(figure for figure in found if figure["name"].endswith("good: KLD"))
    assert (kld["unit"], kld["value"], kld["range"]) == ("nats", 0.01234, "± 0.00045")
    assert len({figure["name"] for figure in found}) == len(found)


def test_junit_and_figures_are_written_and_names_tell_what_was_compared(run, tmp_path):
    found = conclude(run)
    against = dataclasses.replace(found.verdicts[0], against="reference/gate-cpu")
    github.write(run, dataclasses.replace(found, verdicts=[*found.verdicts, against]), tmp_path)
    names = re.findall(r'<testcase [^>]*name="([^"]+)"', (tmp_path / "junit.xml").read_text())
    assert "bad: dppl" in names
    assert "bad: dppl against reference/gate-cpu" in names
    assert json.loads((tmp_path / "benchmark.json").read_text())


def test_the_workflow_runs_what_there_is():
    from tqbench.models.packaged import PACKAGED
    from tqbench.suite.load import load

    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "kv-quality.yml").read_text())
    job = flow["jobs"]["gate"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert 'tqbench run "$SUITE"' in commands
    (suite,) = load([ROOT / job["env"]["SUITE"]])
    assert suite.gates
    (kept,) = [step["with"]["path"] for step in job["steps"] if step.get("if") == "always()"]
    assert kept.split() == [f"{folder}/{suite.settings.name}/**" for folder in ("results", "reports")]
    (fetched,) = [match[1] for command in commands if (match := re.fullmatch(r"tqbench models fetch (\S+)", command))]
    assert fetched in PACKAGED
    assert all((ROOT / name).exists() for name in ("constraints.txt", "tqbench/models"))

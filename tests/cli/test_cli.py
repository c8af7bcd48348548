"""The command line as a user meets it, in processes of its own: what it answers, how it ends, and what it does not import."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tqbench.core.files import seal
from tqbench.core.record import Cell, Record

ROOT = Path(__file__).parents[2]
QUICKSTART = "results/reference/quickstart-cpu"
ANYWHERE = sorted(str(path) for path in (ROOT / "suites").glob("*.yaml") if "\ndevice: cuda\n" not in path.read_text())  # a plan says so
HEAVY = ("torch", "transformers", "mlx", "pandas", "matplotlib", "datasets", "huggingface_hub")
GOOD = """\
model: smollm2-135m-instruct-q4_1
corpus: python-docs
schemes: [q8_0]
tasks: [perplexity: {context: 64, tokens: 128}]
"""
# Commands that end as commands can end, beside the real ones.
ENDINGS = """
import sys
from tqbench.__main__ import main
from tqbench.cli import app
from tqbench.core.errors import EditedError, LockedError, TqbenchError, Unsupported

def ending(error):
    def command():
        raise error
    return command

for name, error in {
    "edited": EditedError("not what was written"),
    "crash": ZeroDivisionError("[bold]by\\x1b zero"), "interrupt": KeyboardInterrupt(), "locked": LockedError("busy"),
    "unsupported": Unsupported("no such thing here"), "memory": MemoryError(), "pipe": BrokenPipeError(),
}.items():
    app.command(name)(ending(error))
sys.exit(main(sys.argv[1:]))
"""
CELLS = [
    Cell("m", "transformers", "cpu", "float32", scheme, "auto", "perplexity", {"context": 64}, {"name": "python-docs"})
    for scheme in (None, {"name": "a"}, {"name": "b"})
]
IMPORTED = f"""
import sys
from tqbench.__main__ import main
code = main(sys.argv[1:])
print("imported:", *sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)
sys.exit(code)
"""


def run(*args: str, code: str | None = None, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "tqbench"]
    return subprocess.run(
        [sys.executable, *start, *args], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, encoding="utf-8", check=False
    )


def planned(folder: Path) -> None:
    """The plan of CELLS, sealed."""
    plan = {"schema": "tqbench.plan/1", "suite": folder.parent.name, "run": folder.name, "command": "", "gates": []}
    plan |= {"cells": [dataclasses.asdict(cell) for cell in CELLS]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps({**plan, "seal": seal(plan)}))


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["run", "--help"],
        ["bench", "--help"],
        ["tune", "--help"],
        ["plan", *ANYWHERE],
        ["run", "suites/long_ctx.yaml", "--dry-run"],
        ["schemes"],
        ["schemes", "--markdown"],
        ["schemes", "show", "kivi2"],
        ["check", "scheme", "--help"],
        ["models"],
        ["doctor"],
        ["doctor", "--json"],
        ["schema"],
        ["schema", "record"],
        ["runs"],
        ["gate", "results/reference/quickstart-cpu", "--github"],
        ["compare", "results/reference/quickstart-cpu:turbo3", "results/reference/quickstart-cpu:turbo4"],
    ],
    ids=lambda args: " ".join(args)[:30],
)
def test_nothing_heavy_is_imported(args: list[str]) -> None:
    done = run(*args, code=IMPORTED)
    assert done.stderr == "imported:\n"
    assert done.returncode == 0


def test_the_package_is_light_and_has_a_version() -> None:
    code = "import sys, tqbench; print(tqbench.__version__, 'numpy' in sys.modules, 'typer' in sys.modules, sorted(tqbench.__all__))"
    assert re.fullmatch(r"\d+\.\d+\.\S+ False False \['__version__', 'load', 'run'\]\n", run(code=code).stdout)
    assert "has no attribute 'nothing'" in run(code="import tqbench; tqbench.nothing").stderr


def test_version_and_help() -> None:
    assert re.fullmatch(r"tqbench \d+\.\d+\.\S+\n", run("--version").stdout)
    shown = run("--help").stdout
    for command in ("run", "plan", "gate", "compare", "runs", "schemes", "check", "models", "doctor"):
        assert f"\n  {command} " in shown
    assert "Exit codes: 0 passed" in shown
    options = run("run", "--help").stdout
    for option in (
        *("-k", "--model", "--corpus", "--backend", "--device", "--dtype", "--kernel"),
        *("--bypass", "--set", "--budget", "--memory", "--fresh", "--dry-run", "-o, --output, --results"),
    ):
        assert f" {option} " in options


def test_what_is_written_goes_to_output_and_runs_lie_in_results() -> None:
    import typer.main

    from tqbench.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {name: {flag: one for one in command.params for flag in one.opts} for name, command in commands.items()}
    writing = {name for name, found in options.items() if "-o" in found}
    assert writing == {"run", "plan", "tune", "report", "gate", "bench", "import"}
    for name in writing:
        assert re.match(r"Where .* go\b", options[name]["-o"].help), name
        assert options[name]["-o"] is options[name]["--output"]
    reading = {name: found["--results"] for name, found in options.items() if "--results" in found}
    assert reading.keys() == {"run", "plan", "tune", "runs", "report", "gate", "compare"}
    assert {str(one.default) for one in reading.values()} == {"results"}
    assert all("SUITE/RUN" in str(one.help) for one in reading.values())  # a folder of runs, not a run
    assert {name for name, one in reading.items() if one is options[name].get("-o")} == {"run", "plan", "tune"}


def test_run_dry_prints_the_plan() -> None:
    plan, dry = (run(*args, "suites/quickstart.yaml", "-k", "turbo*") for args in (["plan"], ["run", "--dry-run"]))
    assert plan.stdout == dry.stdout
    assert plan.returncode == dry.returncode == 0
    for words in ("baseline ", "turbo4[identity] ", "6,144", "quickstart: 4 cells", "python-docs · perplexity stream"):
        assert words in plan.stdout
    assert "q8_0 " not in plan.stdout


def test_a_suite_that_the_budget_leaves_nothing_of_is_told(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(GOOD)
    (tmp_path / "two.yaml").write_text(GOOD.replace("q8_0", "turbo4").replace("tokens: 128", "tokens: 128k"))
    done = run("plan", "one.yaml", "two.yaml", "--budget", "100s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "one: 2 cells" in done.stdout
    assert "two: --budget 100s leaves out 2 of 2 cells:\n  perplexity · context 64 · baseline" in done.stdout
    assert "turbo4: it takes about " in done.stdout


def planned_on(folder: Path, head_dim: int, more: str = "", *args: str) -> subprocess.CompletedProcess[str]:
    """`tqbench plan` of q8_0 and f16 on a model that is a configuration alone."""
    sizes = {"hidden_size": 4 * head_dim, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": head_dim, "vocab_size": 1000, "max_position_embeddings": 256}
    (folder / "tiny").mkdir(exist_ok=True)
    (folder / "tiny" / "config.json").write_text(json.dumps(sizes))
    (folder / "s.yaml").write_text(GOOD.replace("smollm2-135m-instruct-q4_1", "tiny").replace("[q8_0]", "[q8_0, f16]") + more)
    return run("plan", "s.yaml", *args, cwd=folder)


@pytest.mark.parametrize(
    ("gates", "code", "says"), [("", 5, "nothing was measured"), ("gates: [{schemes: q8_0, metric: dppl, limit: 1}]", 3, "did not")]
)
def test_a_plan_of_which_nothing_can_run_ends_as_its_run_would(tmp_path: Path, gates: str, code: int, says: str) -> None:
    done = planned_on(tmp_path, 16, gates, "-k", "q8_0")
    assert done.returncode == code, done.stderr
    last, why = done.stdout.splitlines()[-2:]
    assert last.startswith("s: nothing of it can run here; `tqbench run` would end with: ")
    assert says in last
    assert f"(exit code {code})" in last
    assert why == "  q8_0: blocks of 32 channels do not fit head_dim 16"
    for head_dim, only in ((32, "q8_0"), (16, "*"), (16, "baseline")):  # something can
        done = planned_on(tmp_path, head_dim, gates, "-k", only)
        assert (done.returncode, "nothing of it can run" in done.stdout) == (0, False)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["plan"], "Missing argument 'SUITE'"),
        (["no-such-command"], "No such command 'no-such-command'"),
        (["plan", "--no-such-option"], "No such option"),
        (["plan", "suites/quickstrat.yaml"], "suites/quickstrat.yaml: there is no such file; did you mean 'suites/quickstart.yaml'?\n"),
        (["run", "nosuch"], "nosuch: there is no such file; give the path of a suite, a YAML file (here: suites/crossover.yaml, "),
        (["run", "nosuch"], "suites/tune.yaml)\n"),  # to the last
        (["plan", "suites"], "suites/tune.yaml\n"),
        (["plan", "suites/quickstart.yaml", "--budget", "0s"], "--budget: '0s' leaves no time for anything; give more than 0, as 90s, 20m"),
        (["plan", "suites/quickstart.yaml", "--corpus", "no.txt"], f"--corpus: the file '{ROOT / 'no.txt'}' does not exist: "),
        (["plan", "suites/quickstart.yaml", "--corpus", "no.txt"], "without a text of your own, take python-docs, wikitext-2\n"),
        (["plan", "suites/quickstart.yaml", "-k", "q9"], "-k: 'q9' selects nothing;"),
        (["run", "suites/quickstart.yaml", "--dtype", "flot32"], "--dtype: unknown dtype 'flot32'; did you mean 'float32'?"),
        (["models", "fetch", "smollm"], "unknown model 'smollm'"),
        (["schemes", "--head-dim", "0"], "--head-dim"),
        (["schemes", "show", "tubro4"], "unknown scheme 'tubro4'; did you mean 'turbo4'?"),
        (["check", "scheme"], "Missing argument 'NAME'"),
        (["check", "scheme", "tubro4"], "unknown scheme 'tubro4'; did you mean 'turbo4'?"),
        (
            ["schema", "recrod"],
            "unknown schema 'recrod'; did you mean 'record'? (known: bench, environment, imported, plan, record, suite)",
        ),
        (["plan", "suites/quickstart.yaml", "--budget", "soon"], "--budget: 'soon' is no time; write a number with its unit, as 90s, 20m"),
        (["plan", "suites/quickstart.yaml", "--memory", "16"], "--memory: '16' is no size; write a number with its unit, as 512m, 16g"),
        (["plan", "suites/quickstart.yaml", "--set", "dtype"], "--set dtype: give a key and its value, as tasks.0.perplexity.tokens=2k"),
        (["run", "suites/quickstart.yaml", "--set", "tasks.0.perplexity.tokns=2k"], "unknown key 'tokns'; did you mean 'tokens'? (known: "),
        (
            ["plan", "suites"],
            "suites: this is not a file but a folder; give one of its suites: suites/crossover.yaml, ",
        ),
        (["gate", "quikstart"], "no run is called 'quikstart'"),
        (["report", "quikstart"], "no run is called 'quikstart'"),
        (["compare", QUICKSTART], "compare takes two runs or more"),
        (["compare", QUICKSTART, f"{QUICKSTART}:turb4"], "unknown scheme of this run 'turb4'; did you mean 'turbo4'?"),
        (["compare", QUICKSTART, QUICKSTART, "--allow", "dtyp"], "--allow: unknown key 'dtyp'; did you mean 'dtype'?"),
        (["gate", QUICKSTART, "--fail-on", "q8_O:dppl>1"], "--fail-on 'q8_O:dppl>1': unknown scheme 'q8_O'; did you mean 'q8_0'?"),
        (
            ["gate", QUICKSTART, "--fail-on", "q8_0>0"],
            "--fail-on 'q8_0>0': 'q8_0' names a scheme where a metric belongs: write 'q8_0:METRIC>0'",
        ),
        (["gate", QUICKSTART, "--against", QUICKSTART], "has no limit to hold the difference to"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_wrong_command_exits_2_and_says_what_is_wrong(args: list[str], said: str) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_wrong_suite_exits_2_with_all_mistakes_as_plain_lines(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(GOOD.replace("q8_0", "q8_O").replace("python-docs", '"[bold]\\e[31m"'))
    (tmp_path / "two.yaml").write_text("model: [\n")
    done = run("run", "one.yaml", "./two.yaml", cwd=tmp_path)
    assert done.returncode == 2
    first, second, third = done.stderr.splitlines()
    assert first.startswith("one.yaml:2: unknown corpus '[bold]\\x1b[31m'")
    assert second.startswith("one.yaml:3: unknown scheme 'q8_O'; did you mean 'q8_0'?")
    assert third.startswith("./two.yaml:2: not valid YAML: ")
    assert list(tmp_path.glob("tqbench-crash*")) == []


def test_a_text_that_is_not_there_fails_once_and_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD.replace("python-docs", "wikitext-2").replace("[q8_0]", "[q8_0, turbo4]"))
    done = run("run", "s.yaml", cwd=tmp_path, TQBENCH_WIKITEXT="nowhere")
    assert done.returncode == 2
    assert re.fullmatch(r"s: TQBENCH_WIKITEXT: .*'nowhere'\n", done.stderr)
    assert list(tmp_path.rglob("plan.json")) == []


def test_a_suite_that_is_not_here_is_found_where_the_sources_are(tmp_path: Path) -> None:
    ready = ROOT / "suites"
    for name, said in (
        ("suites/long_ctx.yaml", f"did you mean '{ready / 'long_ctx.yaml'}'?\n"),
        ("mine", f"(ready ones are in {ready})\n"),
    ):
        done = run("plan", name, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.endswith(said)


def test_a_page_of_an_edited_copy_leaves_that_of_its_original(tmp_path: Path) -> None:
    original = tmp_path / "results" / "mine" / "abc"
    Record(CELLS[0], "oom").write(original / "cells" / CELLS[0].key)
    planned(original)
    assert run("report", "mine", cwd=tmp_path).returncode == 0
    page = tmp_path / "reports" / "mine" / "abc" / "index.html"
    before = page.read_bytes()
    shutil.copytree(original, tmp_path / "copy")
    record = tmp_path / "copy" / "cells" / CELLS[0].key / "record.json"
    record.write_text(record.read_text().replace('"oom"', '"crashed"'))
    done = run("report", "copy", cwd=tmp_path)
    assert str(Path("reports", "mine", "abc-altered", "index.html")) in done.stdout
    assert page.read_bytes() == before


def test_a_report_says_whose_exit_code_it_prints(tmp_path: Path) -> None:
    Record(CELLS[0], "oom").write(tmp_path / "results" / "mine" / "abc" / "cells" / CELLS[0].key)
    planned(tmp_path / "results" / "mine" / "abc")
    done = run("report", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(tqbench run ends with exit code 3 here)" in done.stdout
    assert "(exit code 3)" in run("gate", "mine", cwd=tmp_path).stdout  # its own


@pytest.mark.parametrize(
    "command", [["report"], ["gate"], ["compare", "mine/first"], ["gate", "mine/first", "--fail-on", "dppl>1", "--against"]]
)
def test_a_suite_s_name_says_which_run_it_stands_for(tmp_path: Path, command: list[str]) -> None:
    """The newest may be a part of the suite, measured with -k."""
    for name, cells in (("first", CELLS), ("second", CELLS[:1])):
        folder = tmp_path / "results" / "mine" / name
        for cell in cells:
            Record(cell, "failed").write(folder / "cells" / cell.key)
        planned(folder)
    folders = [Path("results", "mine", name) for name in ("first", "second")]
    said = f"mine: {folders[1]} is taken, the newest of 2 runs, and is partial, 1 of 3 cells were run; for another give its folder, as "
    assert run(*command, "mine", cwd=tmp_path).stderr == f"{said}{folders[0]}\n"
    assert run(*command, "mine/second", cwd=tmp_path).stderr == ""  # who names it knows
    assert run("compare", "mine:a", "mine:b", cwd=tmp_path).stderr == f"{said}{folders[0]}\n"  # once
    shutil.rmtree(tmp_path / folders[0])
    if len(command) == 1:
        assert run(*command, "mine", cwd=tmp_path).stderr == f"mine: {folders[1]} is partial, 1 of 3 cells were run\n"
        Record(CELLS[1], "failed").write(tmp_path / folders[1] / "cells" / CELLS[1].key)
        Record(CELLS[2], "failed").write(tmp_path / folders[1] / "cells" / CELLS[2].key)
        assert run(*command, "mine", cwd=tmp_path).stderr == ""  # nothing is open


def test_a_folder_of_runs_is_no_suite() -> None:
    done = run("gate", "reference")
    assert done.returncode == 2
    assert done.stderr.startswith("'reference' is no suite but a folder of runs; name one of them: results/reference/")


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    text = GOOD.replace("[q8_0]", r'[{name: "[bold red]x[/]\x9b31m:smile:", k: q8_0, v: q4_0}]')
    (tmp_path / "s.yaml").write_text(text)
    done = run("plan", "s.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert "[bold red]x[/]\ufffd31m:smile:" in done.stdout


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("locked", 2, "tqbench: busy\n"),
        ("unsupported", 3, "tqbench: no such thing here\n"),
        ("edited", 4, "tqbench: not what was written\n"),
        ("interrupt", 130, ""),
        ("pipe", 141, ""),
    ],
)
def test_every_ending_has_its_code(command: str, code: int, said: str, tmp_path: Path) -> None:
    done = run(command, code=ENDINGS, cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (code, said.strip())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["crash", "memory"])
def test_a_crash_exits_70_and_leaves_its_traceback_in_a_file(command: str, tmp_path: Path) -> None:
    done = run(command, code=ENDINGS, cwd=tmp_path)
    assert done.returncode == 70
    first, second = done.stderr.splitlines()
    assert first.startswith("tqbench: internal error: ")
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"tqbench-crash-[0-9a-f]{8}\.txt", file.name)
    assert second.endswith(file.name)
    details = file.read_text()
    for words in ("Traceback (most recent call last)", f" {command}\n", "numpy ", f"Python {sys.version_info.major}."):
        assert words in details


def test_a_crash_in_a_folder_that_cannot_be_written_is_still_told(tmp_path: Path) -> None:
    done = run("crash", code=f"import os; os.chdir('/proc')\n{ENDINGS}", TMPDIR=str(tmp_path))
    assert done.returncode == 70
    assert str(next(tmp_path.glob("tqbench-crash-*.txt"))) in done.stderr
    assert "[bold]by\ufffd zero" in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for command in ("crash", "unsupported"):
        assert "Traceback" in run(command, code=ENDINGS, cwd=tmp_path, TQBENCH_DEBUG="1").stderr


def test_a_closed_pipe_is_no_crash(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tqbench", "schemes"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 141
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_without_unicode_is_no_crash() -> None:
    done = run("plan", "suites/quickstart.yaml", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "baseline" in done.stdout


def test_schemes_are_listed_one_per_line_and_no_wider_than_they_are() -> None:
    _, rule, *lines = run("schemes").stdout.splitlines()
    names = {line.split()[0]: line for line in lines}
    assert names["kivi2"].split()[1:4] == ["kivi", "3", "3"]
    assert len(names) == len(lines)
    assert all(line == line.rstrip() and len(line) <= len(rule) for line in lines)
    wide = {line.split()[0]: line.split()[2] for line in run("schemes", "--head-dim", "128").stdout.splitlines()[2:]}
    assert wide["turbo4"] == "4.125"


def test_a_scheme_is_shown_down_to_its_bytes() -> None:
    done = run("schemes", "show", "turbo4_pad128", "--head-dim", "128")
    assert done.returncode == 0
    assert "66 bytes for 128 values: 4.125 bits per value" in done.stdout


def test_models_and_doctor_say_what_is_missing(tmp_path: Path) -> None:
    assert "not fetched" in run("models", TQBENCH_CACHE=str(tmp_path)).stdout
    shown = run("doctor", TQBENCH_CACHE=str(tmp_path), TQBENCH_WIKITEXT="nowhere", HF_HUB_OFFLINE="1").stdout
    for words in (
        str(tmp_path),
        "tqbench models fetch smollm2-135m-instruct-q4_1",
        "88.6 MiB to download",
        "TQBENCH_WIKITEXT names no file",
        "HF_HUB_OFFLINE is set",
    ):
        assert words in shown
    assert re.search(r"^transformers +✓ +ready$", shown, re.M)


def test_doctor_is_json_with_the_same_facts(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x").write_bytes(bytes(2048))
    found = json.loads(run("doctor", "--json", TQBENCH_CACHE=str(tmp_path), HF_HUB_OFFLINE="1").stdout)
    assert found["schema"] == "tqbench.doctor/1"
    facts = {(fact["topic"], fact["name"]): fact for fact in found["facts"]}
    assert {fact["state"] for fact in found["facts"]} <= {"ready", "missing", "wrong"}
    assert facts["files", "cache"]["value"] == f"{tmp_path}, 2.0 KiB (models 2.0 KiB)"
    assert facts["texts", "python-docs"]["state"] == "ready"
    assert "attend" in {name for topic, name in facts if topic == "kernels"}
    assert "native" in facts["kernels", "attend"]["value"]
    assert all(fact["next"] for fact in found["facts"] if fact["topic"] == "extras" and fact["state"] == "missing")


def test_runs_counts_outcomes_and_survives_damage(tmp_path: Path) -> None:
    assert run("runs", cwd=tmp_path).stdout.startswith("There are no runs in results yet")
    folder = tmp_path / "results" / "mine" / "abc"
    for cell, outcome in zip(CELLS, ("ok", "oom"), strict=False):
        Record(cell, outcome, started="2030-01-02T03:04:05+00:00").write(folder / "cells" / cell.key)
    planned(folder)
    broken = tmp_path / "results" / "mine" / "def"
    broken.mkdir()
    (broken / "plan.json").write_text("{")
    done = run("runs", cwd=tmp_path)
    assert done.returncode == 0
    lines = {line.split()[1]: line for line in done.stdout.splitlines()[2:]}
    assert "unreadable: " in lines["def"]
    assert "2030-01-02T03:04:05+00:00" in lines["abc"]
    assert "1 ok, 1 oom, 1 not run" in lines["abc"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--confirm", "python-docs"), "is the text that is searched"),
        (("--confirm", "nowhere"), "--confirm: unknown corpus 'nowhere'"),
        (("--sided", "three"), "--sided: unknown choice 'three'"),
        (("--max-dppl", "-1"), "greater than or equal to 0"),
        (("--model", "nobody/nothing/never"), "--model"),
    ],
)
def test_tune_refuses_before_it_measures(given: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = run("tune", str(ROOT / "suites/tune.yaml"), "--max-dppl", "0.3", *given, cwd=tmp_path, TQBENCH_WIKITEXT=str(tmp_path))
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "results").exists()


def test_tune_needs_its_limit_and_a_suite_for_it() -> None:
    assert "--max-dppl" in run("tune", "suites/tune.yaml").stderr
    done = run("tune", "suites/quickstart.yaml", "--max-dppl", "0.3")
    assert done.returncode == 2
    assert "suites/quickstart.yaml: tune needs a `sensitivity` task" in done.stderr

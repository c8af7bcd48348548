"""Runs that are interrupted, starved, locked and repeated, through the real command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tqbench.suite.history import History
from tqbench.suite.load import load
from tqbench.suite.plan import plan

SCHEMES = ("q8_0", "turbo4", "turbo3")
STAND_STILL = """
import os, signal, sys
if "tqbench.runner.worker" in sys.orig_argv:
    from {package} import {module}
    calls, real = iter(range({before})), {module}.{function}
    def held(*args, **options):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*args, **options)
    {module}.{function} = held
"""


LOADING, MEASURING = "tqbench.models.resolve.resolve", "tqbench.tasks.run"


Hold = Callable[..., tuple[subprocess.Popen[bytes], psutil.Process]]


@pytest.fixture
def start_and_hold(tmp_path: Path) -> Iterator[Hold]:
    """Starts a run in a process group of its own, and gives it and its worker, which has stopped itself at the call of a function that it
    has passed so many times before: however busy the machine is, nothing goes on until the worker is let go. The run hears interrupts even
    if these tests were started in the background of a shell. Nothing of it outlives a test that fails."""
    started: list[psutil.Process] = []

    def start(*args: str, at: str, passed: int = 0, code: str | None = None) -> tuple[subprocess.Popen[bytes], psutil.Process]:
        package, module, function = at.rsplit(".", 2)
        path = tmp_path / "path"
        path.mkdir()
        (path / "sitecustomize.py").write_text(STAND_STILL.format(package=package, module=module, function=function, before=passed))
        command = [sys.executable, *(["-c", code] if code else ["-m", "tqbench"]), *args]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here would be ignored there
        try:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        finally:
            signal.signal(signal.SIGINT, before)
        parent = psutil.Process(process.pid)
        started.append(parent)
        while process.poll() is None:
            for child in parent.children():
                if child.status() == psutil.STATUS_STOPPED:
                    started.append(child)
                    return process, child
            time.sleep(0.05)
        pytest.fail("the run ended before its worker stood still")

    yield start
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def let_go(worker: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.resume()


def follow(process: subprocess.Popen[bytes], words: bytes) -> None:
    """Read the progress log until a line holds these words."""
    assert process.stderr
    for line in process.stderr:
        if words in line:
            return
    pytest.fail(f"the run ended before it said {words!r}")


def records(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.parent.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("results/small/*/cells/*/record.json")}


def measured(folder: Path) -> dict[str, tuple[str, str]]:
    """When each finished cell was measured, and what was found."""
    found = {key: json.loads(value[0]) for key, value in records(folder).items()}
    return {key: (record["started"], json.dumps(record["metrics"])) for key, record in found.items() if record["outcome"] == "ok"}


def summary(folder: Path) -> bytes:
    (path,) = folder.glob("results/small/*/summary.csv")
    return path.read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, suite_text: Callable[..., str]) -> bytes:
    """The summary of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "small.yaml").write_text(suite_text(*SCHEMES))
    assert (
        subprocess.run([sys.executable, "-m", "tqbench", "run", "small.yaml"], cwd=folder, capture_output=True, check=False).returncode == 0
    )
    return summary(folder)


@pytest.mark.parametrize("victim", ["parent", "worker", "group"])
@pytest.mark.parametrize(("place", "finished"), [(LOADING, 0), (MEASURING, 2)])
def test_a_kill_costs_no_finished_cell(
    place: str,
    finished: int,
    victim: str,
    expected: bytes,
    tqbench: Callable[..., Any],
    small_suite: Callable[..., str],
    tmp_path: Path,
    start_and_hold: Hold,
) -> None:
    process, worker = start_and_hold("run", small_suite(*SCHEMES), at=place, passed=finished)
    if victim == "worker":
        worker.kill()
    elif victim == "parent":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    let_go(worker)
    process.communicate()
    assert process.returncode == (3 if victim == "worker" else -signal.SIGKILL)
    assert psutil.wait_procs([worker], timeout=30)[1] == [], "an orphan worker lives on"

    before = measured(tmp_path)
    assert len(before) >= finished  # more if another worker went on with the rest, or this one had not yet seen that it was alone
    again = tqbench("run", "small.yaml")
    assert again.returncode == 0, again.stderr
    after = measured(tmp_path)
    assert len(after) == 1 + len(SCHEMES)
    assert before.items() <= after.items(), "a finished cell was measured again"
    assert summary(tmp_path) == expected


def test_a_repeated_run_measures_nothing(tqbench: Callable[..., Any], small_suite: Callable[..., str], tmp_path: Path) -> None:
    suite = small_suite("q8_0")
    assert tqbench("run", suite).returncode == 0
    before = records(tmp_path)
    again = tqbench("run", suite)
    assert again.returncode == 0
    assert records(tmp_path) == before
    fresh = tqbench("run", suite, "--fresh")
    assert fresh.returncode == 0
    assert len(list(tmp_path.glob("results/small/*/cells/*/record.json"))) == 2 * len(before)


def test_a_damaged_record_is_measured_again(tqbench: Callable[..., Any], small_suite: Callable[..., str], tmp_path: Path) -> None:
    suite = small_suite("q8_0")
    assert tqbench("run", suite).returncode == 0
    (path,) = tmp_path.glob("results/small/*/cells/q8_0-*/record.json")
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:200])
    assert tqbench("run", suite).returncode == 0
    assert json.loads(path.read_text())["metrics"] == whole["metrics"]


def test_a_second_run_in_the_same_folder_is_refused(
    tqbench: Callable[..., Any], small_suite: Callable[..., str], tmp_path: Path, start_and_hold: Hold
) -> None:
    suite = small_suite(*SCHEMES)
    process, worker = start_and_hold("run", suite, at=LOADING)
    second = tqbench("run", suite)
    assert second.returncode == 2
    assert f"another run (process {process.pid}) works in" in second.stderr
    let_go(worker)
    process.communicate()
    assert process.returncode == 0


def test_a_cell_that_needs_too_much_memory_costs_no_other(tqbench: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    """The address space is limited so that two models' logits of 8192 rows cannot fit (3.2 GB beside 2 GB of libraries); whether one
    model's do depends on the libraries. The small cells come after the large ones and need a fresh worker."""
    tasks = "  - perplexity: {context: 8192, tokens: 8192, chunk: 8192}\n  - perplexity: {context: 64, tokens: 128}\n"
    (tmp_path / "small.yaml").write_text(f"model: {tiny_model}\ncorpus: python-docs\nschemes: [q8_0]\ntasks:\n{tasks}")
    limit = 4 << 30

    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = tqbench("run", "small.yaml", preexec_fn=starve)
    assert done.returncode == 3, done.stdout + done.stderr
    outcomes = {key.rpartition("-")[0]: json.loads(value[0])["outcome"] for key, value in records(tmp_path).items()}
    large = outcomes.pop("baseline-perplexity-c8192")
    assert large in ("ok", "oom")
    assert outcomes == {"q8_0-perplexity-c8192": "oom", "baseline-perplexity-c64": "ok", "q8_0-perplexity-c64": "ok"}


def test_an_interrupt_keeps_what_is_measured_and_says_the_command_that_continues(
    tqbench: Callable[..., Any], small_suite: Callable[..., str], tmp_path: Path, start_and_hold: Hold
) -> None:
    options = ("--fresh", "--set", "tasks.0.perplexity.warmup=4", "-k", "q8_0,turbo*")
    process, worker = start_and_hold("run", small_suite(*SCHEMES), *options, at=MEASURING, passed=2)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate()
    assert process.returncode == 130
    assert psutil.wait_procs([worker], timeout=30)[1] == [], "an orphan worker lives on"
    before = measured(tmp_path)
    assert len(before) == 2
    *_, said, command = rest.decode().strip().splitlines()
    (folder,) = tmp_path.glob("results/small/*")
    where = folder.relative_to(tmp_path)
    assert said == f"interrupted: {len(before)} of 4 cells of small are measured and kept in {where}. To continue:"
    assert command == "  tqbench run small.yaml --set tasks.0.perplexity.warmup=4 -k 'q8_0,turbo*'"
    assert b"Traceback" not in rest
    assert b"Abort" not in rest
    again = tqbench(*shlex.split(command)[1:])
    assert again.returncode == 0, again.stderr
    after = measured(tmp_path)
    assert len(after) == 4
    assert before.items() <= after.items(), "a finished cell was measured again"
    assert json.loads((folder / "plan.json").read_text())["command"] == command.strip()


# What a worker and the system do between two interrupts, without waiting for either: the end of a run that hangs.
HANGING = """
import sys
from tqbench.__main__ import main
from tqbench.runner import group
def hang(self, *exception):
    print("hanging", file=sys.stderr, flush=True)
    import select
    select.select([], [], [], 60)
group._Process.__exit__ = hang
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_interrupt_ends_at_once(small_suite: Callable[..., str], tmp_path: Path, start_and_hold: Hold) -> None:
    process, worker = start_and_hold("run", small_suite(*SCHEMES), at=LOADING, code=HANGING)
    process.send_signal(signal.SIGINT)
    follow(process, b"hanging")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    let_go(worker)
    assert process.returncode == -signal.SIGINT  # a shell reports 130
    assert psutil.wait_procs([worker], timeout=30)[1] == [], "an orphan worker lives on"


def test_a_budget_is_kept_and_what_it_leaves_out_is_recorded_and_never_green(
    tqbench: Callable[..., Any], small_suite: Callable[..., str], tmp_path: Path
) -> None:
    suite = small_suite(*SCHEMES)
    text = (tmp_path / suite).read_text().partition("tasks:")[0]
    gate = "gates: [{schemes: '*', metric: kv_bytes_per_token, limit: 1000000}]"
    (tmp_path / suite).write_text(f"{text}tasks: [memory: {{context: 64}}]\npriority: turbo3\n{gate}\n")
    done = tqbench("run", suite, "-k", "turbo4")  # so that times are known
    assert done.returncode == 0, done.stderr
    record = next(json.loads(value[0]) for key, value in records(tmp_path).items() if key.startswith("turbo4"))
    assert record["outcome"] == "ok"
    planned = tqbench("plan", suite).stdout
    assert re.search(r"^turbo4 .* measured", planned, re.M)
    assert re.search(r"^turbo3 .* 1 cell", planned, re.M)
    assert "4 cells · 2 of them measured" in planned
    told = plan(
        load([tmp_path / suite])[0], History.read(tmp_path / "results")
    )  # what is learned on a busy machine is not what one cell took
    (wanted,) = [cell for cell in told.cells if cell.label == "turbo3"]
    budget = f"{told.startup([wanted]) + 1.5 * told.cost(wanted).seconds:.3f}s"
    trimmed = tqbench("run", suite, "--budget", budget)
    assert trimmed.returncode == 5, trimmed.stdout + trimmed.stderr
    assert f"small: --budget {budget} leaves out 1 of 4 cells:\n  memory · context 64 · q8_0: it takes about " in trimmed.stderr
    (folder,) = tmp_path.glob("results/small/*")
    found = json.loads((folder / "plan.json").read_text())
    assert found["limits"] == {"budget": budget}
    ((key, why),) = found["dropped"].items()
    assert key.startswith("q8_0-memory-c64-")
    assert why in tqbench("report", "small").stdout
    assert sorted(key.split("-")[0] for key in measured(tmp_path)) == ["baseline", "turbo3", "turbo4"]
    assert tqbench("run", suite, "--memory", "1m").returncode == 5  # what is measured fits any limit
    whole = tqbench("run", suite)
    assert json.loads((folder / "plan.json").read_text())["dropped"] == {}
    assert (whole.returncode, len(measured(tmp_path))) == (0, 4), whole.stderr


def test_unsupported_is_not_a_failure(tqbench: Callable[..., Any], small_suite: Callable[..., str], tmp_path: Path) -> None:
    done = tqbench("run", small_suite("q8_0", "turboquant_prod3"), "--kernel", "attend=native")
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {key.split("-")[0]: json.loads(value[0]) for key, value in records(tmp_path).items()}
    assert outcomes["q8_0"]["outcome"] == "ok"
    assert outcomes["q8_0"]["kernels"]["attend"] == "native"
    assert outcomes["turboquant_prod3"]["outcome"] == "unsupported"
    assert "codec 'product' has no native form" in outcomes["turboquant_prod3"]["reason"]


def test_a_worker_decodes_natively_on_one_openmp_runtime(tqbench: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    suite = f"name: small\nmodel: {tiny_model}\ncorpus: python-docs\nschemes: [turbo4]\ntasks: [{{decode: {{depth: 40, new: 4}}}}]\n"
    (tmp_path / "small.yaml").write_text(suite)
    done = tqbench("run", "small.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    record = next(found for key, value in records(tmp_path).items() if (found := json.loads(value[0]))["cell"]["scheme"])
    assert (record["kernels"]["encode"], record["kernels"]["attend"]) == ("native", "native")
    shared, private = [], []
    for name in record["timing"]["openmp"]:
        (private if re.search(r"-[0-9a-f]{8}\.so", name) else shared).append(name)
    assert len(shared) == 1
    assert len(private) <= 1, "only sentencepiece, which tokenizers import, brings a copy of its own"


def test_python_runs_and_loads_the_same(small_suite: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tqbench

    suite = small_suite("turbo4")
    monkeypatch.chdir(tmp_path)
    run = tqbench.run(suite)
    frame = tqbench.load("small").frame()
    assert list(frame["scheme"]) == ["baseline", "turbo4"]
    assert frame.equals(run.frame())
    assert frame["kld"].iloc[1] > 0
    assert frame["bits"].iloc[1] == 4.25


def test_text_is_scored_until_the_gates_are_decided(tqbench: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    """A clear case stops at the first look; one on the limit takes all the text there is and stays open."""
    (tmp_path / "small.yaml").write_text(
        f"model: {tiny_model}\ncorpus: python-docs\nschemes: [q8_0, turbo3]\n"
        'tasks: [perplexity: {context: 16, tokens: "until decided, at most 1k"}]\n'
        "gates:\n  - {schemes: q8_0, metric: kld, limit: 1}\n  - {schemes: turbo3, metric: ln_ratio, limit: 0, expect: fail}\n"
    )
    done = tqbench("run", "small.yaml")
    assert done.returncode == 1, done.stdout + done.stderr  # a random model's perplexity is refused by every gate
    found = {record["cell"]["label"]: record for record in _records(tmp_path)}
    looked = {name: (record["text"]["windows"], record["text"].get("look", {}).get("at")) for name, record in found.items()}
    assert looked == {"baseline": (32, None), "q8_0": (32, 1), "turbo3": (64, 2)}
    assert found["q8_0"]["text"]["first"]["ids_sha256"] == found["baseline"]["text"]["ids_sha256"]


def _records(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in folder.glob("results/small/*/cells/*/record.json")]
    return [record | {"cell": {"label": (record["cell"]["scheme"] or {"name": "baseline"})["name"]}} for record in found]

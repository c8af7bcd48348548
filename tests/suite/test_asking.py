"""Tasks that ask, in suites: what may be written, what a plan makes of it, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tqbench.core.errors import ConfigError
from tqbench.suite.cost import Size, tokens, work
from tqbench.suite.load import load
from tqbench.suite.plan import Plan, plan
from tqbench.suite.schema import Overrides

HEAD = "model: smollm2-135m-instruct-q4_1\ncorpus: python-docs\nschemes: [q8_0]\ntasks:\n"
SIZE = Size(layers=30, channels=576, kv_channels=192, head_dim=64, vocab=49152, parameters=134_515_008)


@pytest.fixture
def planned(tmp_path: Path):
    def make(tasks: str, more: str = "") -> Plan:
        path = tmp_path / "suite.yaml"
        path.write_text(f"{HEAD}{tasks}\n{more}")
        (found,) = load([path], Overrides())
        return plan(found)

    return make


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("needle: {depth: [0.5, 0.2]}", "depths must rise"),
        ("needle: {depth: [0.5, 0.5]}", "in the list already"),
        ("needle: {depth: 1.5}", "from 0 \\(the beginning\\) to 1"),
        ("needle: {form: pass}", "unknown form 'pass'; did you mean 'passkey'"),
        ("needle: {context: 16k}", "longer than the 8192 positions"),
        ("generation: {new: 1}", "2 or more"),
        ("generation: {context: 128, chunk: 256}", "chunk 256 is longer"),
        ("lm_eval: {limit: 5}", "tasks is missing"),
        ("lm_eval: {tasks: a, limit: 0}", "1 or more"),
        ("lm_eval: {tasks: [a, a]}", "in the list already"),
        ("lm_eval: {tasks: a, include_path: nowhere}", "the folder 'nowhere' does not exist"),
    ],
)
def test_mistakes_are_named(planned, task: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        planned(f"  - {task}")


def test_cells_carry_all_that_decides_their_questions(planned) -> None:
    cell = planned("  - needle: {context: [1k, 4k], samples: 2}").cells[-1]
    assert cell.params == {
        "context": 4096,
        "depth": [0.0, 0.25, 0.5, 0.75, 1.0],
        "form": "passkey",
        "samples": 2,
        "digits": 5,
        "seed": 0,
        "chat": True,
        "protocol": "strict",
        "chunk": 512,
    }
    cell = planned("  - generation: {context: 64, protocol: deploy}").cells[0]
    assert cell.params == {"context": 64, "new": 64, "prompts": 16, "seed": 0, "protocol": "deploy", "chunk": 16}


def test_each_task_of_lm_eval_has_cells_of_its_own(planned, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.yaml").write_text("task: a")
    tasks = "  - lm_eval: {tasks: [a, b], limit: 5, include_path: own}"
    found = planned(tasks, "gates: [{schemes: q8_0, metric: eval_delta, limit: 0.1}]")
    assert [(cell.label, cell.params["task"]) for cell in found.cells] == [
        *(("baseline", "a"), ("q8_0", "a")),
        *(("baseline", "b"), ("q8_0", "b")),
    ]
    assert len({cell.setting for cell in found.cells}) == 2
    (tmp_path / "own" / "a.yaml").write_text("task: a  # changed")
    assert planned(tasks).identity() != found.identity()


def test_costs_grow_with_what_is_asked(planned) -> None:
    one, many = (planned(f"  - needle: {{context: 1k, samples: {n}}}").cells[0] for n in (1, 5))
    assert tokens(many) == pytest.approx(5 * tokens(one))
    passkey, multi = (planned(f"  - needle: {{context: 4k, form: {form}}}").cells[0] for form in ("passkey", "multi"))
    assert tokens(passkey) > 3 * tokens(multi)
    base, scheme = planned("  - needle: {context: 4k}").cells
    assert work(scheme, SIZE, first=False) > 1.3 * work(base, SIZE, first=False)
    short, long = (planned(f"  - generation: {{context: 256, new: {new}}}").cells[0] for new in (32, 128))
    assert work(long, SIZE, first=False) > 2 * work(short, SIZE, first=False)
    few, all_of_them = (planned(f"  - lm_eval: {{tasks: a, limit: {limit}}}").cells[0] for limit in (10, 100))
    assert tokens(all_of_them) == 10 * tokens(few)

"""The tuner of Triton's attention, in the interpreter on a clock that goes as far as it is told: what is wrong is never timed, what is not
faster beyond doubt is never stored, and the time that was given is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tqbench.bench import tuning
from tqbench.cli import app
from tqbench.core.errors import ConfigError
from tqbench.kernels import triton
from tqbench.kernels.triton import Config
from tqbench.measure import clock

pytestmark = pytest.mark.skipif(triton.missing() is not None or torch.cuda.is_available(), reason="of the interpreter, on the CPU")
TOKENS = 48
Cost = Callable[[Config], float]


class Time:
    """A clock that kernels move on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """Kernels that take as long as they are told, and are worked out once: the first, and those that are to be wrong or to have no room."""

    def __init__(self) -> None:
        self.time, self.cost, self.ran = Time(), self.flat, list[Config]()
        self.wrong, self.large = set[Config](), set[Config]()
        self.truth: dict[Any, torch.Tensor] = {}

    def flat(self, config: Config) -> float:
        return 1.0

    def prepare(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def prepared(switches: Any, q: Any, *given: Any) -> Any:
            ready, machine = plain(switches, q, *given), self

            class Ready:
                work = ready.work

                def run(self, *args: Any) -> torch.Tensor:
                    machine.time.now += machine.cost(ready.config)
                    machine.ran.append(ready.config)
                    if ready.config in machine.large:
                        raise _no_room()
                    if ready.work not in machine.truth:
                        machine.truth[ready.work] = ready.run(*args)
                    return machine.truth[ready.work] * (1.2 if ready.config in machine.wrong else 1.0)

            return Ready()

        return prepared


def _no_room() -> Exception:
    from triton.runtime.errors import OutOfResources

    return OutOfResources(300000, 232448, "shared memory")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Machine:
    found = Machine()
    monkeypatch.setattr(tuning, "SCHEMES", ("turbo4", "q8_0"))
    monkeypatch.setattr(tuning, "USES", ((64, True), (64, False)))
    monkeypatch.setattr(tuning, "PROMPT", 3)
    monkeypatch.setattr(tuning, "copies", lambda *_: 2)
    monkeypatch.setattr(tuning._triton, "prepare", found.prepare(tuning._triton.prepare))
    monkeypatch.setattr(clock, "seconds", found.time)
    monkeypatch.setattr(triton, "TABLE", tmp_path / "triton.json")
    triton.TABLE.write_text('{"schema": "tqbench.triton/1", "lines": []}')
    triton.table.cache_clear()
    yield found
    triton.table.cache_clear()


def first(machine: Machine) -> tuning.Found:
    return next(tuning.tune(TOKENS, 1e9, "cpu"))


def test_the_fastest_that_is_right_is_found(machine: Machine) -> None:
    """Along several axes at once."""
    machine.cost = lambda c: 1 + abs(c.tokens - 128) / 100 + abs(c.warps - 8) / 10 + abs(c.programs - 8) / 50
    found = first(machine)
    assert found.better
    assert (found.config.tokens, found.config.warps, found.config.programs, found.config.stages) == (128, 8, 8, 1)
    assert found.ratio is not None
    assert found.ratio.low == pytest.approx(machine.cost(found.used) / machine.cost(found.config))
    assert found.wrong == ()


def test_what_computes_something_else_is_dropped_before_it_is_timed_and_named(machine: Machine) -> None:
    machine.cost = lambda c: 0.1 if c.warps == 8 else 1.0
    used = first(machine).used
    fast = replace(used, warps=8)
    machine.wrong, machine.ran = {fast}, []
    found = first(machine)
    assert not found.better
    assert [config for config, _ in found.wrong] == [fast]
    assert dict(found.wrong)[fast] == pytest.approx(0.2, rel=0.01)
    assert machine.ran.count(fast) <= 2, "checked on each copy, and never timed"


def test_what_is_only_faster_at_first_sight_stays_out(machine: Machine) -> None:
    """Quick while it is looked at, and no quicker than the one in use when both run in turn."""
    seen: dict[Config, int] = {}

    def cost(config: Config) -> float:
        seen[config] = seen.get(config, 0) + 1
        return 0.5 if config.warps == 8 and seen[config] < tuning.CALLS * tuning.REPEATS else 1.0 + 0.01 * (seen[config] % 3)

    machine.cost = cost
    found = first(machine)
    assert found.config.warps == 8
    assert found.ratio is not None
    assert not found.better


def test_nothing_larger_than_what_has_no_room_is_tried(machine: Machine) -> None:
    machine.cost = lambda c: 1 - c.tokens / 1000
    used = first(machine).used
    sizes = [size for size in tuning.AXES["tokens"] if size > used.tokens]
    machine.large, machine.ran = {replace(used, tokens=sizes[0])}, []
    first(machine)
    assert max(config.tokens for config in machine.ran) == sizes[0]


def test_the_time_is_kept_and_the_most_wanted_comes_first(machine: Machine) -> None:
    one = list(tuning.tune(TOKENS, 1.0, "cpu"))
    assert [(found.work.decoding, found.work.k_bits) for found in one] == [(True, 4)]
    assert one[0].tried == 1, "what is over at the first look ends with it"
    every = list(tuning.tune(TOKENS, 1e9, "cpu"))
    assert [(found.work.decoding, found.work.k_bits) for found in every] == [(True, 4), (True, 8), (False, 4), (False, 8)]


def test_without_a_gpu_nothing_is_tuned() -> None:
    done = CliRunner().invoke(app, ["kernels", "tune"])
    assert isinstance(done.exception, ConfigError)
    assert "finds no CUDA device here" in str(done.exception)


def test_the_command_stores_what_is_better_alone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.cost = lambda c: 0.5 if c.warps == 8 and c.rows == Config().rows else 1.0
    plain = tuning.tune
    monkeypatch.setattr(tuning, "tune", lambda tokens, budget: plain(TOKENS, budget, "cpu"))
    done = CliRunner().invoke(app, ["kernels", "tune", "--budget", "300h"])
    assert done.exit_code == 0, done.output
    assert "nan" not in done.output
    assert "2.000 x as fast [2.000, 2.000]" in done.output
    stored = triton.table()
    assert {work.decoding for work in stored} == {True}, "prompts have larger blocks"
    assert {config.warps for config in stored.values()} == {8}
    again = CliRunner().invoke(app, ["kernels", "tune", "--budget", "300h"])
    assert "none was faster" in again.output
    assert triton.table() == stored
    assert CliRunner().invoke(app, ["kernels", "tune", "--budget", "soon"]).exit_code != 0

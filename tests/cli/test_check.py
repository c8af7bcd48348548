"""`tqbench check scheme`: a line per check, and an exit code that says whether all hold."""

from __future__ import annotations

import pytest

import tqbench.testing
from tqbench.__main__ import main
from tqbench.testing import Case


def check_holds(subject: str) -> None:
    pass


def check_fails(subject: str) -> None:
    raise AssertionError(f"{subject} forgets\nwhat it packed")


def check_breaks(subject: str) -> None:
    raise ZeroDivisionError("by zero")


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch):
    """Puts other checks in the place of the shipped ones."""

    def put(*checks) -> None:
        monkeypatch.setattr(
            tqbench.testing, "cases", lambda schemes: [Case(check, scheme.name, scheme.name) for scheme in schemes for check in checks]
        )

    return put


def test_checks_that_hold_exit_0(shipped, capsys: pytest.CaptureFixture[str]) -> None:
    shipped(check_holds)
    assert main(["check", "scheme", "f16", "q8_0/turbo3"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok      f16-holds",
        "ok      q8_0/turbo3-holds",
        "",
        "f16, q8_0/turbo3: 2 checks, all passed",
    ]


def test_one_that_fails_exits_4_and_the_rest_still_run(shipped, capsys: pytest.CaptureFixture[str]) -> None:
    shipped(check_fails, check_breaks, check_holds)
    assert main(["check", "scheme", "f16"]) == 4
    assert capsys.readouterr().out.splitlines() == [
        "FAILED  f16-fails: f16 forgets what it packed",
        "FAILED  f16-breaks: ZeroDivisionError: by zero",
        "ok      f16-holds",
        "",
        "f16: 3 checks, 2 failed",
    ]


def test_all_names_are_known_before_any_check_runs(shipped, capsys: pytest.CaptureFixture[str]) -> None:
    shipped(check_holds)
    assert main(["check", "scheme", "f16", "q8_O"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("unknown scheme 'q8_O'; did you mean 'q8_0'?")


def test_the_shipped_checks_run(capsys: pytest.CaptureFixture[str]) -> None:
    """On the simplest scheme, for real: its own checks, its codec's and its kernels'."""
    assert main(["check", "scheme", "bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ok      bf16-boundary" in lines
    assert "ok      cast dtype=bfloat16-layout" in lines
    assert len(lines) > 25

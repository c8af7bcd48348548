"""Suite files, read and checked as a whole: every mistake in every file at once, each as `file:line: what, allowed, did you mean`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqbench import corpora
from tqbench.core.errors import ConfigError
from tqbench.models.packaged import PACKAGED
from tqbench.suite import check, document
from tqbench.suite.document import At
from tqbench.suite.schema import Overrides, Settings, Suite
from tqbench.suite.validate import validate

MOST = 30  # problems shown per file
LONGEST = 1000  # characters of one
NONE = Overrides()


def load(paths: Sequence[str | Path], overrides: Overrides = NONE) -> list[Suite]:
    """The suites in these files, with the command line's values in place of theirs. ConfigError names every mistake in any of them."""
    readings = [_Reading(str(path), overrides) for path in paths]
    problems = [line for reading in readings for line in reading.problems()]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return [reading.suite for reading in readings if reading.suite]


class _Reading:
    """One file: what is in it, and what is wrong with it."""

    def __init__(self, path: str, overrides: Overrides):
        self.path = path
        self.options = {key: value for key, value in dataclasses.asdict(overrides).items() if value is not None}
        self.found: list[tuple[int, str]] = []  # (line, text with its place), 0 for what has no line
        self.document = document.read(path)
        for line, text in self.document.problems:
            self.found.append((line or 0, f"{path}:{line}: {text}" if line else f"{path}: {text}"))
        self.suite = None if self.document.data is None else self._suite(self.document.data)

    def problems(self) -> list[str]:
        """In the order of the file."""
        found = dict.fromkeys(text for _, text in sorted(self.found, key=lambda item: item[0]))
        lines = [text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for text in found]
        more = [f"{self.path}: and {len(lines) - MOST} more"] if len(lines) > MOST else []
        return lines[:MOST] + more

    def problem(self, at: At, text: str) -> None:
        """Note a mistake at a key; if the command line gave its value, that is the place."""
        if at and at[0] in self.options:
            self.found.append((0, f"--{at[0]}: {text}"))
        else:
            line = self.document.line(at)
            self.found.append((line, f"{self.path}:{line}: {text}"))

    def _suite(self, written: dict[str, Any]) -> Suite | None:
        here = {"model": _model, "corpus": _corpus}
        replaced = {key: here.get(key, str)(value) for key, value in self.options.items() if key != "bypass"}
        data: dict[str, Any] = {"name": Path(self.path).stem, **written, **replaced}
        data = {key: value for key, value in data.items() if value is not None}  # `gates:` with nothing under it is no gates
        for key in check.REQUIRED:
            if key not in data:
                self.problem((key,), f"{key} is missing: a suite has at least {', '.join(check.REQUIRED)}")
        settings = validate(Settings, data, (), self.problem)
        return self._checked(settings) if settings else None

    def _checked(self, settings: Settings) -> Suite:
        root = Path(self.path).parent
        positions = check.models(settings, root, self.problem)
        check.backends(settings, self.problem)
        if settings.corpus:
            check.corpus(settings.corpus, root, self.problem)
        calibration = check.calibration(settings.calibration, root, self.problem)
        check.kernel(settings.kernel, self.problem)
        schemes = check.schemes(settings.schemes, self.problem)
        tasks = check.tasks(settings.tasks, positions, ("model",) if "model" in self.options else None, self.problem)
        labels = [scheme.label for scheme in schemes] if 0 < len(schemes) == len(settings.schemes) else None
        kinds = {kind for kind, _ in tasks} if len(tasks) == len(settings.tasks) else set()
        gates = check.gates(settings.gates, labels, kinds, self.problem)
        if not self.found:
            check.repeated(tasks, self.problem)
            check.decidable(tasks, gates, self.problem)
        if "bypass" in self.options:  # the gates are about the schemes as they are
            schemes, gates = check.bypassed(schemes, self.options["bypass"], self.problem), ()
        lines = tuple(self.document.line(("gates", i)) for i in range(len(gates)))  # without mistakes, all that are written are there
        return Suite(root, settings, schemes, tasks, calibration, gates, _relative(self.path), lines)


def _relative(path: str) -> str:
    """As people and machines elsewhere know it: from the working folder, or the name alone. Other paths stay private."""
    try:
        return Path(path).absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return Path(path).name


def _model(model: str) -> str:
    """A model named on the command line is looked for from the working folder, not from the suite's."""
    if model in PACKAGED:
        return model
    try:
        path = Path(model).expanduser()
        return str(path.absolute()) if path.exists() else model
    except (OSError, RuntimeError, ValueError):
        return model


def _corpus(name: str) -> dict[str, str]:
    """A corpus named on the command line: a known name, or a text file."""
    if name in corpora.names() or not Path(name).is_file():
        return {"name": name}
    return {"name": "file", "path": str(Path(name).absolute())}

"""Suite files, read and checked as a whole: every mistake in every file at once, each as `file:line: what, allowed, did you mean`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqbench import corpora
from tqbench.core.errors import ConfigError
from tqbench.models.packaged import PACKAGED
from tqbench.suite import assign, check, document
from tqbench.suite.document import At
from tqbench.suite.plan import cells
from tqbench.suite.schema import Overrides, Settings, Suite
from tqbench.suite.validate import validate

MOST = 30  # problems shown per file
LONGEST = 1000  # characters of one
NONE = Overrides()


def load(paths: Sequence[str | Path], overrides: Overrides = NONE) -> list[Suite]:
    """The suites in these files, with the command line's values in place of theirs. ConfigError names every mistake in any of them."""
    wanted = assign.assignments(overrides)
    readings = [_Reading(str(path), wanted, overrides.bypass) for path in paths]
    problems = [line for reading in readings for line in reading.problems()]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return [reading.suite for reading in readings if reading.suite]


class _Reading:
    """One file: what is in it, and what is wrong with it."""

    def __init__(self, path: str, wanted: list[assign.Assignment], bypass: str | None):
        self.path, self.wanted, self.bypass = path, wanted, bypass
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
        if flag := self._given(at):
            self.found.append((0, f"{flag}: {text}"))
        else:
            line = self.document.line(at)
            self.found.append((line, f"{self.path}:{line}: {text}"))

    def _given(self, at: At) -> str | None:
        """The option that gave the value at a key; of several the last, which holds."""
        if self.bypass is not None and at == ("bypass",):
            return "--bypass"
        return next((one.flag for one in reversed(self.wanted) if at[: len(one.at)] == one.at), None)

    def _suite(self, written: dict[str, Any]) -> Suite | None:
        here = {"model": _model, "corpus": named_corpus}
        wanted = [replace(one, value=here[one.at[0]](one.value)) if one.at in (("model",), ("corpus",)) else one for one in self.wanted]
        data, problems = assign.apply({"name": Path(self.path).stem, **written}, wanted)
        self.found += [(0, text) for text in problems]
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
        check.devices(settings, self.problem)
        if settings.corpus:
            check.corpus(settings.corpus, root, self.problem)
        calibration = check.calibration(settings.calibration, root, self.problem)
        check.kernel(settings.kernel, self.problem)
        schemes = check.schemes(settings.schemes, self.problem)
        tasks = check.tasks(settings.tasks, positions, ("model",) if self._given(("model",)) else None, self.problem)
        labels = [scheme.label for scheme in schemes] if 0 < len(schemes) == len(settings.schemes) else None
        kinds = {kind for kind, _ in tasks} if len(tasks) == len(settings.tasks) else set()
        gates = check.gates(settings.gates, labels, kinds, self.problem)
        if not self.found:
            check.repeated(tasks, self.problem)
            check.decidable(tasks, gates, self.problem)
            check.included(tasks, root, self.problem)
        if self.bypass is not None:  # the gates are about the schemes as they are
            schemes, gates = check.bypassed(schemes, self.bypass, self.problem), ()
        lines = tuple(self.document.line(("gates", i)) for i in range(len(gates)))  # without mistakes, all that are written are there
        suite = Suite(root, settings, schemes, tasks, calibration, gates, _relative(self.path), lines)
        if not self.found:
            check.priority(settings.priority, [name for cell in cells(suite) for name in (cell.label, cell.key)], self.problem)
        return suite


def _relative(path: str) -> str:
    """As people and machines elsewhere know it: from the working folder, or the name alone. Other paths stay private."""
    try:
        return Path(path).absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return Path(path).name


def _model(model: Any) -> Any:
    """A model named on the command line is looked for from the working folder, not from the suite's."""
    if isinstance(model, list):
        return [_model(one) for one in model]
    if not isinstance(model, str) or model in PACKAGED:
        return model
    try:
        path = Path(model).expanduser()
        return str(path.absolute()) if path.exists() else model
    except (OSError, RuntimeError, ValueError):
        return model


def named_corpus(name: Any) -> Any:
    """A corpus named on the command line: a known name, or a text file."""
    if not isinstance(name, str):
        return name
    if name in corpora.names() or not (Path(name).is_file() or Path(name).suffix or Path(name).name != name):  # a path, if not of a file
        return {"name": name}
    return {"name": "file", "path": str(Path(name).absolute())}

"""What is wrong between the values of a suite: names that nothing answers to, and numbers that contradict each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from tqbench import corpora
from tqbench.core import registry
from tqbench.core.errors import ConfigError, unknown
from tqbench.core.gate import TASK_OF, Gate, matches, too_large
from tqbench.core.presets import Problem, parse
from tqbench.core.scheme import Bypass, Scheme
from tqbench.corpora.recipes import RECIPES
from tqbench.kernels import attend, decode, encode, entropy
from tqbench.metrics.paired import ENOUGH
from tqbench.metrics.verdict import least
from tqbench.models import resolve
from tqbench.suite.document import At
from tqbench.suite.schema import (
    LENGTH,
    MOST,
    TASKS,
    Calibration,
    GateKeys,
    Generation,
    LmEval,
    Needle,
    Perplexity,
    Prefill,
    Sensitivity,
    Settings,
    Storage,
    Task,
    UntilDecided,
)
from tqbench.suite.validate import short, validate

REQUIRED = ("model", "corpus", "schemes", "tasks")


def models(settings: Settings, root: Path, problem: Problem) -> dict[str, int]:
    """Every model must exist; the most positions of each, where its configuration is at hand."""
    positions = {}
    _repeats(settings.model, ("model",), problem)
    for i, name in enumerate(settings.model):
        try:
            wrong = resolve.problem(name, root)
            config = None if wrong else resolve.config(name, root)
        except (OSError, RuntimeError, ValueError) as error:  # a path that no system takes
            wrong, config = f"model {short(name)} cannot be read: {error}", None
        if wrong:
            problem(("model", i), wrong)
        most = (config or {}).get("max_position_embeddings")
        if isinstance(most, int):
            positions[name] = most
    return positions


def backends(settings: Settings, problem: Problem) -> None:
    """Every backend must be installed."""
    _repeats(settings.backend, ("backend",), problem)
    known = registry.backend_names()
    for i, name in enumerate(settings.backend):
        if name not in known:
            problem(("backend", i), unknown("backend", name, known))


def devices(settings: Settings, problem: Problem) -> None:
    """No device twice. One that is not here may be planned: its cells are unsupported, with the reason."""
    _repeats(settings.device, ("device",), problem)


def corpus(options: dict[str, Any], root: Path, problem: Problem, at: At = ("corpus",)) -> None:
    """The corpus must be known, and its file there."""
    name, path = options.get("name"), options.get("path")
    if not isinstance(name, str) or name not in corpora.names():
        own = "a text of your own is {name: file, path: …}, or its path where an option wants it"
        problem((*at, "name"), f"{unknown('corpus', str(name), corpora.names())}; {own}")
        return
    allowed = {"name", "path"} if name == "file" else {"name"}
    for key in options.keys() - allowed:
        problem((*at, key), unknown(f"option of corpus {name}", key, allowed))
    if name == "file" and not (isinstance(path, str) and _is_file(root, path)):
        others = ", ".join(known for known in corpora.names() if known != "file")
        what = f"the file {short(path)} does not exist" if isinstance(path, str) else "corpus file needs the path of a text file"
        problem((*at, "path"), f"{what}: {{name: file, path: …}}; without a text of your own, take {others}")


def calibration(options: dict[str, Any], root: Path, problem: Problem) -> Calibration:
    """From what text schemes learn. What is not said is the default."""
    found = validate(Calibration, options, ("calibration",), problem)
    if found is None:
        return Calibration()
    corpus(found.corpus, root, problem, ("calibration", "corpus"))
    return found


def kernel(wanted: str, problem: Problem) -> None:
    """`auto`, the name of a form, or op=name for some operations."""
    forms = {op.name: {"auto", *(impl.name for impl in op.impls)} for op in (attend.OP, decode.OP, encode.OP)}
    for item in wanted.split(","):
        op, equals, form = item.rpartition("=")
        if equals and op not in forms:
            problem(("kernel",), unknown("operation", op, forms) + "; write a form's name, or op=name,op=name")
        elif form not in (allowed := forms[op] if equals else set().union(*forms.values())):
            problem(("kernel",), unknown(f"form of {op}" if equals else "kernel", form, allowed))


def schemes(items: list[Any], problem: Problem) -> tuple[Scheme, ...]:
    """The schemes that can be read, each under a label of its own. The same scheme again is an A/A control and becomes `name#2`."""
    found: dict[str, Scheme] = {}
    meaning: dict[str, str] = {}
    for i, item in enumerate(items):
        scheme = parse(item, problem, ("schemes", i))
        if scheme is None:
            continue
        if wrong := _misnamed(scheme, meaning):
            problem(("schemes", i), wrong)
            continue
        name, number = scheme.name, 2
        while scheme.label in found:
            scheme, number = dataclasses.replace(scheme, name=f"{name}#{number}"), number + 1
        found[scheme.label] = scheme
    return tuple(found.values())


def _misnamed(scheme: Scheme, meaning: dict[str, str]) -> str | None:
    """Why the scheme cannot have that name: one name, one meaning, also among the presets."""
    own = dataclasses.replace(scheme, bypass=None).definition()
    preset = parse(scheme.name, lambda *_: None)
    if scheme.name == "baseline":
        return "the name 'baseline' belongs to the model's own cache, which every suite measures; choose another"
    if preset is not None and preset.definition() != own:
        return f"{scheme.name!r} is a preset that does something else; choose another name"
    if meaning.setdefault(scheme.name, own) != own:
        return f"the name {scheme.name!r} is given to two different schemes; choose another"
    return None


def bypassed(found: Sequence[Scheme], bypass: str, problem: Problem) -> tuple[Scheme, ...]:
    """Every scheme with its quantizer skipped. What becomes equal by that is measured once."""
    if bypass not in get_args(Bypass):
        problem(("bypass",), unknown("bypass", bypass, get_args(Bypass)))
        return tuple(found)
    all_of_them = [dataclasses.replace(scheme, bypass=bypass) for scheme in found]  # type: ignore[arg-type]
    return tuple({scheme.label: scheme for scheme in all_of_them}.values())


def tasks(items: list[Any], positions: dict[str, int], blame: At | None, problem: Problem) -> tuple[tuple[str, Task], ...]:
    """The tasks that can be read. `blame`: where to report a window that is too long for a model, if not at the window."""
    found: list[tuple[str, Task]] = []
    for i, item in enumerate(items):
        if not isinstance(item, dict) or len(item) != 1:
            problem(("tasks", i), f"a task is one key with its parameters, `perplexity: {{…}}`, got {short(item)}")
            continue
        ((kind, params),) = item.items()
        at: At = ("tasks", i, kind)
        if kind not in TASKS:
            problem(at, unknown("task", kind, TASKS))
        elif not isinstance(params, dict | None):
            problem(at, f"{kind} takes a mapping of parameters, got {short(params)}")
        elif task := _task(kind, params or {}, at, min(positions.values(), default=MOST), problem):
            _positions(task, positions, (*at, LENGTH.get(kind, "context")), blame, problem)
            found.append((kind, task))
    return tuple(found)


def _task(kind: str, params: dict[str, Any], at: At, most: int, problem: Problem) -> Task | None:
    wrong: list[At] = []

    def note(where: At, text: str) -> None:
        wrong.append(where)
        problem(where, text)

    task = validate(TASKS[kind], params, at, note)
    if task and not wrong:  # what stands in for a wrong value proves nothing about the others
        _repeats(task.context, (*at, LENGTH.get(kind, "context")), problem)
        if isinstance(task, Perplexity):
            _consistent(task, at, most, problem)
        elif isinstance(task, Sensitivity):
            _filled(task, at, most, problem)
            _chunk(task, min(task.context), at, problem)
        elif isinstance(task, Prefill):
            _chunk(task, min(task.context), at, problem)
        elif isinstance(task, Storage):
            _level(task, at, problem)
        elif isinstance(task, Needle | Generation | LmEval):
            _asked(task, at, problem)
            _chunk(task, min(task.context), at, problem)
    return task


def _filled(task: Perplexity | Sensitivity, at: At, most: int, problem: Problem) -> int:
    """The longest window that a model here can have, which the text must fill."""
    longest = max((c for c in task.context if c <= most), default=0)
    if task.tokens < longest:
        problem((*at, "tokens"), f"tokens {task.tokens} do not fill one window: context is {longest}")
    return longest


def _consistent(task: Perplexity, at: At, most: int, problem: Problem) -> None:
    shortest, longest = min(task.context), _filled(task, at, most, problem)
    if task.tokens >= longest and isinstance(task.tokens, UntilDecided) and task.tokens // longest < ENOUGH:
        problem((*at, "tokens"), f"at most {task.tokens} tokens are fewer than the {ENOUGH} windows of {longest} that a verdict needs")
    _chunk(task, shortest, at, problem)
    for key in ("warmup", "stride"):
        if getattr(task, key) and key not in RECIPES[task.recipe].keys:
            takers = ", ".join(name for name, recipe in RECIPES.items() if key in recipe.keys)
            problem((*at, key), f"recipe {task.recipe} takes no {key}; leave it out (recipes with {key}: {takers})")
            return
    if task.warmup >= shortest:
        problem((*at, "warmup"), f"warmup {task.warmup} leaves nothing to score: context is {shortest}")
    if task.stride is not None and task.stride > shortest:
        problem((*at, "stride"), f"stride {task.stride} leaves tokens out between windows: context is {shortest}")


def _chunk(task: Perplexity | Prefill | Sensitivity | Needle | Generation | LmEval, shortest: int, at: At, problem: Problem) -> None:
    if task.chunk is not None and task.chunk > shortest:
        problem((*at, "chunk"), f"chunk {task.chunk} is longer than the window: context is {shortest}")
    elif isinstance(task, Perplexity) and task.chunk == shortest and task.protocol == "deploy":
        problem((*at, "chunk"), f"chunk {task.chunk} is the exact prefill in protocol deploy and the whole window: context is {shortest}")


def _asked(task: Needle | Generation | LmEval, at: At, problem: Problem) -> None:
    """What prompts contradict."""
    if isinstance(task, Needle):
        _repeats(task.depth, (*at, "depth"), problem)
        if list(task.depth) != sorted(task.depth):
            problem((*at, "depth"), "depths must rise, from the beginning of the text to its end")
    elif isinstance(task, LmEval):
        _repeats(task.tasks, (*at, "tasks"), problem)


def _level(task: Storage, at: At, problem: Problem) -> None:
    try:
        entropy.coder(task.entropy).check(task.level)
    except ConfigError as error:
        problem((*at, "level"), str(error))


def _positions(task: Task, positions: dict[str, int], at: At, blame: At | None, problem: Problem) -> None:
    least = 0 if at[-1] == "depth" else 16
    for i, length in enumerate(task.context):
        for model, most in positions.items():
            if length > most:
                text = f"{at[-1]} {length} is longer than the {most} positions of {short(model)}; allowed are {least} to {most}"
                problem(blame or (*at, i), text)


def repeated(found: Sequence[tuple[str, Task]], problem: Problem) -> None:
    """No task twice. Only for suites without other mistakes: what is left of two wrong tasks may be alike by accident."""
    _repeats(found, ("tasks",), problem, "this task")


def gates(items: list[Any], labels: list[str] | None, kinds: set[str], problem: Problem) -> tuple[Gate, ...]:
    """The gates. Each pattern must match a scheme, unless not all schemes could be read (`labels` is None), and the metric must come from
    a task of the suite, unless not all of them could be (`kinds` is empty)."""
    found = []
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            problem(("gates", i), f"a gate is a mapping {{schemes: …, metric: …, limit: …}}, got {short(item)}")
        elif gate := validate(GateKeys, item, ("gates", i), problem):
            found.append(gate)
            if kinds and TASK_OF[gate.metric] not in kinds:
                problem(("gates", i, "metric"), f"{gate.metric} comes from the task {TASK_OF[gate.metric]}, which this suite does not have")
            if wrong := too_large(gate.metric, gate.limit):
                problem(("gates", i, "limit"), wrong)
            for pattern in gate.schemes if labels is not None else ():
                if not any(matches(pattern, label) for label in labels or ()):
                    problem(("gates", i, "schemes"), f"{short(pattern)} matches no scheme of this suite ({', '.join(labels or ())})")
    return tuple(found)


def priority(patterns: Sequence[str], names: Sequence[str], problem: Problem) -> None:
    """Each pattern must match a cell, by its label or its folder's name, as for -k."""
    for i, pattern in enumerate(patterns):
        if not any(matches(pattern, name) for name in names):
            known = ", ".join(dict.fromkeys(names[::2]))
            problem(("priority", i), f"{short(pattern)} matches no cell; give a scheme ({known}) or a pattern such as '*-decode-c8192-*'")


def decidable(found: Sequence[tuple[str, Task]], gates: Sequence[Gate], problem: Problem) -> None:
    """What is scored until gates are decided needs one, and windows enough for all of them."""
    for i, (kind, task) in enumerate(found):
        if not isinstance(task, Perplexity) or not isinstance(task.tokens, UntilDecided):
            continue
        metrics, longest = [gate.metric for gate in gates if gate.measured_by(kind)], max(task.context)
        if not metrics:
            problem(("tasks", i, kind, "tokens"), "there is no gate on what this task measures, so nothing would be decided; add `gates:`")
        elif task.tokens // longest < (needed := least(metric := max(metrics, key=least))):
            what = f"at most {task.tokens} tokens are fewer than the {needed} windows of {longest} that a verdict on {metric} needs"
            problem(("tasks", i, kind, "tokens"), what)


def included(found: Sequence[tuple[str, Task]], root: Path, problem: Problem) -> None:
    """Folders with definitions of tasks must be there."""
    for i, (kind, task) in enumerate(found):
        if isinstance(task, LmEval) and task.include_path and not _is_folder(root, task.include_path):
            problem(("tasks", i, kind, "include_path"), f"the folder {short(task.include_path)} does not exist")


def _is_folder(root: Path, path: str) -> bool:
    try:
        return (root / Path(path).expanduser()).is_dir()
    except (OSError, RuntimeError, ValueError):
        return False


def _repeats(values: Sequence[Any], at: At, problem: Problem, what: str = "") -> None:
    for i, value in enumerate(values):
        if value in values[:i]:
            problem((*at, i), f"{what or short(value)} is in the list already")


def _is_file(root: Path, path: str) -> bool:
    try:
        return (root / Path(path).expanduser()).is_file()
    except (OSError, RuntimeError, ValueError):
        return False

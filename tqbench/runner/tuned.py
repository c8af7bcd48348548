"""What a search leaves behind: the mix as a suite of its own, with what it was found by in its comments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import yaml

from tqbench.core.files import write_atomic
from tqbench.report.text import interval, number, plain
from tqbench.runner.mixing import to_yaml
from tqbench.runner.tune import Tuned
from tqbench.suite.load import load
from tqbench.suite.schema import Perplexity, Suite


def write(found: Tuned, suite: Suite, path: Path, command: str) -> None:
    """The best mix with the task that confirmed it and the limit as a gate. What is read back must be the same scheme."""
    assert found.best  # noqa: S101 - for the type checker: there is one, or nobody calls this
    write_atomic(path, render(found, suite, command).encode())
    (back,) = load([path])
    if back.schemes[0].definition() != found.best.scheme.definition():
        raise AssertionError(f"{path} does not read back to the scheme that was found")


def render(found: Tuned, suite: Suite, command: str) -> str:
    """The suite as text."""
    assert found.best  # noqa: S101 - as above
    (task,) = (task for _, task in suite.tasks if isinstance(task, Perplexity))
    trial = found.trial
    settings, skip = suite.settings, {"skip": trial.skip} if trial and trial.skip else {}
    keys = {"recipe": task.recipe, "context": task.context[0], "tokens": int(task.tokens), "warmup": task.warmup} | skip
    own = {"model": settings.model[0], "backend": settings.backend[0], "device": settings.device, "dtype": settings.dtype}
    gate = {"schemes": "tuned", "metric": "dppl", "limit": found.goal.max_dppl, "sided": found.goal.sided}
    return "\n".join(
        [
            *(f"# {plain(line)}" for line in story(found, suite, command)),
            *(_line(name, value) for name, value in {"name": "tuned", **own}.items()),
            _line("corpus", found.goal.confirm if "path" in found.goal.confirm else found.goal.confirm["name"]),
            *([_line("calibration", dataclasses.asdict(suite.calibration))] if found.best.scheme.calibrated else []),
            "schemes:",
            to_yaml(found.best.scheme),
            "tasks:",
            f"  - {_line('perplexity', keys)}",
            "gates:",
            f"  - {yaml.safe_dump(gate, default_flow_style=True, width=1000, sort_keys=False).strip()}",
            "",
        ]
    )


def _line(name: str, value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).removesuffix("...\n").strip()
    return f"{name}: {text}"


def story(found: Tuned, suite: Suite, command: str) -> Iterator[str]:
    """What was found, what was searched and what was not."""
    context = suite.tasks[0][1].context[0]
    searched, other = (str(one.get("path", one["name"])) for one in (suite.settings.corpus, found.goal.confirm))
    yield f"Found by: {command}"
    if found.best and (trial := found.trial):
        dppl = interval(trial.verdict.estimate or trial.record.metrics["dppl"], "dppl")
        yield f"{found.best.bytes:,.0f} bytes per token at {context} tokens, exact values at 16 bits. On {other} Δppl is {dppl}."
    if found.best and (rival := found.rival):
        more = f"{rival.bytes:,.0f} bytes, {100 * (rival.bytes / found.best.bytes - 1):+.1f} %"
        yield f"The cheapest given scheme that keeps the limit there, the same in all layers: {rival.name}, {more}."
    elif found.best:
        yield "None of the given schemes, the same in all layers, was shown to keep the limit there."
    if not found.best:
        what = "No mix was confirmed" if found.trials else "No mix of these schemes comes near enough on the searched text"
        yield f"{what}; a larger limit, or schemes of more bits, may do."
    probed = "each of them" if found.goal.thorough else found.reference
    yield f"Searched: {len(found.uniform)} schemes on {searched}, all sides of layers of {probed} alone; {len(found.mixes)} mixes whole."
    yield (
        f"A KLD of {number(found.target)} there stands for the limit: {number(found.ratio)} nats of ln ppl for each of KLD, and a baseline "
        f"of {number(found.base_ppl)} ppl on {other}."
    )
    yield from (f"In no mix: {name}, {why}." for name, why in found.left_out.items())
    yield (
        f"Not searched: other contexts than {context}, other windows and sinks than the schemes have, heads apart. How layers add to each "
        "other's damage is one factor, from whole mixes."
    )

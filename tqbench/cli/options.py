"""The options that `run` and `plan` share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tqbench.cli import complete

DTYPES = ("float32", "bfloat16", "float16", "float64")
Suites = Annotated[
    list[str],
    typer.Argument(help="Suite files, as suites/quickstart.yaml.", metavar="SUITE", show_default=False, autocompletion=complete.suites),
]
Only = Annotated[
    str | None,
    typer.Option(
        "-k",
        metavar="PATTERNS",
        help="Only cells whose scheme or folder matches: 'q8_0,turbo*', '*-c8192-*'. Baselines stay.",
        autocompletion=complete.labels,
    ),
]
HeadDim = Annotated[int, typer.Option(min=1, max=65536, help="Values per key; groups and padding depend on it.")]


Budget = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Leave out what would take longer, as 20m or 1h30m: as the suite's `priority` says. What is measured is free."
    ),
]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="Leave out cells that would need more, as 16g.")]
# One meaning everywhere: -o is where a command writes, --results is where runs are. For what measures, or plans to, these are one folder.
Results = Annotated[
    Path, typer.Option("--results", metavar="FOLDER", help="Where runs lie, as SUITE/RUN; a suite's name is looked up here.")
]
Runs = Annotated[
    Path,
    typer.Option(
        *("-o", "--output", "--results"),
        metavar="FOLDER",
        help="Where runs go, as SUITE/RUN. Those that lie here are continued, and times are learned from them, so all three names are one.",
    ),
]


def _instead(help_text: str, words: Callable[[str], list[str]] | None = None, metavar: str = "NAME") -> Any:
    return Annotated[str | None, typer.Option(metavar=metavar, help=help_text, autocompletion=words)]


# What stands in the place of a suite's own values: the fields of `Overrides`.
OVERRIDES: dict[str, Any] = {
    "model": _instead("Instead of the suite's: alias, directory, .gguf file or hub id.", complete.models),
    "corpus": _instead("Instead of the suite's: a known corpus or a text file.", complete.corpora),
    "backend": _instead("Instead of the suite's.", complete.backends),
    "device": _instead("Instead of the suite's: cpu, cuda, cuda:1, mps.", complete.of("cpu", "cuda", "mps")),
    "dtype": _instead("Instead of the suite's: float32, bfloat16, float16, float64.", complete.of(*DTYPES)),
    "kernel": _instead("auto, a form's name, or op=name for encode, decode, attend."),
    "sets": Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Instead of the suite's, any key: tasks.0.perplexity.tokens=2k. Items of lists count from 0."
        ),
    ],
    "bypass": _instead(
        "Skip the quantizer of every scheme: identity must cost exactly 0. Leaves the gates out.",
        complete.of("identity", "bridge"),
        "identity|bridge",
    ),
}


def overriding(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each of OVERRIDES; it gets them together, as its keyword `overrides`."""

    @functools.wraps(command)
    def filled(**given: Any) -> None:
        from tqbench.suite.schema import Overrides

        options = {name: given.pop(name) for name in OVERRIDES}
        command(overrides=Overrides(**options | {"sets": tuple(options["sets"] or ())}), **given)

    own = inspect.signature(command, eval_str=True, locals={"Overrides": object})
    options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in OVERRIDES.items()]
    shown = [option for p in own.parameters.values() for option in (options if p.name == "overrides" else [p])]
    vars(filled)["__signature__"] = own.replace(parameters=shown)  # what the command line library reads
    filled.__annotations__ = {p.name: p.annotation for p in shown}
    return filled

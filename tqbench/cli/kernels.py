"""`tqbench kernels`: the forms of each operation and the schemes they serve; Triton's compiled for GPUs that are not here, or tuned for the
one that is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tqbench.cli import table
from tqbench.core.errors import ConfigError
from tqbench.core.quantity import read_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tqbench.bench.tuning import Found
    from tqbench.kernels.triton import Config

EXAMPLES = """Examples:

tqbench kernels

tqbench kernels compile --schemes turbo4 --gpus sm_90

tqbench kernels tune --budget 5m
"""
TITLES = ("operation", "form", "runs on", "schemes>", "others are refused because")

app = typer.Typer(help="Which forms of the operations there are.", epilog=EXAMPLES, invoke_without_command=True)


@app.callback()
def kernels(context: typer.Context) -> None:
    """The forms of each operation, fastest first, and how many of the presets each serves."""
    if context.invoked_subcommand is None:
        from tqbench.cli import support

        table.show("", TITLES, support.rows())


@app.command("compile", epilog=EXAMPLES)
def compile_(
    schemes: Annotated[str | None, typer.Option(metavar="NAMES", help="As `tqbench bench`'s. [default: one of each kind]")] = None,
    gpus: Annotated[str | None, typer.Option(metavar="NAMES", help="sm_80, sm_86, sm_90, sm_100, sm_120. [default: all]")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/kernels.md.")] = False,
) -> None:
    """Compile the Triton kernels ahead of time. No GPU is needed; what each takes of a multiprocessor is shown."""
    from tqbench.bench import ahead
    from tqbench.cli import support

    wanted = ahead.wanted(schemes, gpus)
    if markdown:
        typer.echo(support.markdown(list(ahead.compile_all(wanted))), nl=False)
        return
    found = []
    for one in ahead.compile_all(wanted):
        typer.echo(f"{one.scheme} d{one.head_dim} {one.kernel} {one.gpu}", err=True)
        found.append(one)
    table.show("", support.COMPILED, support.compiled(found))


@app.command(epilog=EXAMPLES)
def tune(
    tokens: Annotated[int, typer.Option(metavar="N", help="Of the context.")] = 32768,
    budget: Annotated[str, typer.Option(metavar="TIME", help="When to stop, as 20m: what is wanted most comes first.")] = "150s",
) -> None:
    """Find better configurations of Triton's attention on this GPU, and store them with the kernels. Each is checked before it is timed,
    and replaces the one in use only if it is faster beyond doubt."""
    seconds = _seconds(budget)
    from tqbench.bench import tuning
    from tqbench.kernels import triton

    stored, number = 0, 0
    for found in tuning.tune(tokens, seconds):
        for line in _words(found):
            typer.echo(line)
        if found.better:
            triton.store({found.work: found.config})  # at once: it may be cut off
        stored, number = stored + found.better, number + 1
    typer.echo(f"{number} of {len(tuning.USES) * len(tuning.SCHEMES)} kinds of work within {budget}, {stored} stored in {triton.TABLE}")


def _seconds(text: str) -> float:
    try:
        return read_duration(text)
    except ValueError as error:
        raise ConfigError(f"--budget: {error}") from None


def _words(found: Found) -> Iterator[str]:
    """What came of one kind of work."""
    work = found.work
    name = f"{work.device} d{work.width} K {work.k_bits} V {work.v_bits} bits, {'decoding' if work.decoding else 'prefill'}"
    for config, error in found.wrong:
        yield f"{name}: dropped {_sizes(config)}: it computes something else, off by {error:.2g}"
    if found.ratio is None:
        yield f"{name}: {_sizes(found.used)} stays, of {found.tried} tried none was faster"
        return
    x = f"{found.ratio.median:.3f} x as fast [{found.ratio.low:.3f}, {found.ratio.high:.3f}], {found.tried} tried"
    if found.better:
        yield f"{name}: {_sizes(found.config)}, {x}; {_sizes(found.used)} before"
    else:
        yield f"{name}: {_sizes(found.used)} stays; {_sizes(found.config)} is {x}"


def _sizes(config: Config) -> str:
    return " ".join(f"{name} {value}" for name, value in asdict(config).items())

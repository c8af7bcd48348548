"""`tqbench kernels`: the forms of each operation and the schemes they serve; Triton's compiled for GPUs that are not here, or tuned for the
one that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tqbench.cli import table

if TYPE_CHECKING:
    from tqbench.kernels.triton import Work

EXAMPLES = """Examples:

tqbench kernels

tqbench kernels compile --schemes turbo4 --gpus sm_90

tqbench kernels tune
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
) -> None:
    """Find the best configuration of Triton's attention on this GPU for each width, format and use, and store it with the kernels."""
    from tqbench.bench import tuning
    from tqbench.kernels import triton

    for work, config in tuning.tune(tokens, lambda work, config, x: typer.echo(f"{_words(work)}: {config}, {x:.2f} x the default")):
        triton.store({work: config})  # at once: it takes long, and may be cut off
    typer.echo(f"stored in {triton.TABLE}")


def _words(work: Work) -> str:
    return f"{work.device} d{work.width} K {work.k_bits} V {work.v_bits} bits, {'decoding' if work.decoding else 'prefill'}"

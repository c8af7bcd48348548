"""`tqbench bench`: how fast the forms of an operation are here, beside what one could run instead and what memory allows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tqbench.bench.plan import DATA, SCHEMES, TOKENS, Wishes, read
from tqbench.cli import table
from tqbench.core.errors import worst

if TYPE_CHECKING:
    from tqbench.bench.result import Bench, Group

WRONG, NOTHING, INTERRUPTED = 4, 5, 130  # as an audit that failed; nothing measured
DEFAULTS = "; ".join(f"{op} {tokens}" for op, tokens in TOKENS.items())
CHOSEN = f"{SCHEMES['attend']}; kvtc {SCHEMES['kvtc']}"
EXAMPLES = """Examples:

tqbench bench

tqbench bench --tokens 4k --schemes turbo4,q8_0/turbo3 -o out

tqbench bench encode --tokens 32 --threads 1

tqbench bench kvtc --threads 2

tqbench bench --device cuda --tokens 4k,32k,128k

tqbench bench kvtc --device cuda

tqbench bench --shape "kv4 q32 d64" --data sink
"""


def bench(  # noqa: PLR0913 - each is an option
    op: Annotated[
        str, typer.Argument(help="attend, ablation (of its native form), encode, decode, or kvtc (stages).", metavar="[OP]")
    ] = Wishes.op,
    shape: Annotated[str, typer.Option(metavar="SHAPE", help="b sequences, kv KV heads, q query heads, d head_dim.")] = Wishes.shape,
    tokens: Annotated[
        str | None, typer.Option(metavar="COUNTS", help=f"Tokens in the cache, or to convert. [default: {DEFAULTS}]", show_default=False)
    ] = None,
    schemes: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=f"Schemes of `tqbench schemes`, or K/V. [default: {CHOSEN}]", show_default=False),
    ] = None,
    data: Annotated[str, typer.Option(metavar="KIND", help=f"{', '.join(DATA)}.")] = Wishes.data,
    architecture: Annotated[
        str, typer.Option(metavar="NAME", help="As in a model's config.json; decides the channel order of llama.cpp's types.")
    ] = Wishes.architecture,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Over all rows; those that would take more than 10 s run in fewer.")
    ] = Wishes.rounds,
    threads: Annotated[int | None, typer.Option(metavar="N", help="As torch is set up, if not given.")] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="cpu, or cuda: then Triton's forms, in a model of bfloat16.")
    ] = Wishes.device,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Where bench.json, .csv, .md, .svg and .png go, if at all.")
    ] = None,
) -> None:
    """Time the forms of an operation beside honest baselines and the memory limit. Each form is checked before it is timed."""
    plan = read(Wishes(op, shape, tokens, schemes, data, architecture, rounds, threads, device))
    from tqbench.bench.run import run

    with _progress() as note:
        found = run(plan, note)
    if output:
        from tqbench.report.bench import write

        if found.unmeasured and (output / "bench.json").exists():
            output /= "interrupted"  # what was measured as a whole stays
        write(found, output)
    _show(found)
    if output:
        typer.echo(f"\nresults  {output}")
    raise typer.Exit(_code(found))


def _show(found: Bench) -> None:
    from tqbench.report.bench_table import facts, words

    typer.echo("\n".join(facts(found)))
    for group in found.groups:
        _group(found, group)
    typer.echo()
    table.show("Rows", ("", ""), words(found).items())


def _group(found: Bench, group: Group) -> None:
    from tqbench.report.bench_table import cells, columns, heading, notes
    from tqbench.report.text import plain

    typer.echo()
    titles = ["row", *(f"{column.title}>" for column in columns(found))]
    table.show(heading(group), titles, (cells(found, row) for row in group.rows if row.outcome == "ok"))
    for line in notes(group):
        typer.echo(plain(line))


def _code(found: Bench) -> int:
    """A form that computes something else fails the command; one that was interrupted has written what it had."""
    wrong = [WRONG] if any(row.outcome in ("wrong", "failed") for row in found.rows) else []
    if found.unmeasured and not wrong:
        return INTERRUPTED
    return worst([*wrong, 0 if any(row.timing for row in found.rows) else NOTHING])


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being done: one line that changes on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: typer.echo(text, err=True)
        return
    from rich.console import Console

    with Console(stderr=True, markup=False).status("") as status:
        yield status.update

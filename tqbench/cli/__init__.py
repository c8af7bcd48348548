"""The command line: one file per command, which parses, calls one function, and prints.

Commands import what they need when they are called, so that `tqbench --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tqbench.cli import bench, check, compare, doctor, gate, imports, kernels, models, plan, report, run, runs, schema, schemes, tune

app = typer.Typer(
    help="Benchmark and quality validation for KV-cache quantization.",
    epilog="Exit codes: 0 passed · 1 a gate failed · 2 usage or suite · 3 a cell did not complete · 4 an audit failed · "
    "5 inconclusive or nothing measured · 70 internal error · 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from tqbench import __version__

        typer.echo(f"tqbench {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


app.command("run", epilog=run.EXAMPLES)(run.run)
app.command("plan", epilog=plan.EXAMPLES)(plan.plan)
app.command("tune", epilog=tune.EXAMPLES)(tune.tune)
app.command("gate", epilog=gate.EXAMPLES)(gate.gate)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("report", epilog=report.EXAMPLES)(report.report)
app.command("import", epilog=imports.EXAMPLES)(imports.take_in)
app.command("runs", epilog=runs.EXAMPLES)(runs.runs)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.add_typer(kernels.app, name="kernels")
app.add_typer(schemes.app, name="schemes")
app.add_typer(check.app, name="check")
app.add_typer(models.app, name="models")
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("schema", epilog=schema.EXAMPLES)(schema.schema)

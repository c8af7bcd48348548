"""The options that `run` and `plan` share."""

from __future__ import annotations

from typing import Annotated

import typer

Suites = Annotated[list[str], typer.Argument(help="Suite files, as suites/quickstart.yaml.", metavar="SUITE", show_default=False)]
Only = Annotated[
    str | None,
    typer.Option("-k", metavar="PATTERNS", help="Only cells whose scheme or folder matches: 'q8_0,turbo*', '*-c8192-*'. Baselines stay."),
]
Model = Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the suite's: alias, directory, .gguf file or hub id.")]
Corpus = Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the suite's: a known corpus or a text file.")]
Backend = Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the suite's.")]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the suite's: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the suite's: float32, bfloat16, float16, float64.")]
Kernel = Annotated[str | None, typer.Option(metavar="NAME", help="auto, a form's name, or op=name for encode, decode, attend.")]
Bypass = Annotated[
    str | None,
    typer.Option(metavar="identity|bridge", help="Skip the quantizer of every scheme: identity must cost exactly 0. Leaves the gates out."),
]

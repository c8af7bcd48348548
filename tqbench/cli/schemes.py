"""`tqbench schemes`: every scheme there is, with its bits per value."""

from __future__ import annotations

from typing import Annotated

import typer

from tqbench.cli import table

COLUMNS = ("scheme", "bits K>", "bits V>", "family", "note · source")


def schemes(
    head_dim: Annotated[int, typer.Option(min=1, max=65536, help="Values per key; groups and padding depend on it.")] = 64,
) -> None:
    """List the schemes: presets, and those of installed packages."""
    from tqbench.core.scheme import presets

    table.show("", COLUMNS, [_row(name, head_dim) for name in presets()])


def _row(name: str, head_dim: int) -> tuple[str, ...]:
    from tqbench.core.errors import Unsupported
    from tqbench.core.scheme import preset

    scheme = preset(name)
    try:
        scheme.check(head_dim)
        bits, note = [f"{value:.4g}" for value in scheme.bits(head_dim)], scheme.note
    except Unsupported as reason:
        bits, note = ["–", "–"], f"unsupported: {reason}"
    return (scheme.name, *bits, scheme.family, " · ".join(filter(None, (note, scheme.source))))

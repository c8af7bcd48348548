"""What other tools measured, as rows: each says with what it was measured, and why it does not say what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Fact = str | int | float | bool
# Every row says them, or why it cannot.
FACTS = ("version", "model", "cache_k", "cache_v", "corpus", "context", "chunks", "stride", "bos")
LONGEST = 500  # characters of a name: files of others may hold any


@dataclass(frozen=True)
class Figure:
    """A number as the tool gives it; its error is what the tool means by it: standard, or over repetitions. No number has a reason."""

    value: float | None
    error: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Row:
    """One measurement of another tool."""

    tool: str
    recipe: str  # in words: what was run, and what of it was scored
    label: str  # what tells it from others of the same table
    source: str  # the file, and where in it
    facts: dict[str, Fact]
    unknown: dict[str, str]  # FACTS that the file does not say, each with the reason
    figures: dict[str, Figure]
    caveat: str  # why it may not be held against rows of tqbench


def facts(known: Mapping[str, Fact | None], why: Mapping[str, str]) -> tuple[dict[str, Fact], dict[str, str]]:
    """What is known, and of the rest of FACTS the reasons; a missing reason is a mistake here, not in a file."""
    found = {name: storable(value) if isinstance(value, str) else value for name, value in known.items() if value is not None}
    return found, {name: why[name] for name in FACTS if name not in found}


def figure(value: float | None, error: float | None = None, why: str = "the file has none", scale: float = 1.0) -> Figure:
    """A finite number; NaN and infinity are no numbers, and it says that the tool printed them."""
    if value is None:
        return Figure(None, why=why)
    if not math.isfinite(value * scale):
        return Figure(None, why=f"the tool printed {value}")
    spread = error * scale if error is not None and math.isfinite(error * scale) else None
    return Figure(value * scale, spread)


def storable(text: str) -> str:
    """Text that fits into a file of ours: no halves of characters, and of bounded length."""
    whole = text.encode("utf-8", "replace").decode()
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1]}…"

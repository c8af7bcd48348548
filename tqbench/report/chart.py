"""A figure of a report: what it shows in words, the drawing, and the numbers that are drawn."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tqbench.report.draw import Drawing
from tqbench.report.text import plain


@dataclass(frozen=True)
class Chart:
    """A figure, the setting that it shows (None: several), what it says in words, and its numbers, a row for each mark."""

    name: str
    setting: str | None
    caption: str
    drawing: Drawing
    data: tuple[dict[str, Any], ...]

    @cached_property
    def svg(self) -> str:
        """The drawing, with text as text."""
        return self.drawing.write().decode()

    @property
    def wide(self) -> bool:
        """Whether it needs the whole width of a page."""
        return self.drawing.size[0] > 8

    def csv(self) -> str:
        """The numbers, in full precision."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in self.data for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: plain(value) if isinstance(value, str) else value for key, value in row.items()} for row in self.data)
        return text.getvalue()

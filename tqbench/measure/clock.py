"""The only reader of clocks."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def seconds() -> float:
    """A monotonic clock, in seconds."""
    return time.perf_counter()


def stamp() -> str:
    """Now, in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Amounts of time and memory, as people write and read them."""

from __future__ import annotations

import re

TIMES = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
SIZES = {"k": 10, "m": 20, "g": 30, "t": 40}


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float, decimals: int = 1) -> str:
    """Bytes."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.{decimals}f} {unit}"
        count /= 1024
    return f"{count:.{decimals}f} GiB"


def read_duration(text: str) -> float:
    """`90s`, `20m`, `1.5h`, `1h30m` in seconds; ValueError says how it is written."""
    text = text.strip().lower()
    parts = re.findall(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(min|[smhd])", text)
    seconds = sum(float(number) * TIMES[unit] for number, unit in parts)
    if not parts or "".join(map("".join, parts)) != text:
        raise ValueError(f"{text!r} is no time; write a number with its unit, as 90s, 20m, 1.5h or 1h30m")
    if not seconds:
        raise ValueError(f"{text!r} leaves no time for anything; give more than 0, as 90s, 20m, 1.5h or 1h30m")
    return seconds


def read_size(text: str) -> int:
    """`512m`, `16g`, `16GiB` in bytes, in powers of 1024; ValueError says how it is written."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([kmgt])(?:i?b)?", text.strip().lower())
    if not found:
        raise ValueError(f"{text!r} is no size; write a number with its unit, as 512m, 16g or 16GiB (powers of 1024)")
    if not float(found[1]):
        raise ValueError(f"{text!r} leaves no room for anything; give more than 0, as 512m, 16g or 16GiB (powers of 1024)")
    return int(float(found[1]) * (1 << SIZES[found[2]]))

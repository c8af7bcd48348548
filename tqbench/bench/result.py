"""What a benchmark found, as plain data: every row with its samples, what was said about the noise, and what could not run, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tqbench.metrics.timing import Ratio, Spread

SCHEMA = "tqbench.bench/1"
BEST = "the fastest uncompressed torch row"  # as a rival: whichever of the group it is
DIGITS = 5  # of a sample in the file: finer than any clock's noise


@dataclass(frozen=True)
class Ceiling:
    """How fast this many threads read memory here, over the whole benchmark; None with the reason where it cannot be known."""

    gbps: float | None
    threads: int
    buffer_bytes: int = 0
    samples: tuple[float, ...] = ()  # GB/s
    reason: str | None = None


@dataclass(frozen=True)
class Round:
    """One pass over all rows of a group. `foreign` is how many cores others used meanwhile, None where the system does not tell; in a long
    round it is that during its short or its long rows, whichever is more."""

    foreign: float | None
    disturbed: bool | None


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call. `rounds` says in which round of the group each sample was taken; figures come from `quiet` rounds unless
    there was none."""

    calls: int  # in each sample, in turn over the copies
    copies: int  # of the cache, so that none of it is still in the processor's own
    samples: tuple[float, ...]
    rounds: tuple[int, ...]
    quiet: int
    spread: Spread
    gbps: float
    share: float | None = None  # of the ceiling
    ratios: dict[str, Ratio] = field(default_factory=dict)  # a baseline's time over this one's


@dataclass(frozen=True)
class Row:
    """One form of the operation on one scheme's cache, or a baseline (then `scheme` is what it decodes, or None)."""

    tokens: int
    scheme: str | None
    form: str
    role: Literal["form", "baseline"]
    words: str
    outcome: Literal["ok", "unsupported", "wrong", "failed"] = "ok"
    reason: str | None = None
    implementation_error: float | None = None
    implementation_error_after: float | None = None
    tolerance: float | None = None
    quantization_error: float | None = None
    bytes_moved: int | None = None
    limit_ms: float | None = None  # bytes at the ceiling
    timing: Timing | None = None
    components: int | None = None  # where time is drawn against these
    stages: dict[str, float] | None = None  # milliseconds of one more call with marks, the median of three; `unexplained` is between them

    @property
    def name(self) -> str:
        """How other rows of the group refer to it."""
        return f"{self.scheme}/{self.form}" if self.scheme else self.form


@dataclass(frozen=True)
class Group:
    """All rows of one number of tokens, timed in the same rounds."""

    tokens: int
    rows: tuple[Row, ...]
    rounds: tuple[Round, ...]
    best: str | None = None  # of the uncompressed torch rows that were right, the one of the smallest median
    notes: tuple[str, ...] = ()  # what else is to be known of its times

    @property
    def quiet(self) -> int:
        """Rounds in which nobody else is known to have used the processor."""
        return sum(not r.disturbed for r in self.rounds)


@dataclass(frozen=True)
class Bench:
    """A whole benchmark."""

    op: str
    shape: str
    architecture: str
    data: str
    environment: dict[str, Any]
    ceiling: Ceiling
    groups: tuple[Group, ...]
    comparisons: dict[str, str]  # what tables compare with, in words -> a row's name, {scheme} being the row's own, or BEST
    unmeasured: tuple[int, ...] = ()  # token counts that were still to come when it was interrupted

    @property
    def rows(self) -> list[Row]:
        """Of all groups."""
        return [row for group in self.groups for row in group.rows]

    def to_data(self) -> dict[str, Any]:
        """For `bench.json`."""
        data: dict[str, Any] = _rounded({"schema": SCHEMA, **asdict(self)})
        return data


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, tuple | list) else value

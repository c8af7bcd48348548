"""A gate: a limit on a metric, for every scheme whose label matches."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal


@dataclass(frozen=True)
class Gate:
    """A limit on a metric of every scheme whose label matches one of the patterns."""

    schemes: tuple[str, ...]
    metric: str
    limit: float
    sided: Literal["one", "two"] = "two"
    expect: Literal["pass", "fail"] = "pass"
    required: bool = True

    @staticmethod
    def of(data: dict[str, Any]) -> Gate:
        """From JSON, where the patterns are a list."""
        return Gate(**{**data, "schemes": tuple(data["schemes"])})

    def covers(self, label: str) -> bool:
        """Whether this gate judges the scheme of that label."""
        return any(matches(pattern, label) for pattern in self.schemes)


def matches(pattern: str, label: str) -> bool:
    """`*` and `?` are wildcards; brackets are not, because labels such as turbo4[identity] have them."""
    return fnmatchcase(label, pattern.replace("[", "[[]"))

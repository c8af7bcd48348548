"""What the command line puts in the place of what suite files say: `--set tasks.0.perplexity.tokens=2k`; `--model X` is `--set model=X`.

Every such option becomes one `Assignment`, and a mistake in its value is reported with the option in the place of a line.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, fields
from typing import Any

from tqbench.core.errors import ConfigError, unknown
from tqbench.suite import document
from tqbench.suite.document import At
from tqbench.suite.schema import KEYS, Overrides, Settings
from tqbench.suite.validate import short

FORM = "give a key and its value, as tasks.0.perplexity.tokens=2k"


@dataclass(frozen=True)
class Assignment:
    """A value for the key or item at a path, and the option that gave it."""

    flag: str
    at: At
    value: Any


def assignments(overrides: Overrides) -> list[Assignment]:
    """All of them in their order, the options with names of their own first; ConfigError with every one that cannot be read."""
    found = [Assignment(f"--{key}", (key,), value) for key in KEYS if (value := getattr(overrides, key)) is not None]
    problems = []
    for text in overrides.sets:
        try:
            found.append(_read(text))
        except ValueError as error:
            problems.append(f"--set {text}: {error}")
    if problems:
        raise ConfigError(problems)
    return found


def apply(data: dict[str, Any], wanted: list[Assignment]) -> tuple[dict[str, Any], list[str]]:
    """The data with the values in their places, and what is wrong with the places."""
    found, problems = copy.deepcopy(data), []
    for one in wanted:
        try:
            _put(found, one)
        except ValueError as error:
            problems.append(f"{one.flag}: {error}")
    return found, problems


def _read(text: str) -> Assignment:
    path, equals, value = text.partition("=")
    parts = path.split(".")
    if not equals or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in parts):
        raise ValueError(FORM)
    at = tuple(int(part) if part.isdecimal() else part for part in parts)
    if isinstance(at[0], int):
        raise ValueError(f"a path begins with a key of the suite, got {at[0]}; {FORM}")
    return Assignment(f"--set {path}", at, _value(value))


def _value(text: str) -> Any:
    """The text as YAML, read as suites are: `2k` and `true` mean there what they mean here."""
    if "\n" in text:
        raise ValueError("the value must be one line of YAML")
    read = document.parse(f"value: {text}")
    if read.problems or read.data is None:
        raise ValueError(
            "; ".join(what for _, what in read.problems) + f"; quote it, or write a list as [a, b], a mapping as {{a: b}}: {text!r}"
        )
    return read.data["value"]


def _put(data: dict[str, Any], one: Assignment) -> None:
    *way, last = one.at
    known = [field.name for field in fields(Settings)]
    inside: Any = data
    for i, part in enumerate(way):
        if not i and part in known:
            inside = data.setdefault(part, {})
        elif isinstance(inside, dict) and isinstance(part, str):
            inside = inside[_key(inside, part, one.at[:i], known)]
        else:
            inside = inside[_item(inside, part, one.at[:i])]
    if isinstance(inside, dict) and isinstance(last, str):  # a key that nobody knows is refused when the suite is checked
        inside[last] = one.value
    else:
        inside[_item(inside, last, one.at[:-1])] = one.value


def _key(inside: dict[str, Any], part: str, at: At, known: list[str]) -> str:
    """A key that something lies under; ValueError says which there are."""
    if part in inside:
        return part
    where = f"{'.'.join(map(str, at))}: " if at else ""
    instead = f"; or set {'.'.join(map(str, (*at, part)))} as a whole, as a mapping" if at else ""
    raise ValueError(f"{where}{unknown('key', part, inside if at else known)}{instead}")


def _item(inside: Any, part: str | int, at: At) -> int:
    """The place of an item in a list; ValueError says what would have been one."""
    where = ".".join(map(str, at))
    if isinstance(inside, dict):
        raise ValueError(f"{where} is a mapping, whose keys are words ({', '.join(map(str, inside))}), got {part}")
    if not isinstance(inside, list):
        raise ValueError(f"{where} is {short(inside)} and has no {part!r} in it; set {where} as a whole")
    if isinstance(part, int) and part < len(inside):
        return part
    names = [_name(item) for item in inside]
    allowed = ", ".join(f"{i} {name}".rstrip() for i, name in enumerate(names))
    hint = f"; did you mean {where}.{names.index(part)}?" if part in names else ""
    raise ValueError(f"{where} is a list of {len(inside)} and takes a number{hint} (allowed: {allowed or 'none, it is empty'}), got {part}")


def _name(item: Any) -> str:
    """What people call an item: its name, or its only key."""
    if isinstance(item, dict):
        return str(item.get("name", item.get("scheme", next(iter(item), ""))))
    return str(item) if isinstance(item, str | int) else ""

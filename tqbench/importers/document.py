"""JSON of others, read with its lines: whatever is not as it must be is said with file, line and key."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from tqbench.core.errors import ConfigError

Key = str | int
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+|\n', re.DOTALL)
SHOWN = 60  # characters of a wrong value
MOST = 1 << 62  # of a whole number: nothing that is counted has more


class _Twice(ValueError):
    """An object that has a key twice."""


@dataclass(frozen=True)
class Node:
    """A value of a document, and where it stands: its keys from the top, in the text that begins at line `first` of the file."""

    name: str
    text: str
    value: Any
    path: tuple[Key, ...] = ()
    first: int = 1

    @property
    def line(self) -> int:
        """The line in which the value begins; of what is not there, that of what lacks it."""
        places = _places(self.text)
        return self.first + next((places[self.path[:n]] for n in range(len(self.path), -1, -1) if self.path[:n] in places), 0)

    @property
    def where(self) -> str:
        """File and key."""
        return f"{self.name}:{self.line}" if not self.path else f"{self.name}:{self.line}: {'.'.join(map(str, self.path))}"

    def wrong(self, must: str) -> NoReturn:
        """Refuse the file."""
        shown = json.dumps(self.value, default=str)[:SHOWN] if not isinstance(self.value, (dict, list)) else f"a {_kind(self.value)}"
        raise ConfigError(f"{self.where} must be {must}, {'it is missing' if self.value is None else f'is {shown}'}")

    def at(self, key: Key) -> Node:
        """What lies under a key; its value is None if nothing does."""
        inside = self.value
        there = (isinstance(inside, dict) and key in inside) or (isinstance(inside, list) and isinstance(key, int) and key < len(inside))
        return Node(self.name, self.text, inside[key] if there else None, (*self.path, key), self.first)

    def mapping(self) -> Node:
        """Itself, if it is an object."""
        return self if isinstance(self.value, dict) else self.wrong("an object")

    def items(self) -> Iterator[tuple[str, Node]]:
        """The members of an object."""
        yield from ((key, self.at(key)) for key in self.mapping().value)

    def each(self) -> Iterator[Node]:
        """The items of a list."""
        if not isinstance(self.value, list):
            self.wrong("a list")
        yield from (self.at(i) for i in range(len(self.value)))

    def word(self) -> str:
        """A text."""
        return self.value if isinstance(self.value, str) else self.wrong("a text")

    def maybe_word(self) -> str | None:
        """A text, or None where there is none."""
        return None if self.value is None else self.word()

    def number(self, *, least: float | None = None) -> float:
        """A number; NaN and infinity, which JSON of Python may hold, are left to the reader."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (isinstance(value, int) and abs(value) > MOST):
            self.wrong("a number")
        if least is not None and value < least:
            self.wrong(f"{least:g} or more")
        return float(value)

    def maybe_number(self, *, least: float | None = None) -> float | None:
        """A number, or None where there is none."""
        return None if self.value is None else self.number(least=least)

    def whole(self) -> int:
        """A count."""
        value = self.value
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST else self.wrong("a whole number")

    def maybe_whole(self) -> int | None:
        """A count, or None where there is none."""
        return None if self.value is None else self.whole()


def parse(name: str, text: str, first: int = 1) -> Node:
    """A whole document. `first` is the line of the file at which the text begins."""
    try:
        return Node(name, text, json.loads(text, object_pairs_hook=_once), (), first)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{first + error.lineno - 1}: this is not JSON: {error.msg} at column {error.colno}") from error
    except _Twice as error:
        raise ConfigError(f"{name}:{_second(text, str(error), first)}: {str(error)!r} stands twice in one object") from error
    except RecursionError as error:
        raise ConfigError(f"{name}:{first}: values lie too deep in each other for a result") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{name}:{first}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key)
        found[key] = value
    return found


def _second(text: str, key: str, first: int) -> int:
    """The line where a key that stands twice in one object does so again."""
    seen: set[tuple[Key, ...]] = set()
    for path, line in _walk(text):
        if path in seen and path[-1:] == (key,):
            return first + line
        seen.add(path)
    return first


@functools.lru_cache(maxsize=1)
def _places(text: str) -> dict[tuple[Key, ...], int]:
    """How many lines lie above each value."""
    return dict(_walk(text))


def _walk(text: str) -> Iterator[tuple[tuple[Key, ...], int]]:
    """Every value's path, and how many lines lie above it."""
    place, line, known = _Place(), 0, True
    for match in _WORD.finditer(text):
        word = match.group()
        if known and word not in "\n,:}]":
            yield tuple(place.path), line
            known = False
        known = place.moves(word) or (known and word in "\n:")
        line += word.count("\n")


class _Place:
    """Where one is in a JSON text, word by word."""

    def __init__(self) -> None:
        self.path: list[Key] = []
        self.names = False  # whether the next text is a key

    def moves(self, word: str) -> bool:
        """Take a word; whether a value's place is now known."""
        if word in ("{", "["):
            self.path.append("" if word == "{" else 0)
        elif word in ("}", "]"):
            del self.path[-1:]
        elif word == "," and self.path and isinstance(self.path[-1], int):
            self.path[-1] += 1
            return True
        elif self.names and self.path and word.startswith('"'):
            self.path[-1] = str(json.loads(word, strict=False))
            self.names = False
            return True
        if word in ("{", ",", "[", "}", "]", ":"):
            self.names = word in ("{", ",") and bool(self.path) and isinstance(self.path[-1], str)
        return word == "["


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "mapping"

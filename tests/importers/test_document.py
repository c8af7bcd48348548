"""Lines of JSON, held to a walk that knows nothing of text; and what is refused with them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tqbench.core.errors import ConfigError
from tqbench.importers.document import _places, parse

WORDS = ("plain", 'a"b\n{', "[,:", "", "\\", "ü")


def made(rng: random.Random, depth: int) -> Any:
    """Any JSON value, with keys and texts that look like its own marks."""
    kind = rng.randrange(5)
    if depth == 0 or kind < 2:
        return rng.choice([1, 2.5, True, None, *WORDS])
    count = rng.randrange(4)
    if kind < 4:
        return {f"{rng.choice(WORDS)}{i}": made(rng, depth - 1) for i in range(count)}
    return [made(rng, depth - 1) for _ in range(count)]


def values(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, node
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from values(value, (*path, key))


def test_every_value_is_found_in_its_line() -> None:
    rng = random.Random(0)  # noqa: S311 - values, not secrets
    for _ in range(300):
        data = made(rng, 5)
        for indent in (None, 1):
            text = json.dumps(data, indent=indent)
            places, lines = _places(text), text.split("\n")
            assert set(places) == {path for path, _ in values(data)}
            for path, value in values(data):
                begin = json.dumps(value)[0] if isinstance(value, (dict, list)) else json.dumps(value)
                assert begin in lines[places[path]]
                assert parse("x", text, 10).at(path[0]).line >= 10 if path else True


REFUSED = {
    "a key twice": ('{"a": {"b": 1},\n "c": {"b": 2,\n  "b": 3}}', "x.json:3: 'b' stands twice"),
    "cut off": ('{"a": [1,\n', "x.json:2: this is not JSON"),
    "too deep": ("[" * 100_000, "x.json:1: values lie too deep"),
    "a number of thousands of digits": (f'{{"a": 1{"0" * 5000}}}', "x.json:1: Exceeds the limit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_json_is_refused_with_its_line(case: str) -> None:
    text, said = REFUSED[case]
    with pytest.raises(ConfigError, match=said):
        parse("x.json", text)


def test_what_is_not_as_it_must_be_is_said_with_file_line_and_key() -> None:
    top = parse("x.json", '{\n "a": {\n  "b": "word",\n  "n": 1e999, "big": 99999999999999999999, "yes": true}}')
    node = top.at("a")
    for wrong, said in (
        (node.at("b").number, 'x.json:3: a.b must be a number, is "word"'),
        (node.at("missing").word, "x.json:2: a.missing must be a text, it is missing"),
        (node.at("big").number, "x.json:4: a.big must be a number, is 99999999999999999999"),
        (node.at("yes").whole, "x.json:4: a.yes must be a whole number, is true"),
        (node.at("b").mapping, 'x.json:3: a.b must be an object, is "word"'),
        (top.whole, "x.json:1 must be a whole number, is a mapping"),
    ):
        with pytest.raises(ConfigError) as refused:
            wrong()
        assert str(refused.value) == said
    assert node.at("n").number() == float("inf")  # the reader of a figure says that it is none

"""A thousand damaged files: each is refused with its name, or read into rows that keep what rows promise. Never a traceback."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tqbench.__main__ import main
from tqbench.core.errors import ConfigError
from tqbench.importers import folder
from tqbench.importers.row import FACTS
from tqbench.report import foreign, latex, markdown, page

SAMPLES = sorted(path for path in (Path(__file__).parent / "samples").iterdir() if path.suffix != ".md")
SEED, MUTANTS = 8, 1000
HOSTILE = (
    "<script>alert(1)</script>",
    "a|b`*_[x](javascript:alert(1))",
    "\x1b[31mred\x1b[0m\x00",
    "\\ud800 half a character",
    "'; DROP TABLE rows; --",
    "long " * 2000,
    "\u202ereversed",
    "../../../etc/passwd",
    "{{ 7 * 7 }}",
    "$\\input{secret}$",
)
NUMBERS = (
    b"1e999",
    b"-1e999",
    b"9" * 400,
    b"9" * 5000,
    b"NaN",
    b"nan",
    b"-nan",
    b"inf",
    b"Infinity",
    b"-1",
    b"0",
    b"1e-320",
    b"1_0",
    b"0x10",
)
VALUES: tuple[Any, ...] = (None, True, [], {}, "text", -1, 1.5, float("nan"), float("inf"), 10**30, [[[]]], {"a": {"b": []}}, *HOSTILE)


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randrange(1, 20)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def overwritten(data: bytes, rng: random.Random) -> bytes:
    first = rng.randrange(len(data))
    return data[:first] + rng.randbytes(rng.randrange(1, 64)) + data[first + rng.randrange(64) :]


def reordered(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return b"\n".join(lines)


def without_a_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    del lines[rng.randrange(len(lines))]
    return b"\n".join(lines)


def with_a_line_twice(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    return b"\n".join([*lines[:i], lines[i], *lines[i:]])


def renumbered(data: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"\d+(?:\.\d+)?", data))
    if not found:
        return data + rng.choice(NUMBERS)
    chosen = rng.choice(found)
    return data[: chosen.start()] + rng.choice(NUMBERS) + data[chosen.end() :]


def renamed(data: bytes, rng: random.Random) -> bytes:
    """A word of a name becomes a hostile one."""
    found = list(re.finditer(rb"[A-Za-z][\w./-]{3,}", data))
    if not found:
        return data + rng.choice(HOSTILE).encode()
    chosen = rng.choice(found)
    return data[: chosen.start()] + rng.choice(HOSTILE).encode() + data[chosen.end() :]


def retyped(data: bytes, rng: random.Random) -> bytes:
    """A value of a JSON document becomes another; of what is none, a line."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return renumbered(data, rng)
    node = document
    while isinstance(node, (dict, list)):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return json.dumps(rng.choice(VALUES)).encode()
        key = rng.choice(keys)
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.2:
            node[key] = rng.choice(VALUES)
            return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        node = node[key]
    return json.dumps(rng.choice(VALUES)).encode()


def nested(data: bytes, rng: random.Random) -> bytes:
    first = rng.randrange(len(data))
    return data[:first] + rng.choice((b"[", b'{"a":')) * rng.choice((10, 900, 100_000)) + data[first:]


def wide(data: bytes, rng: random.Random) -> bytes:
    return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "cp1252")), "replace")


def doubled(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"", b"\n", b",")) + data


def empty(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\n", b"[]", b"{}", b"null", b"[null]", b'{"results": {}}', b'"text"', b"\xff\xfe", b"[1]"))


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(truncated, flipped, overwritten, reordered, without_a_line, with_a_line_twice, renumbered, renamed, retyped, retyped, retyped),
    *(renumbered, renamed, nested, wide, doubled, empty),
)


def mutant(number: int) -> tuple[str, bytes, str]:
    """A damaged sample: the same one for the same number."""
    rng = random.Random(SEED * 10_000 + number)  # noqa: S311 - damage, not secrets
    sample = SAMPLES[number % len(SAMPLES)]
    data = sample.read_bytes()
    used = [rng.choice(MUTATIONS) for _ in range(rng.choice((1, 1, 1, 2)))]
    for mutate in used:
        data = mutate(data, rng) if data else data
    return sample.name, data, " ".join(mutate.__name__ for mutate in used)


class Tags(HTMLParser):
    """What is an element on a page, and not text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]


def keeps_its_promises(imports: folder.Imports, where: Path) -> None:
    assert imports.rows
    for row in imports.rows:
        assert all(isinstance(row.facts.get(key), (str, int, float, bool)) != (key in row.unknown) for key in FACTS)
        assert all(row.unknown.values())
        assert row.figures
        for figure in row.figures.values():
            assert (figure.value is None) == bool(figure.why)
            assert figure.value is None or math.isfinite(figure.value)
            assert figure.error is None or math.isfinite(figure.error)
    path = folder.write(imports, where)
    assert folder.load(where) == imports
    path.unlink()


def taken(file: Path) -> tuple[folder.Imports | None, list[str]]:
    """What is read, or every problem that is said. Anything else is a mistake."""
    try:
        return folder.take_in([file]), []
    except ConfigError as error:
        return None, error.problems


def test_a_thousand_damaged_files(tmp_path: Path) -> None:
    read, refused = [], 0
    for number in range(MUTANTS):
        name, data, how = mutant(number)
        file = tmp_path / name
        file.write_bytes(data)
        imports, problems = taken(file)
        if imports is None:
            assert problems
            assert all(name in line and len(line) < 2000 for line in problems), (number, how)
            refused += 1
            continue
        keeps_its_promises(imports, tmp_path / "imported")
        read.append(imports)
        tables = foreign.tables([imports])
        assert "<script" not in "".join(markdown.measured_elsewhere(tables)).lower(), (number, how)
        latex.measured_elsewhere(tables)
        foreign.render_csv([imports])
    assert refused > MUTANTS // 4, "the damage is too small to be seen"
    assert len(read) > MUTANTS // 20, "nothing but refusals: names and numbers were never read"
    tags = Tags()
    tags.feed(page.several([], [], foreign.tables(read)))
    assert tags.found.count("script") == 1, "a name became an element"
    assert not {"iframe", "img", "object"} & set(tags.found)


@pytest.mark.parametrize("number", range(0, 200, 13))
def test_the_command_ends_with_a_sentence(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    name, data, how = mutant(number)
    (tmp_path / name).write_bytes(data)
    code = main(["import", name, "-o", "imported"])
    out, err = capsys.readouterr()
    assert code in (0, 2), (how, err)
    assert (code == 2) == bool(err)
    assert "Traceback" not in out + err
    assert "\x1b" not in out + err
    if code == 0:
        assert main(["report", "imported", "--page", "page"]) == 0
        assert (tmp_path / "page" / "index.html").is_file()

"""YAML as plain data, with the line of every key and item. Only what a suite needs: no tags, no anchors, words as keys.

PyYAML composes the nodes; they are turned into data here, because its own constructors merge duplicate keys in silence, read `0512`
as octal and `1:30` as ninety, and know nothing of lines.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tqbench.core.errors import MOST_NAMES

At = tuple[str | int, ...]

LARGEST = 1_000_000  # bytes; a suite has a few hundred
DEEPEST = 30
READY = Path("suites")  # that come with the project
SOURCES = Path(__file__).parents[2] / READY  # where tqbench runs from its sources, or is installed from them in place; else not there
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass
class Document:
    """A file's data, where each part stands, and what is wrong with its form: (line or None, what)."""

    data: dict[str, Any] | None = None  # None if the file holds no mapping
    lines: dict[At, int] = field(default_factory=dict)
    problems: list[tuple[int | None, str]] = field(default_factory=list)

    def line(self, at: At) -> int:
        """The line of that key or item, or of the nearest thing around it."""
        return self.lines[at] if at in self.lines or not at else self.line(at[:-1])


def read(path: str) -> Document:
    """The document in a file. Never raises: what is wrong is in `problems`."""
    try:
        text = _text(Path(path))
    except _Refused as refusal:
        return Document(problems=[(refusal.line, str(refusal))])
    return parse(text)


def parse(text: str) -> Document:
    """The document in a text."""
    document = Document(lines={(): 1})
    composer = _Composer(text, document)
    try:
        node = composer.get_single_node()
    except yaml.MarkedYAMLError as error:
        document.problems.append(_syntax(error))
        return document
    finally:
        composer.dispose()
    if node is None or node.value == "":
        document.problems.append((None, "the file is empty: a suite has at least model, corpus, schemes and tasks"))
    elif not isinstance(node, yaml.MappingNode):
        document.problems.append((_line(node), "a suite is a mapping of keys, `model: …`"))
    else:
        document.lines[()] = _line(node)
        document.data = composer.mapping(node, ())
    return document


class _Refused(Exception):
    def __init__(self, text: str, line: int | None = None):
        super().__init__(text)
        self.line = line


def _text(path: Path) -> str:
    try:
        if not path.exists():
            raise _Refused(f"there is no such file{_nearby(path)}")
        if not path.is_file():
            raise _Refused(f"this is not a file{_within(path) if path.is_dir() else ''}")
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise _Refused(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(raw) > LARGEST:
        raise _Refused(f"the file is larger than {LARGEST // 1000} kB: this is no suite")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Refused("this is not text in UTF-8", raw.count(b"\n", 0, error.start) + 1) from error
    if strange := yaml.reader.Reader.NON_PRINTABLE.search(text):
        raise _Refused(f"a control character ({strange[0]!r}) has no place in a suite", text.count("\n", 0, strange.start()) + 1)
    return text


def _within(folder: Path) -> str:
    suites = _listed(folder)
    return f" but a folder; give one of its suites: {suites}" if suites else " but a folder, without suites; give a YAML file"


def _nearby(path: Path) -> str:
    there = [str(other) for folder in dict.fromkeys((path.parent, READY, SOURCES)) for other in folder.glob("*.yaml")]
    near = difflib.get_close_matches(str(path), there, n=1) or [name for name in there if Path(name).stem == path.stem]
    if near:
        return f"; did you mean {near[0]!r}?"
    ready = f"here: {here}" if (here := _listed(READY)) else f"ready ones are in {SOURCES}" if _listed(SOURCES) else ""
    return f"; give the path of a suite, a YAML file{f' ({ready})' if ready else ''}"


def _listed(folder: Path) -> str:
    """The suites of a folder; of very many the first."""
    suites = sorted(str(path) for path in folder.glob("*.yaml"))
    return ", ".join([*suites[:MOST_NAMES], *(["…"] if len(suites) > MOST_NAMES else [])])


def _syntax(error: yaml.MarkedYAMLError) -> tuple[int | None, str]:
    """PyYAML's complaint in one line. The mark of the problem is nearer to the mistake than that of its context."""
    mark = error.problem_mark or error.context_mark
    line = int(mark.line) + 1 if mark else None
    if error.context == "expected a single document in the stream":
        return line, "a second document begins here: one suite per file"
    what = re.sub(r"\s+", " ", f"{error.problem or 'unexpected end'}{f' {error.context}' if error.context else ''}")
    hint = "; indent with spaces, not tabs" if r"'\t'" in what else ""
    return line, f"not valid YAML: {what}{hint}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


class _Composer(yaml.SafeLoader):
    """Composes nodes and notes what a suite must not contain, without stopping at it."""

    def __init__(self, text: str, document: Document):
        super().__init__(text)
        self.document = document
        self.depth = 0

    def note(self, line: int, text: str) -> None:
        self.document.problems.append((line, text))

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self.note(line, f"the alias *{event.anchor} is not supported: write the value out")
            event = self.get_event()  # type: ignore[no-untyped-call]
            return yaml.ScalarNode("tag:yaml.org,2002:null", "", event.start_mark, event.end_mark)
        if event.anchor:
            self.note(line, f"the anchor &{event.anchor} is not supported: write the value out where it is needed")
            event.anchor = None
        if event.tag:
            self.note(line, f"the tag {event.tag.replace('tag:yaml.org,2002:', '!!')} is not supported: a suite is plain data")
            event.tag, event.implicit = None, (True, False) if isinstance(event, yaml.ScalarEvent) else True
        if self.depth == DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEEPEST} deep", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        assert node is not None  # noqa: S101 - for the type checker: only the end of the stream has no node
        return node

    def mapping(self, node: yaml.MappingNode, at: At) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            key = self.value(key_node, at) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or a mapping"
                self.note(line, f"keys are words, got {shown}")
            elif key in found:
                self.note(line, f"the key {key!r} is given twice, first on line {self.document.lines[*at, key]}")
            else:
                self.document.lines[*at, key] = line
                found[key] = self.value(value_node, (*at, key))
        return found

    def value(self, node: yaml.Node, at: At) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self.document.lines[*at, i] = _line(item)
            return [self.value(item, (*at, i)) for i, item in enumerate(node.value)]
        return _scalar(node.tag.rpartition(":")[2], node.value)


def _scalar(tag: str, text: str) -> Any:
    """A word, number, truth value or nothing. Dates, `0512` and `1:30` stay words, which mean what they say or are refused."""
    if tag == "null":
        return None
    if tag == "bool":
        return BOOLEANS[text.lower()]
    if tag == "int" and re.fullmatch(r"[-+]?(0|[1-9][0-9_]{0,30})", text):
        return int(text.replace("_", ""))
    if tag == "float" and re.fullmatch(r"[-+]?(?=\.?[0-9])[0-9_]*\.?[0-9_]*([eE][-+]?[0-9]{1,5})?", text):
        return float(text.replace("_", ""))
    return text

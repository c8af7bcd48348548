"""Plain data against a pydantic class, with every mistake as one of our sentences: who, what, allowed, did you mean."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from tqbench.core.errors import unknown
from tqbench.core.presets import Problem
from tqbench.suite.document import At

T = TypeVar("T")


def validate(kind: type[T], data: dict[str, Any], at: At, problem: Problem) -> T | None:
    """The checked object. After mistakes it is built from the keys without one, so that the checks after this see the rest."""
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
    for item in wrong:
        problem((*at, *item["loc"]), _sentence(kind, item))
    rest = {key: value for key, value in data.items() if key not in {item["loc"][0] for item in wrong}}
    try:
        return TypeAdapter(kind).validate_python(rest)
    except ValidationError:
        return None  # a key that must be there is missing


def short(value: Any) -> str:
    """A value as the user may recognise it, in one short line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "nothing"}[value]
    if isinstance(value, list | dict):
        what = "list" if isinstance(value, list) else "mapping"
        return f"a {what}" if value else f"an empty {what}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _sentence(kind: type[Any], item: Any) -> str:
    fields = kind.__pydantic_fields__
    name, value = str(item["loc"][0]), item["input"]
    if name not in fields:
        return unknown("key", name, fields)
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    choices = get_args(fields[name].annotation) if get_origin(fields[name].annotation) is Literal else ()
    wanted = f"one of {', '.join(choices)}" if choices else fields[name].description
    if item["type"] == "missing":
        return f"{name} is missing: {wanted}"
    if choices and isinstance(value, str):
        return unknown(name, value, choices)
    hint = "; put it in quotes" if isinstance(value, bool | int | float) and re.match("a name", str(wanted)) else ""
    return f"{name} must be {wanted}, got {short(value)}{hint}"

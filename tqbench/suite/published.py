"""JSON Schemas of what people and other programs write and read: the suite, for editors, and the files of a run.

They follow from the same classes that check suites and read records, and from what is installed here: schemes, codecs with their
parameters, backends, corpora. An editor knows names and types; what must fit together is said when a suite is loaded.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from tqbench import corpora
from tqbench.bench.result import SCHEMA as BENCH
from tqbench.bench.result import Bench
from tqbench.core import record, registry
from tqbench.core.codec import Codec, Order
from tqbench.core.gate import Gate
from tqbench.core.presets import presets
from tqbench.core.scheme import Bypass, Phase
from tqbench.corpora.recipes import RECIPES
from tqbench.importers.folder import SCHEMA as IMPORTED
from tqbench.importers.folder import Imports
from tqbench.models.packaged import PACKAGED
from tqbench.suite.check import REQUIRED
from tqbench.suite.schema import TASKS, Calibration, GateKeys, Settings

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
NOISE = ("title", "ge", "le", "minLength")  # what pydantic leaves beside a union, where it says nothing
WHOLE: Schema = {"type": "integer", "minimum": 0}
PRIMITIVES = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}


def suite() -> Schema:
    """A suite file."""
    found = _of(Settings)
    keys = found["properties"]
    keys["model"]["examples"] = [*PACKAGED, "org/name", "model.gguf"]
    keys["backend"] = {"description": keys["backend"]["description"], **_one_or_many({"enum": registry.backend_names()})}
    keys["corpus"] = _corpus()
    keys["calibration"] = _of(Calibration)
    keys["calibration"]["properties"]["corpus"] = _corpus()
    keys["schemes"]["items"] = {"$ref": "#/$defs/scheme"}
    keys["tasks"]["items"] = {"oneOf": [_task(name) for name in TASKS]}
    keys["gates"] = {"type": ["array", "null"], "items": _of(GateKeys)}
    return _document("A suite of tqbench", {**found, "required": list(REQUIRED), "$defs": _schemes()})


def plan() -> Schema:
    """`plan.json`: what a run was to measure."""
    keys = {
        **{name: {"type": "string"} for name in ("suite", "run", "command")},
        "cells": {"type": "array", "items": _of(record.Cell)},
        "gates": {"type": "array", "items": _of(Gate)},
        "limits": {"type": "object", "description": "budget and memory, as they were given", "additionalProperties": {"type": "string"}},
        "dropped": {"type": "object", "description": "cells that the limits left out, and why", "additionalProperties": {"type": "string"}},
        "sealed": {"type": "boolean", "description": "every record of the run carries a seal"},
        "seal": {"type": "string", "description": "hash of all the rest; runs from before there were seals have none"},
    }
    return _file("tqbench.plan/1", {"type": "object", "properties": keys, "required": ["suite", "run", "command", "cells", "gates"]})


def environment() -> Schema:
    """`environment.json`: where a run was measured."""
    keys = {
        "versions": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        **{name: {"type": "string"} for name in ("python", "cpu", "threads", "system")},
        **{name: {"type": "integer"} for name in ("cores", "memory_bytes")},
        **{name: {"type": "object", "additionalProperties": {"type": "string"}} for name in ("variables", "gpus")},
    }
    return _file("tqbench.environment/1", {"type": "object", "properties": keys, "required": ["versions", "cpu", "threads"]})


def records() -> Schema:
    """`record.json`: what came of a cell. A key that is not in here is refused."""
    return _file(record.SCHEMA, {**_of(record.Record), "additionalProperties": False})


def bench() -> Schema:
    """`bench.json`: what a benchmark of kernels found."""
    return _file(BENCH, _of(Bench))


def imported() -> Schema:
    """`imported.json`: what other tools measured."""
    body = _of(Imports)
    keys = {name: value for name, value in body["properties"].items() if name != "folder"}
    return _file(IMPORTED, {**body, "properties": {**keys, "seal": {"type": "string"}}, "required": ["sources", "rows", "seal"]})


KINDS: dict[str, Callable[[], Schema]] = {
    "suite": suite,
    "plan": plan,
    "environment": environment,
    "record": records,
    "bench": bench,
    "imported": imported,
}


def _document(title: str, body: Schema) -> Schema:
    return {"$schema": DIALECT, "title": title, **body}


def _file(name: str, body: Schema) -> Schema:
    """A file that says which schema it follows."""
    keys = {"schema": {"const": name}, **body["properties"]}
    return _document(name, {**body, "properties": keys, "required": ["schema", *body.get("required", [])]})


def _of(kind: type[Any]) -> Schema:
    found: Schema = _clean(TypeAdapter(kind).json_schema())
    return found


def _clean(node: Any) -> Any:
    """Without what is not meant for readers; a key of a suite may be called like one of these."""
    if isinstance(node, list):
        return [_clean(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key not in NOISE or (key == "minLength" and node.get("type") == "string")}
    return {
        key: {name: _clean(one) for name, one in value.items()} if key in ("properties", "$defs") else _clean(value)
        for key, value in kept.items()
    }


def _one_or_many(item: Schema) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}


def _corpus() -> Schema:
    mapping = _mapping({"name": {"enum": corpora.names()}, "path": {"type": "string"}}, "name")
    return {"anyOf": [{"enum": corpora.names()}, mapping], "description": "the text that is scored: a name, or {name: file, path: …}"}


def _task(name: str) -> Schema:
    params = _of(TASKS[name])
    if "recipe" in params["properties"]:
        params["properties"]["recipe"]["enum"] = list(RECIPES)
    return _mapping({name: {**params, "type": ["object", "null"]}}, name)


def _mapping(keys: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": keys, "required": list(required), "additionalProperties": False}


def _schemes() -> Schema:
    """A scheme and its parts, as `core/presets.py` reads them."""
    names = {
        "anyOf": [
            {"enum": presets()},
            {"type": "string", "pattern": "^[^/]+/[^/]+$", "description": "K/V: keys as in one, values as in another"},
        ]
    }
    inner, sides = {"$ref": "#/$defs/scheme"}, {"$ref": "#/$defs/side"}
    layers = _mapping({"first": WHOLE, "last": WHOLE, "at": {"type": "array", "items": {"type": "integer"}}, "scheme": inner}, "scheme")
    keys = {
        **{name: {"type": "string"} for name in ("name", "family", "source", "note")},
        "scheme": {"$ref": "#/$defs/name"},
        "k": sides,
        "v": sides,
        "window": WHOLE,
        "sinks": WHOLE,
        "protect": {"$ref": "#/$defs/layers"},
        "layers": _one_or_many({"$ref": "#/$defs/layers"}),
        "gqa": _mapping({"at_least": WHOLE, "scheme": inner}, "at_least", "scheme"),
        "logits": _mapping({"form": {"enum": ["grow", "shrink"]}, "value": {"type": "number", "exclusiveMinimum": 0}}, "form", "value"),
        "bypass": {"enum": list(get_args(Bypass))},
    }
    composed = {**_mapping(keys), "anyOf": [{"required": ["scheme"]}, {"required": ["name", "k", "v"]}]}
    side = {"anyOf": [{"$ref": "#/$defs/name"}, *(_side(codec) for codec in registry.codecs().values())]}
    return {"name": names, "scheme": {"anyOf": [{"$ref": "#/$defs/name"}, composed]}, "side": side, "layers": layers}


def _side(codec: type[Codec]) -> Schema:
    """A codec with its parameters, those of what may be wrapped around it, and the policy of a side."""
    owners = {field.name: owner for owner in (codec, *registry.wrappers()) for field in owner.parameters()}
    params = {name: _hint(get_type_hints(owner)[name]) for name, owner in owners.items()}
    policy = {"order": {"enum": list(get_args(Order))}, "rope": {"enum": list(get_args(Phase))}, "window": WHOLE, "flush": WHOLE}
    about = (codec.__doc__ or "").strip().partition("\n")[0]
    return {"description": about, **_mapping({"codec": {"const": codec.name}, **params, **policy}, "codec")}


def _hint(hint: Any) -> Schema:
    """The JSON type of a parameter."""
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if get_origin(hint) is types.UnionType:
        return {"anyOf": [_hint(part) for part in get_args(hint)]}
    return {"type": PRIMITIVES[hint]} if hint in PRIMITIVES else {}

"""Results of other tools -> rows that say where they come from. Nothing in a file is trusted: what is damaged is refused, with its line."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tqbench.core.errors import ConfigError
from tqbench.importers import llama_bench, llama_perplexity, lm_eval, refract
from tqbench.importers.document import parse
from tqbench.importers.row import Row, storable

TOOLS = ("llama-perplexity", "llama-bench", "lm-eval", "refract")
MOST_BYTES = 16 << 20  # results are small; samples and logits are not read
KINDS = "a llama-perplexity log, llama-bench's JSON, JSONL, CSV or Markdown, a results file of lm-eval, or a report of REFRACT"


def read(path: Path, tool: str | None = None) -> list[Row]:
    """The rows of a file; which tool wrote it is seen, unless it is said."""
    name, text = path.name, _text(path)
    reader = _reader(name, text, tool)
    if reader is None:
        raise ConfigError(f"{path}: what this is cannot be seen; it must be {KINDS}; --from says which")
    rows = reader()
    if not rows:
        raise ConfigError(f"{name}:{text.count(chr(10)) + 1}: the file ends without a result")
    return [replace(row, label=storable(row.label), source=storable(row.source)) for row in rows]


def _text(path: Path) -> str:
    """The text of a file. Logs may hold pieces of characters, and PowerShell writes them as UTF-16."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if path.is_file() and size <= MOST_BYTES else b""
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not path.is_file():
        raise ConfigError(f"{path}: this is no file; it must be {KINDS}")
    if size > MOST_BYTES:
        raise ConfigError(f"{path}: {size:,} bytes are more than results take ({MOST_BYTES:,}); is it the log, not samples or logits?")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig", "replace").replace("\r\n", "\n")


def _reader(name: str, text: str, tool: str | None) -> Callable[[], list[Row]] | None:
    """How the file is read."""
    begin = "" if llama_perplexity.begins(text) else text.lstrip()[:1]
    if begin == "{" and tool in (None, "llama-bench") and llama_bench.is_entry(_first(name, text)):
        return lambda: llama_bench.read_lines(name, text)
    if begin in ("{", "[") and tool != "llama-perplexity":
        document = parse(name, text)
        if tool == "llama-bench" or (tool is None and begin == "[" and any(map(llama_bench.is_entry, document.value[:1]))):
            return lambda: llama_bench.read_json(document)
        if tool == "refract" or (tool is None and refract.is_report(document.value)):
            return lambda: refract.read(document.mapping())
        return (lambda: lm_eval.read(document.mapping())) if tool == "lm-eval" or lm_eval.is_results(document.value) else None
    if tool in ("lm-eval", "refract"):
        parse(name, text).mapping()
    if tool == "llama-bench" or (tool is None and llama_bench.is_table(text)):
        return lambda: llama_bench.read_table(name, text)
    return (lambda: llama_perplexity.read(name, text)) if tool or llama_perplexity.is_log(text) else None


def _first(name: str, text: str) -> object:
    """The first line's JSON, if it is some: JSONL has a whole object there."""
    try:
        return parse(name, text.lstrip().partition("\n")[0]).value
    except ConfigError:
        return None

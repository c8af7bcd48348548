"""llama-bench's results: `-o json`, `jsonl`, `csv` or `md`. Speeds that do not follow from their own samples are refused."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import PureWindowsPath  # takes either slash
from typing import Any

from tqbench.core.errors import ConfigError
from tqbench.importers.document import Node, parse
from tqbench.importers.row import Fact, Figure, Row, facts, figure

TOOL = "llama-bench"
RECIPE = "random tokens; the mean over repetitions, ± their standard deviation, after a warm-up at depth 0"
CAVEAT = (
    "random tokens, another machine or another time, and never timed in turn with ours. To measure the same here, use the tasks `prefill` "
    "and `decode`"
)
UNSAID = {
    "version": "the file does not say it",
    "model": "the file does not say it",
    "cache_k": "the table leaves out what has its default, which was f16 when this was written",
    "cache_v": "the table leaves out what has its default, which was f16 when this was written",
    "corpus": "llama-bench runs random tokens",
    "context": "llama-bench sizes the cache to the test",
    "chunks": "nothing is scored",
    "stride": "nothing is scored",
    "bos": "llama-bench runs random tokens",
}
WHOLE = ("n_prompt", "n_gen", "n_depth", "n_threads", "n_gpu_layers", "n_batch", "n_ubatch")
_TEST = re.compile(r"(?:pp(\d{1,9}))?\+?(?:tg(\d{1,9}))?(?: @ d(\d{1,9}))?")
_SPEED = re.compile(r"(\d+(?:\.\d+)?|nan|inf) ± (\d+(?:\.\d+)?|nan|inf)")
_BUILD = re.compile(r"build: ([0-9a-f]{7,40} \(\d+\))")
SLACK = 1e-4  # relative: samples are printed with six digits


def is_entry(value: Any) -> bool:
    """Whether a JSON value is a test of llama-bench."""
    return isinstance(value, dict) and "avg_ts" in value and "n_gen" in value


def is_table(text: str) -> bool:
    """Whether this looks like its CSV or Markdown."""
    return text.startswith("build_commit,") or re.search(r"^\| model +\|.*\| +t/s \|", text, re.MULTILINE) is not None


def read_json(document: Node) -> list[Row]:
    """A row for each test of a list."""
    return [_row(entry, entry.where) for entry in document.each()]


def read_lines(name: str, text: str) -> list[Row]:
    """A row for each line of JSON."""
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    return [_row(entry, entry.where) for number, line in lines for entry in [parse(name, line, number)]]


def read_table(name: str, text: str) -> list[Row]:
    """A row for each line of CSV or Markdown."""
    return list(_csv(name, text) if text.startswith("build_commit,") else _markdown(name, text))


def _row(entry: Node, where: str) -> Row:
    entry.mapping()
    counts = {key: entry.at(key).maybe_whole() for key in WHOLE if key != "n_gpu_layers"}
    if not (counts["n_prompt"] or counts["n_gen"]):
        entry.at("n_prompt").wrong("above 0 where nothing is generated")
    commit, number = entry.at("build_commit").maybe_word(), entry.at("build_number").maybe_whole()
    model = entry.at("model_filename").maybe_word()
    known = {
        "version": f"{commit} ({number})" if commit and number is not None else commit,
        "model": PureWindowsPath(model).name if model else None,
        "cache_k": entry.at("type_k").word(),
        "cache_v": entry.at("type_v").word(),
        "backend": entry.at("backends").maybe_word(),
        "machine": entry.at("gpu_info").maybe_word() or entry.at("cpu_info").maybe_word(),
        "threads": counts["n_threads"],
        "batch": counts["n_batch"],
        "microbatch": counts["n_ubatch"],
        "gpu layers": entry.at("n_gpu_layers").value if isinstance(entry.at("n_gpu_layers").value, int) else None,
        "flash attention": _flash(entry.at("flash_attn").value),
    }
    speed = entry.at("avg_ts").number(least=0)
    _agrees(entry, speed)
    test = _test(counts["n_prompt"] or 0, counts["n_gen"] or 0, counts["n_depth"] or 0)
    return _of(test, where, known, figure(speed, entry.at("stddev_ts").maybe_number(least=0)), _repetitions(entry))


def _flash(value: Any) -> str | None:
    """Older versions write true or false, newer ones −1 for auto, 0 or 1."""
    return {-1: "auto", 0: "off", 1: "on"}.get(value) if isinstance(value, int) else None


def _repetitions(entry: Node) -> Figure:
    samples = entry.at("samples_ts").value
    return figure(float(len(samples))) if isinstance(samples, list) else figure(None, why="the file has no samples")


def _agrees(entry: Node, speed: float) -> None:
    """The mean must be that of the samples, where they are there."""
    if entry.at("samples_ts").value is None:
        return
    samples = [sample.number(least=0) for sample in entry.at("samples_ts").each()]
    if not samples:
        entry.at("samples_ts").wrong("a list of at least one number")
    mean = sum(samples) / len(samples)
    if abs(mean - speed) > SLACK * max(mean, speed):
        entry.at("avg_ts").wrong(f"the mean of its samples, {mean:.6g},")


def _test(prompt: int, new: int, depth: int) -> str:
    """In llama-bench's words."""
    parts = [f"pp{prompt}"] * (prompt > 0) + [f"tg{new}"] * (new > 0)
    return "+".join(parts) + (f" @ d{depth}" if depth else "")


def _of(test: str, where: str, known: dict[str, Any], speed: Figure, repetitions: Figure) -> Row:
    said, unknown = facts(known, UNSAID)
    caches: tuple[Fact, ...] = tuple(said.get(key, "?") for key in ("cache_k", "cache_v"))
    label = f"{test} · {caches[0]} / {caches[1]}"
    return Row(TOOL, RECIPE, label, where, said, unknown, {"tps": speed, "repetitions": repetitions}, CAVEAT)


def _csv(name: str, text: str) -> Iterator[Row]:
    """Every field is in quotes; samples are left out."""
    head, *lines = text.split("\n")
    columns = head.strip().split(",")
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        try:
            fields = next(csv.reader(io.StringIO(line.rstrip("\r")), strict=True), [])
        except csv.Error as error:
            raise ConfigError(f"{name}:{number}: this is not CSV: {error}") from error
        if len(fields) != len(columns):
            raise ConfigError(f"{name}:{number}: {len(fields)} fields under {len(columns)} columns")
        values = {key: _value(key, field) for key, field in zip(columns, fields, strict=True)}
        yield _row(Node(name, line, values, (), number), f"{name}:{number}")


def _value(key: str, field: str) -> Any:
    """A field as JSON would have it; what does not fit is left as text, for the reader to refuse."""
    try:
        return int(field) if key in (*WHOLE, "build_number", "flash_attn") else float(field) if key in ("avg_ts", "stddev_ts") else field
    except ValueError:
        return field


def _markdown(name: str, text: str) -> Iterator[Row]:
    build = _BUILD.search(text)
    columns: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.startswith("|"):
            columns = []
            continue
        fields = [field.strip() for field in line.strip().strip("|").split("|")]
        if not columns:
            columns = fields
        elif len(fields) != len(columns):
            raise ConfigError(f"{name}:{number}: {len(fields)} fields under {len(columns)} columns")
        elif not all(set(field) <= {"-", ":"} for field in fields):
            yield _of_markdown(f"{name}:{number}", dict(zip(columns, fields, strict=True)), build[1] if build else None)


def _of_markdown(where: str, found: dict[str, str], build: str | None) -> Row:
    test, speed = _TEST.fullmatch(found.get("test", "")), _SPEED.fullmatch(found.get("t/s", ""))
    if not test or not any(test.groups()[:2]):
        raise ConfigError(f"{where}: the test must be like `pp512`, `tg128` or `tg128 @ d512`, is {found.get('test')!r}")
    if not speed:
        raise ConfigError(f"{where}: t/s must be like `12.34 ± 0.05`, is {found.get('t/s')!r}")
    known = {
        "version": build,
        "model": found.get("model"),
        "cache_k": found.get("type_k"),
        "cache_v": found.get("type_v"),
        "backend": found.get("backend"),
        "threads": found.get("threads"),
        "gpu layers": found.get("ngl"),
        "flash attention": found.get("fa"),
    }
    why = "the table does not say it"
    label = _test(*(int(part or 0) for part in test.groups()))
    return _of(label, where, known, figure(float(speed[1]), float(speed[2])), figure(None, why=why))

"""lm-evaluation-harness's results file: a row for each metric of each task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PureWindowsPath  # takes either slash

from tqbench.importers.document import Node
from tqbench.importers.row import Fact, Row, facts, figure

TOOL = "lm-eval"
RECIPE = "tasks of lm-evaluation-harness; ± the standard error that it computes"
CAVEAT = (
    "a score of tasks, of which nothing here shows that a scheme was active: requests for log-likelihoods pass no cache to transformers "
    "models, so a quantized one would not be used"
)
UNSAID = {
    "version": "the file does not say it",
    "model": "the file does not name it",
    "cache_k": "lm-eval does not record how keys are kept",
    "cache_v": "lm-eval does not record how values are kept",
    "corpus": "the file does not name the data set of this task",
    "context": "the file has no max_length",
    "chunks": "tasks are documents, not chunks",
    "stride": "tasks are documents, not windows",
    "bos": "the file does not say whether a BOS token was added",
}
NAMES = ("peft", "delta", "pretrained", "model", "path", "engine")  # of model arguments, the likeliest name first
NO_NUMBERS = ("", "N/A", "NA")
_ARGUMENT = re.compile(r"(\w+)=([^,]*)")


def is_results(value: object) -> bool:
    """Whether a JSON value is a results file."""
    return isinstance(value, dict) and isinstance(value.get("results"), dict) and ("configs" in value or "versions" in value)


def read(document: Node) -> list[Row]:
    """The rows of a file."""
    common = _common(document)
    rows = [row for task, found in document.at("results").items() for row in _task(document, task, found, common)]
    return rows or document.at("results").wrong("an object with at least one metric")


def _common(document: Node) -> dict[str, Fact | None]:
    """What holds for all tasks."""
    config = document.at("config")
    arguments = _arguments(config.at("model_args"))
    version, commit = document.at("lm_eval_version").maybe_word(), document.at("git_hash").maybe_word()
    model = document.at("model_name").maybe_word() or next((arguments[name] for name in NAMES if name in arguments), None)
    cache = arguments.get("kv_cache_dtype")  # an argument of vLLM's
    bos = arguments.get("add_bos_token")
    return {
        "version": f"{version} ({commit})" if version and commit else version or commit,
        "model": PureWindowsPath(model).name if model and PureWindowsPath(model).root else model,
        "cache_k": cache,
        "cache_v": cache,
        "context": document.at("max_length").maybe_whole(),
        "bos": bos.lower() == "true" if bos else None,
        "engine": config.at("model").maybe_word(),
        "transformers": document.at("transformers_version").maybe_word(),
        "limit": config.at("limit").maybe_number(),
    }


def _arguments(found: Node) -> dict[str, str]:
    """`a=b,c=d`, or an object in newer versions."""
    if isinstance(found.value, dict):
        return {str(key): str(value) for key, value in found.value.items() if not isinstance(value, (dict, list))}
    return dict(_ARGUMENT.findall(found.word())) if found.value is not None else {}


def _task(document: Node, task: str, found: Node, common: dict[str, Fact | None]) -> Iterator[Row]:
    version, config = document.at("versions").at(task).value, document.at("configs").at(task)
    shots, samples = document.at("n-shot").at(task), document.at("n-samples").at(task)
    known = common | {
        "corpus": _data(config),
        "task version": str(version) if isinstance(version, (str, int, float)) else None,
        "shots": shots.maybe_whole(),
        "documents": samples.at("effective").maybe_whole(),
        "higher is better": None,
    }
    for key, value in found.items():
        metric, comma, way = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        spread = found.at(f"{metric}_stderr,{way}")
        number = None if value.value in NO_NUMBERS else value.number()
        error = None if spread.value in NO_NUMBERS or spread.value is None else spread.number(least=0)
        better = document.at("higher_is_better").at(task).at(metric).value
        said, unknown = facts(known | {"higher is better": better if isinstance(better, bool) else None}, UNSAID)
        label = f"{task} · {metric}" + ("" if way == "none" else f" ({way})")
        score = figure(number, error, why="the file has no number here")
        yield Row(TOOL, RECIPE, label, found.at(key).where, said, unknown, {"score": score}, CAVEAT)


def _data(config: Node) -> str | None:
    """The data set and split of a task."""
    parts = [config.at(key).value for key in ("dataset_path", "dataset_name", "test_split")]
    return " ".join(part for part in parts if isinstance(part, str)) or None

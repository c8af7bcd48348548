"""The published schemas, held to an independent validator: what tqbench ships and writes is valid, and mistakes that it refuses are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tqbench.core.presets import preset, presets
from tqbench.suite.published import KINDS
from tqbench.suite.schema import TASKS

ROOT = Path(__file__).parents[2]
SUITES = sorted((ROOT / "suites").glob("*.yaml"))
RUNS = sorted(path.parent for path in (ROOT / "results" / "reference").glob("*/plan.json"))
GOOD = yaml.safe_load("""
model: smollm2-135m-instruct-q4_1
corpus: python-docs
schemes:
  - q8_0
  - q8_0/turbo3
  - {scheme: turbo4, bypass: bridge}
  - name: mine
    k: {codec: codebook, bits: 3, rotation: haar, window: 64}
    v: {codec: affine, bits: 4, group_size: 64}
    sinks: 4
    protect: {first: 2, last: 2, scheme: q8_0}
tasks:
  - perplexity: {context: [512, 2k], tokens: "8192", warmup: 32, recipe: stream}
  - decode: {depth: 4k, new: 64}
  - memory:
gates:
  - {schemes: "q8*", metric: dppl, limit: 0.1}
priority: [q8_0, "*-decode-*"]
calibration: {corpus: python-docs, tokens: 2k}
""")


def validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = KINDS[kind]()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def suites() -> jsonschema.Draft202012Validator:
    return validator("suite")


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_shipped_suite_is_valid(path: Path, suites: jsonschema.Draft202012Validator) -> None:
    suites.validate(yaml.safe_load(path.read_text()))


def test_the_example_is_valid_and_is_a_suite(suites: jsonschema.Draft202012Validator, tmp_path: Path) -> None:
    suites.validate(GOOD)
    from tqbench.suite.load import load

    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(GOOD))
    load([tmp_path / "suite.yaml"])


@pytest.mark.parametrize("name", presets())
def test_every_scheme_is_valid_as_a_name_and_written_out(name: str, suites: jsonschema.Draft202012Validator) -> None:
    suites.validate({**GOOD, "schemes": [name, preset(name).to_data()]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"modle": "x"},
        {"dtype": "flot32"},
        {"corpus": "python-doc"},
        {"corpus": {"name": "file", "pth": "x"}},
        {"backend": "mxl"},
        {"schemes": []},
        {"schemes": ["tubro4"]},
        {"schemes": [{"name": "mine", "k": "q8_0"}]},
        {"schemes": [{"name": "mine", "k": {"codec": "codebok", "bits": 3}, "v": "q8_0"}]},
        {"schemes": [{"name": "mine", "k": {"codec": "codebook", "bits": 9}, "v": "q8_0"}]},
        {"schemes": [{"name": "mine", "k": {"codec": "codebook", "bit": 3}, "v": "q8_0"}]},
        {"schemes": [{"scheme": "turbo4", "bypass": "brigde"}]},
        {"schemes": [{"scheme": "turbo4", "sink": 4}]},
        {"tasks": [{"perplexty": {}}]},
        {"tasks": [{"perplexity": {"tokens": "2M"}}]},
        {"tasks": [{"perplexity": {"tokens": -1}}]},
        {"tasks": [{"perplexity": {"tokens": "until decided"}}]},
        {"tasks": [{"perplexity": {"contxt": 512}}]},
        {"tasks": [{"perplexity": {"recipe": "steam"}}]},
        {"tasks": [{"perplexity": {}, "decode": {}}]},
        {"gates": [{"schemes": "q8_0", "metric": "dpl", "limit": 1}]},
        {"gates": [{"schemes": "q8_0", "metric": "dppl"}]},
        {"calibration": {"token": 5}},
        {"timeout": 0},
        {"name": "Not A Name"},
    ],
    ids=str,
)
def test_a_mistake_is_seen_in_the_editor(wrong: dict[str, Any], suites: jsonschema.Draft202012Validator) -> None:
    assert not suites.is_valid({**GOOD, **wrong})


@pytest.mark.parametrize("key", ["model", "corpus", "schemes", "tasks"])
def test_what_a_suite_must_have_is_asked_for(key: str, suites: jsonschema.Draft202012Validator) -> None:
    assert not suites.is_valid({name: value for name, value in GOOD.items() if name != key})


def test_every_task_is_offered_with_words(suites: jsonschema.Draft202012Validator) -> None:
    offered = {name: task for item in suites.schema["properties"]["tasks"]["items"]["oneOf"] for name, task in item["properties"].items()}
    assert offered.keys() == TASKS.keys()
    assert all(task["description"] for task in offered.values())


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_committed_runs_are_valid(folder: Path) -> None:
    assert RUNS
    validator("plan").validate(json.loads((folder / "plan.json").read_text()))
    validator("environment").validate(json.loads((folder / "environment.json").read_text()))
    record = validator("record")
    for path in folder.glob("cells/*/record.json"):
        record.validate(json.loads(path.read_text()))


def test_the_committed_benchmark_is_valid() -> None:
    validator("bench").validate(json.loads((ROOT / "results" / "reference" / "bench-cpu" / "bench.json").read_text()))


def test_a_file_of_another_kind_or_with_another_key_is_not_a_record() -> None:
    found = json.loads(next((RUNS[0] / "cells").glob("*/record.json")).read_text())
    record = validator("record")
    assert record.is_valid(found)
    for wrong in ({"schema": "tqbench.record/9"}, {"more": 1}, {"outcome": "great"}, {"metrics": {"ppl": {"value": "x"}}}):
        assert not record.is_valid({**found, **wrong})


def test_imported_rows_are_valid(tmp_path: Path) -> None:
    from tqbench.importers import folder

    samples = Path(__file__).parents[1] / "importers" / "samples"
    folder.write(folder.take_in(sorted(path for path in samples.iterdir() if path.suffix != ".md")), tmp_path)
    data = json.loads((tmp_path / folder.FILE).read_text())
    validator("imported").validate(data)
    del data["rows"][0]["recipe"]
    with pytest.raises(jsonschema.ValidationError, match="'recipe' is a required property"):
        validator("imported").validate(data)

"""The search on a tiny model: cheaper than what is the same everywhere, confirmed elsewhere, and written down."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from backends.transformers import tiny
from tqbench.core.errors import ConfigError
from tqbench.core.presets import preset, read
from tqbench.core.record import Cell, Estimate, Record
from tqbench.core.scheme import Layers, Scheme
from tqbench.report import gate
from tqbench.runner import group, mixing, worker
from tqbench.runner.folder import Folder
from tqbench.runner.progress import Progress
from tqbench.runner.tune import ATTEMPTS, Goal, tune
from tqbench.runner.tuned import story, write
from tqbench.suite.load import load
from tqbench.suite.plan import Plan, plan
from tqbench.suite.schema import Suite

LIMIT = 0.5  # ppl, of about 256
SUITE = """\
name: small
model: {model}
corpus: python-docs
schemes: [{schemes}]
tasks:
  - sensitivity: {{context: 64, tokens: 64}}
  - perplexity: {{context: 64, tokens: 1920}}
"""


def suite(folder: Path, model: Path, schemes: str = "q8_0, turbo4, turbo2", text: str = SUITE) -> Suite:
    path = folder / "small.yaml"
    path.write_text(text.format(model=model, schemes=schemes))
    (found,) = load([path])
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random layers over bytes: a vocabulary of 256 costs next to nothing."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE(letters, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder: Path = tmp_path_factory.mktemp("bytes")
    PreTrainedTokenizerFast(tokenizer_object=bytewise).save_pretrained(folder)
    tiny.llama(hidden_size=128, head_dim=64).save_pretrained(folder)
    return folder


@pytest.fixture
def other(tmp_path: Path) -> dict[str, str]:
    """Words in an order of their own."""
    words = [f"{chr(97 + i % 26)}{'aeiou'[i % 5]}{chr(97 + i * 7 % 26)}" for i in range(400)]
    path = tmp_path / "other.txt"
    path.write_text(" ".join(random.Random(0).choices(words, k=9000)))  # noqa: S311
    return {"name": "file", "path": str(path)}


@pytest.fixture
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers inside this process: a search has a dozen, and each would import torch anew."""

    def measure(plan: Plan, cells: list[Cell], folder: Folder, progress: Progress) -> None:
        job = {"root": str(plan.root), "folder": str(folder.path), "trust_remote_code": False}
        worker.Worker({**job, "cells": [dataclasses.asdict(cell) for cell in cells]}, lambda **_: None).run()

    monkeypatch.setattr(worker, "_log_to", lambda path: path.parent.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(group, "measure", measure)
    monkeypatch.setattr(gate, "_insane", lambda *_: None)  # a random model's perplexity is about that of its vocabulary


@pytest.mark.usefixtures("_inline")
def test_the_mix_is_cheaper_and_confirmed_and_a_suite(model: Path, tmp_path: Path, other: dict[str, str]) -> None:
    found_suite, told = suite(tmp_path, model), list[str]()
    goal = Goal(LIMIT, other)
    where = {"results": tmp_path / "results", "reports": tmp_path / "reports"}
    found = tune(found_suite, goal, **where, note=told.append)
    assert [scheme.name for scheme, _ in found.uniform] == ["turbo2", "turbo4", "q8_0"]
    assert found.reference == "turbo2"
    assert found.best is not None, told
    assert found.code == 0
    assert 1 <= len(found.trials) <= ATTEMPTS
    trial = found.trial
    assert trial is not None
    assert trial.verdict.status == "pass"
    low, high = trial.verdict.estimate.ends
    assert -LIMIT <= low <= high <= LIMIT
    assert found.rival is None or found.best.bytes <= found.rival.bytes
    path = tmp_path / "tuned.yaml"
    write(found, found_suite, path, "tqbench tune small.yaml")
    (back,) = load([path])
    assert back.schemes[0].definition() == found.best.scheme.definition()
    cell = next(cell for cell in plan(back).cells if cell.scheme)
    assert read(cell.scheme).definition() == read(trial.record.cell.scheme).definition()
    assert cell.params["skip" if trial.skip else "tokens"] == (trial.skip or 1920)
    assert [(one.metric, one.limit) for one in back.gates] == [("dppl", LIMIT)]
    before = sorted((tmp_path / "results").rglob("record.json"))
    told_of = " ".join(story(found, found_suite, "tqbench tune small.yaml"))
    for words in (
        "Found by: tqbench tune",
        "bytes per token at 64 tokens",
        "Searched: 3 schemes on python-docs",
        "Not searched:",
        "Δppl is",
    ):
        assert words in told_of
    again = tune(found_suite, goal, **where)  # everything is there
    assert sorted((tmp_path / "results").rglob("record.json")) == before
    assert again.best is not None
    assert again.best.scheme == found.best.scheme
    assert list(story(again, found_suite, "x")) == list(story(found, found_suite, "x"))


def palette(schemes: list[str], layers: int = 4) -> mixing.Palette:
    """Bytes by bits, damage by the square of the step; the third layer's keys are a hundred times as sensitive."""
    found = {name: preset(name) for name in schemes}
    places = [(at, side) for at in range(layers) for side in "kv"]
    size = {name: {place: int(8 * sum(one.bits(64))) for place in places} for name, one in found.items()}
    hurt = {place: 100.0 if place == (2, "k") else 1.0 for place in places}
    kld = {name: {place: hurt[place] * 4.0 ** -one.bits(64)[0] for place in places} for name, one in found.items()}
    return mixing.Palette(found, size, kld)


def test_what_is_sensitive_gets_the_bits() -> None:
    colours = palette(["q8_0", "turbo4", "turbo2"])
    made = colours.mix(0.1)
    assert made is not None
    scheme, expected = made
    assert expected <= 0.1
    assert [scheme.for_layer(at, 4).k.codec.plain.name for at in range(4)] == ["codebook", "codebook", "block", "codebook"]
    assert colours.mix(1e-9) is None


def test_schemes_with_other_sinks_are_not_paired() -> None:
    sinking = read({"name": "sinking", "k": "turbo2", "v": "turbo2", "sinks": 4})
    colours = palette(["q8_0", "turbo2"])
    mixed = mixing.Palette({**colours.schemes, "turbo2": sinking}, colours.bytes, colours.kld)
    assert {(one.k, one.v) for one in mixed.choices()[0]} == {("q8_0", "q8_0"), ("turbo2", "turbo2")}


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("tuned", preset("q8_0").k, preset("turbo3").v, layers=(Layers(preset("kivi2/turbo4"), at=(1, 5)),)),
        Scheme(
            "tuned", preset("kivi4").k, preset("kivi4").v, layers=(Layers(preset("q8_0"), at=(0,)), Layers(preset("q4_0/q8_0"), at=(3,)))
        ),
        read({"name": "tuned", "k": {"codec": "affine", "bits": 5, "group_size": 16, "axis": "token"}, "v": "turbo4", "sinks": 4}),
        Scheme("tuned", preset("q8_0").k, preset("q8_0").v, layers=(Layers(read({"name": "x", "k": "turbo4", "v": "f16"}), at=(2,)),)),
        preset("kvtc_lite_4x"),
    ],
    ids=range(5),
)
def test_yaml_reads_back_to_the_same_scheme(scheme: Scheme) -> None:
    (data,) = yaml.safe_load(mixing.to_yaml(scheme))
    assert read(data).definition() == scheme.definition()


def test_names_are_written_where_there_are_any() -> None:
    scheme = Scheme("tuned", preset("q8_0").k, preset("turbo3").v, layers=(Layers(preset("turbo4"), at=(1, 5)),))
    lines = mixing.to_yaml(scheme).splitlines()
    assert lines == ["  - name: tuned", "    k: q8_0", "    v: turbo3", "    layers:", "      - {at: [1, 5], scheme: turbo4}"]


@pytest.mark.parametrize(
    ("schemes", "change", "says"),
    [
        ("q8_0", ("", ""), "a mix needs two schemes"),
        ("q8_0, {scheme: turbo4, bypass: bridge}", ("", ""), "a mix needs two schemes"),
        ("q8_0, turbo4", ("sensitivity: {{context: 64, tokens: 64}}", "memory: {{context: 64}}"), "needs a `sensitivity` task"),
        ("q8_0, turbo4", ("context: 64, tokens: 1920", "context: 32, tokens: 1920"), "give both tasks the same one"),
        ("q8_0, turbo4", ("tokens: 1920", "tokens: 640"), "needs 30 windows: perplexity.tokens must be at least 1920"),
        ("q8_0, turbo4", ("tokens: 1920", "tokens: 1920, protocol: deploy"), "in protocol strict"),
    ],
)
def test_a_suite_that_cannot_be_tuned_says_why(model: Path, tmp_path: Path, schemes: str, change: tuple[str, str], says: str) -> None:
    text = SUITE.replace(*change) if change[0] else SUITE
    with pytest.raises(ConfigError, match=says):
        tune(suite(tmp_path, model, schemes, text), Goal(1.0, {"name": "wikitext-2"}), results=tmp_path)


@pytest.mark.usefixtures("_inline")
def test_a_limit_that_nothing_keeps_is_no_success(model: Path, tmp_path: Path, other: dict[str, str]) -> None:
    found_suite = suite(tmp_path, model, "turbo2, turbo3")
    found = tune(found_suite, Goal(1e-6, other), results=tmp_path / "results", reports=tmp_path / "reports")
    assert (found.best, found.trials, found.code) == (None, [], 1)
    assert "No mix of these schemes comes near enough" in " ".join(story(found, found_suite, "x"))


def record(scheme: str, errors: dict[tuple[int, str], float], whole: tuple[float, float], probed: dict[tuple[int, str], float]) -> Record:
    """A cell of sensitivity: layers 1 and 3 of a model hold keys and values; 90 of 96 tokens are packed."""
    cell = Cell("m", "transformers", "cpu", "float32", preset(scheme).to_data(), "auto", "sensitivity", {"context": 96}, {"name": "x"})
    evidence = [
        {"layer": layer, "side": side, "error": error, "bytes_payload": 900, "bytes_metadata": 90, "tokens": 96, "tokens_packed": 90}
        for (layer, side), error in errors.items()
    ]
    metrics = {name: Estimate(x) for name, x in zip(("kld_k", "kld_v"), whole, strict=True)}
    layers = [{"layer": layer, "side": side, "kld": kld} for (layer, side), kld in probed.items()]
    return Record(cell, "ok", model={"kv_heads": 2, "head_dim": 64}, metrics=metrics, evidence=evidence, layers=layers)


def test_what_was_not_probed_is_shared_out_by_error_and_sensitivity() -> None:
    places = [(1, "k"), (1, "v"), (3, "k"), (3, "v")]
    costs = dict(zip(places, (0.04, 0.004, 0.01, 0.004), strict=True))
    small = record("turbo2", dict.fromkeys(places, 0.1), (0.05, 0.008), costs)
    errors = dict(zip(places, (0.01, 0.01, 0.04, 0.03), strict=True))  # four times the error in the keys of layer 3
    other = record("q8_0", errors, (0.003, 0.002), {})
    found = mixing.Palette.of([(preset("turbo2"), small), (preset("q8_0"), other)], small)
    assert found.kld["turbo2"] == {(0, "k"): 0.04, (0, "v"): 0.004, (1, "k"): 0.01, (1, "v"): 0.004}
    assert found.kld["q8_0"] == pytest.approx({(0, "k"): 0.0015, (1, "k"): 0.0015, (0, "v"): 0.0005, (1, "v"): 0.0015})
    assert set(found.bytes["q8_0"].values()) == {990 + 2 * 128 * 6}  # six exact tokens at 16 bits
    assert mixing.per_token(small) == 4 * (990 + 2 * 128 * 6) / 96


def test_an_error_of_zero_shares_nothing_out_and_loses_nothing() -> None:
    places = [(1, "k"), (1, "v"), (3, "k"), (3, "v")]
    small = record("turbo2", dict.fromkeys(places, 0.1), (0.05, 0.008), dict.fromkeys(places, 0.01))
    exact = record("f16", dict.fromkeys(places, 0.0), (1e-6, -1e-9), {})
    found = mixing.Palette.of([(preset("turbo2"), small), (preset("f16"), exact)], small).kld["f16"]
    assert sum(found.values()) == pytest.approx(1e-6)
    assert min(found.values()) == 0

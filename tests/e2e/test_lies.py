"""Deliberate lies, each through the real command line: what is said about it, and the code to exit with."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqbench.core.files import seal
from tqbench.core.record import Record

VOCAB = 1024  # more than there are bytes: a tenth of it is the worst perplexity that a gate takes for a working model's
LIES = Path(__file__).parent / "lies"
SUITE = """\
name: small
model: {model}
corpus: {{name: file, path: {text}}}
schemes: [{schemes}]
tasks:
  - perplexity: {{context: 32, tokens: 960, warmup: 4}}
gates:
{gates}"""
HONEST = "  - {schemes: q8_0, metric: dppl, limit: 0.1}\n"


def tqbench(folder: Path, *args: str, lie: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The command line in a folder, with an engine that may lie."""
    told = {"TQBENCH_LIE": lie, "PYTHONPATH": str(LIES), "GITHUB_ACTIONS": "", **env}
    command = [sys.executable, "-m", "tqbench", *args]
    return subprocess.run(command, cwd=folder, env={**os.environ, **told}, capture_output=True, text=True, check=False)


def text(part: int) -> str:
    """Text of one length, whatever the part."""
    import pydoc_data.topics

    whole = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    return whole[part * 8000 : (part + 1) * 8000]


def letters() -> Any:
    """A tokenizer of bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    found = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=found)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny model with a perplexity that a working model has: it knows how frequent each token is, whatever it attends to. `loud`: how
    much of what it attends to gets into its residual stream, where it does harm."""

    def make(loud: float = 1.0, spoil: Callable[[Any], None] = lambda _: None) -> Path:
        import torch

        from backends.transformers import tiny

        model, tokenizer = tiny.llama(vocab_size=VOCAB), letters()
        seen = Counter(tokenizer("".join(map(text, range(4))))["input_ids"])
        frequent = torch.tensor([seen.get(i, 0) + 0.01 for i in range(VOCAB)])
        with torch.no_grad():
            model.model.embed_tokens.weight[:, 0] = 10.0  # so the last norm leaves about √256 there
            model.lm_head.weight.mul_(0.3)
            model.lm_head.weight[:, 0] = (frequent / frequent.sum()).log() / 16
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.mul_(loud)
            spoil(model)
        folder: Path = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def suite(tmp_path: Path, model: Path) -> Callable[..., Path]:
    """Writes a suite and its text into a folder of its own."""

    def write(*schemes: str, gates: str = HONEST, part: int = 0, of: Path = model, name: str = "a") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "text.txt").write_text(text(part))
        (folder / "small.yaml").write_text(SUITE.format(model=of, text="text.txt", schemes=", ".join(schemes), gates=gates))
        return folder

    return write


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """An honest run that passes, to copy and to lie about."""
    folder = tmp_path_factory.mktemp("honest")
    (folder / "text.txt").write_text(text(0))
    (folder / "small.yaml").write_text(SUITE.format(model=model, text="text.txt", schemes="q8_0", gates=HONEST))
    done = tqbench(folder, "run", "small.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def honest(measured: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(measured, tmp_path / "honest")
    return tmp_path / "honest"


def record_of(folder: Path, label: str) -> Path:
    (path,) = folder.glob(f"results/small/*/cells/{label}-*/record.json")
    return path


def reseal(path: Path, **changes: Any) -> None:
    """A forger who knows the seal."""
    dataclasses.replace(Record.read(path), **changes).write(path.parent)


def replan(path: Path, **changes: Any) -> None:
    """The same for the plan."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(data | {"seal": seal(data)}))


def reasons(folder: Path) -> dict[str, str]:
    records = [Record.read(path) for path in folder.glob("results/small/*/cells/*/record.json")]
    return {record.cell.label: "; ".join(record.audits) or record.reason or "" for record in records if record.outcome != "ok"}


def test_the_truth_passes(honest: Path) -> None:
    done = tqbench(honest, "gate", "small", "--fail-on", "q8_0:kld>1", "--against", "small", "-o", "verdicts")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass ") == 3
    assert "scores equal) 0 is within ±0.1" in done.stdout
    assert sorted(path.name for path in (honest / "verdicts").glob("small/*/*")) == ["benchmark.json", "junit.xml"]


def test_a_scheme_that_is_not_applied_and_one_whose_values_run_the_keys_codec(suite: Callable[..., Path]) -> None:
    folder = suite("turbo4", "q8_0/turbo3", "q8_0")
    done = tqbench(folder, "run", "small.yaml", lie="stores")
    assert done.returncode == 4, done.stdout + done.stderr
    found = reasons(folder)
    assert found.keys() == {"turbo4", "q8_0/turbo3"}
    assert "layer 0 k: codebook table=turbo" in found["turbo4"]
    assert "bypass=identity ran, the scheme has codebook table=turbo" in found["turbo4"]
    assert "v: block ran, the scheme has codebook bits=3" in found["q8_0/turbo3"]
    assert "a scheme did not do what it declares (exit code 4)" in done.stdout


def test_another_tokenizer(suite: Callable[..., Path]) -> None:
    folder = suite("q8_0", "turbo4")
    done = tqbench(folder, "run", "small.yaml", lie="tokens")
    assert done.returncode == 4, done.stdout + done.stderr
    assert reasons(folder) == {"turbo4": "the tokens differ from the baseline's: another tokenizer or another text"}


def test_another_kernel_than_was_named(suite: Callable[..., Path]) -> None:
    folder = suite("q8_0")
    done = tqbench(folder, "run", "small.yaml", "--kernel", "attend=native", lie="kernels")
    assert done.returncode == 4, done.stdout + done.stderr
    assert reasons(folder) == {"q8_0": "layer 0 k: attend=native was asked for, torch ran"}


def test_another_text_of_the_same_length(honest: Path, suite: Callable[..., Path]) -> None:
    other = suite("q8_0", part=2)
    assert tqbench(other, "run", "small.yaml").returncode == 0
    (run,) = other.glob("results/small/*")
    assert len(text(0)) == len(text(2))
    judged = tqbench(honest, "gate", "small", "--against", str(run))
    assert judged.returncode == 1, judged.stdout
    assert f"not comparable with small/{run.name} because text " in judged.stdout
    compared = tqbench(honest, "compare", str(run), "small")
    assert compared.returncode == 5, compared.stdout
    assert "0 of 2 cells comparable" in compared.stdout
    assert "token ids" in compared.stdout


def test_a_baseline_from_another_model(honest: Path, suite: Callable[..., Path], make_model: Callable[..., Path]) -> None:
    other = suite("q8_0", of=make_model(loud=3.0))
    assert tqbench(other, "run", "small.yaml").returncode in (0, 1)
    mine, theirs = (Record.read(record_of(folder, "baseline")) for folder in (honest, other))
    reseal(record_of(honest, "baseline"), **{**vars(theirs), "cell": mine.cell})
    done = tqbench(honest, "gate", "small")
    assert done.returncode == 4, done.stdout
    assert "altered: baseline: nll.npy is not the file that was measured" in done.stdout
    shutil.copy(record_of(other, "baseline").with_name("nll.npy"), record_of(honest, "baseline").parent)
    done = tqbench(honest, "gate", "small")
    assert done.returncode == 4, done.stdout
    assert "the baseline was measured on another model: weights" in done.stdout
    reseal(record_of(honest, "baseline"), model=mine.model)  # and where its name is forged too
    done = tqbench(honest, "gate", "small")
    assert done.returncode == 4, done.stdout
    assert "ppl away from the baseline cell: another model or build" in done.stdout


def test_an_edited_record(honest: Path) -> None:
    path = record_of(honest, "q8_0")
    data = json.loads(path.read_text())
    data["metrics"]["dppl"] = {"value": 0.0, "low": 0.0, "high": 0.0}
    path.write_text(json.dumps(data, indent=1))
    done = tqbench(honest, "gate", "small")
    assert done.returncode == 4, done.stdout
    assert "the record was changed after it was measured" in done.stdout
    again = tqbench(honest, "run", "small.yaml")  # it is no measurement, so it is measured
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 of 2 cells measured now" in again.stdout


def test_a_record_without_its_seal_is_measured_and_not_sealed_anew(honest: Path) -> None:
    path = record_of(honest, "q8_0")
    measured = json.loads(path.read_text())
    dppl = {"value": 0.0, "low": 0.0, "high": 0.0}
    path.write_text(json.dumps(measured | {"seal": None, "floors": {}, "metrics": measured["metrics"] | {"dppl": dppl}}))
    again = tqbench(honest, "run", "small.yaml")
    assert "1 of 2 cells measured now" in again.stdout
    assert json.loads(path.read_text())["metrics"] == measured["metrics"]


def test_a_cell_that_fails_struck_from_the_plan(honest: Path) -> None:
    (plan,) = honest.glob("results/small/*/plan.json")
    data = json.loads(plan.read_text())
    for changes, said in (
        ({"gates": []}, "does not fit its seal"),
        ({"cells": data["cells"][:1]}, "does not fit its seal"),
        ({"cells": data["cells"][:1], "seal": None}, "the plan has no seal"),
    ):
        plan.write_text(json.dumps(data | changes))
        done = tqbench(honest, "gate", "small")
        assert (done.returncode, done.stdout) == (4, "")
        assert said in done.stderr
    replan(plan, cells=data["cells"][:1])
    done = tqbench(honest, "gate", "small")
    assert done.returncode == 4, done.stdout
    assert "the plan does not list what lies in cells/: q8_0-perplexity" in done.stderr
    assert tqbench(honest, "run", "small.yaml").returncode == 0  # it writes the plan that it runs


def test_edited_scores(honest: Path) -> None:
    path = record_of(honest, "q8_0").with_name("nll.npy")
    np.save(path, np.load(path) * np.float32(0.99))
    done = tqbench(honest, "gate", "small")
    assert done.returncode == 4, done.stdout
    assert "nll.npy is not the file that was measured with this record" in done.stdout
    reseal_without = json.loads(record_of(honest, "q8_0").read_text())
    reseal_without.update(seal=None, arrays={})  # as old records are
    record_of(honest, "q8_0").write_text(json.dumps(reseal_without))
    (plan,) = honest.glob("results/small/*/plan.json")
    replan(plan, sealed=False)
    shutil.copytree(plan.parent, honest / "results" / "small" / "old")
    reseal(record_of_run(honest / "results" / "small" / "old", "q8_0"), fingerprint="0" * 64)
    done = tqbench(honest, "compare", f"small/{plan.parent.name}:q8_0", "small/old:q8_0")
    assert done.returncode == 5, done.stdout
    assert "nll.npy gives a perplexity of" in done.stdout


def record_of_run(run: Path, label: str) -> Path:
    (path,) = run.glob(f"cells/{label}-*/record.json")
    return path


def test_a_missing_metric(honest: Path) -> None:
    path = record_of(honest, "q8_0")
    reseal(path, metrics={name: value for name, value in Record.read(path).metrics.items() if name != "dppl"})
    done = tqbench(honest, "gate", "small")
    assert done.returncode == 1, done.stdout
    assert "the record has no metric 'dppl'" in done.stdout
    done = tqbench(honest, "gate", "small", "--fail-on", "decode_tps<1")
    assert done.returncode == 1, done.stdout
    assert "no cell of this run measures decode_tps" in done.stdout


def test_a_model_that_gives_nan(suite: Callable[..., Path], make_model: Callable[..., Path]) -> None:
    def spoil(model: Any) -> None:
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")

    folder = suite("q8_0", of=make_model(spoil=spoil))
    done = tqbench(folder, "run", "small.yaml")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "is not finite" in reasons(folder)["q8_0"]
    assert "there is no result (failed)" in done.stdout


def test_an_empty_set_of_results(honest: Path) -> None:
    (plan,) = honest.glob("results/small/*/plan.json")
    shutil.rmtree(plan.parent / "cells")
    done = tqbench(honest, "gate", "small")
    assert done.returncode == 3, done.stdout
    assert "there is no result (not run)" in done.stdout
    data = json.loads(plan.read_text())
    for gates, code, said in ((data["gates"], 1, "no scheme of this run matches q8_0"), ([], 5, "nothing was measured")):
        replan(plan, cells=[], gates=gates)
        done = tqbench(honest, "gate", "small")
        assert done.returncode == code, done.stdout
        assert said in done.stdout


def test_a_perplexity_that_improves_under_a_broken_model(suite: Callable[..., Path], make_model: Callable[..., Path]) -> None:
    """Attention does harm in this model, so a cache that loses everything helps: only a gate that looks both ways sees it."""
    gates = "".join(
        f"  - {{schemes: destructive, metric: {metric}, limit: 0.5, sided: {sided}}}\n"
        for metric, sided in (("dppl", "one"), ("dppl", "two"), ("kld", "two"))
    )
    folder = suite("destructive", gates=gates, of=make_model(loud=3.0))
    done = tqbench(folder, "run", "small.yaml", lie="values", GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY="summary.md")
    assert done.returncode == 1, done.stdout + done.stderr
    dppl = Record.read(record_of(folder, "destructive")).metrics["dppl"]
    assert dppl.high is not None
    assert dppl.high < -0.5
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if "destructive  " in line and ("Δppl" in line or "KLD" in line)] == [
        "pass",
        "fail",
        "fail",
    ], done.stdout
    assert (folder / "summary.md").read_text().startswith("## small: a gate failed (exit code 1)\n")
    told = [line for line in lines if line.startswith("::")]
    assert [line.partition(",title=")[0] for line in told] == ["::error file=small.yaml,line=9", "::error file=small.yaml,line=10"]

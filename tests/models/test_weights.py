"""Weights are checked before an engine sees them: pickles are refused, shards that are missing or damaged are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tqbench.__main__ import main
from tqbench.core.errors import ConfigError
from tqbench.models import resolve, weights
from tqbench.models.weights import INDEX

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
COMMIT = "c0ffee" + "0" * 34


def sharded(folder: Path) -> Path:
    """A directory with a configuration and two shards of one array each."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for i, shard in enumerate(SHARDS):
        save_file({f"array.{i}": np.ones((8, 8), np.float32)}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"array.{i}": shard for i, shard in enumerate(SHARDS)}}))
    return folder


def pickled(folder: Path) -> None:
    for file in (INDEX, *SHARDS):
        (folder / file).unlink()
    for name in ("pytorch_model.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"\x80\x04.")


def cut(folder: Path) -> None:
    shard = folder / SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:-7])


def other(folder: Path) -> None:
    save_file({"array.7": np.ones(3, np.float32)}, folder / SHARDS[0])


def adapter(folder: Path) -> None:
    bare(folder)
    save_file({"lora": np.ones(3, np.float32)}, folder / "adapter_model.safetensors")


def bare(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle": (pickled, r"has no safetensors, only pytorch_model.bin: a pickle may run any code .*save_pretrained"),
    "a shard is missing": (lambda folder: (folder / SHARDS[0]).unlink(), rf"1 of 2 shards are missing: {SHARDS[0]}; copy or download"),
    "a shard is cut off": (cut, rf"{SHARDS[1]} is damaged or not complete \(.*\); copy or download it again"),
    "a shard is no safetensors": (lambda folder: (folder / SHARDS[0]).write_bytes(b"<html>"), rf"{SHARDS[0]} is damaged"),
    "a shard of something else": (other, rf"{SHARDS[0]} lacks 1 of the arrays that {INDEX} says it has, 'array.0' first"),
    "an index that is cut off": (
        lambda folder: (folder / INDEX).write_text('{"weight_map": {'),
        rf"{INDEX} cannot be read: JSONDecodeError",
    ),
    "an index of something else": (lambda folder: (folder / INDEX).write_text("[]"), rf"{INDEX} cannot be read: TypeError"),
    "an adapter": (adapter, "is an adapter"),
    "nothing": (bare, "has no weights"),
    "a configuration that is cut off": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json of model './mine' cannot be read",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_not_whole_or_not_safe_is_refused(case: str, tmp_path: Path) -> None:
    damage, said = DAMAGE[case]
    folder = sharded(tmp_path / "mine")
    assert resolve.problem("./mine", tmp_path) is None
    damage(folder)
    with pytest.raises(ConfigError, match=said):
        resolve.resolve("./mine", tmp_path)
    problem = resolve.problem("./mine", tmp_path)
    assert problem is None if case == "nothing" else "'./mine'" in str(problem)


def test_weights_are_told_apart(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "mine")
    first = resolve.resolve("./mine", tmp_path).sha256
    assert first == weights.fingerprint(shutil.copytree(folder, tmp_path / "copy"))
    save_file({"array.1": np.full((8, 8), 1.5, np.float32)}, folder / SHARDS[1])
    assert resolve.resolve("./mine", tmp_path).sha256 != first


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline hub cache that holds one model, and a second commit of it under a tag."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--org--mine"
    for ref, commit in (("main", COMMIT), ("v1", COMMIT[::-1])):
        sharded(repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    return repo


@pytest.mark.parametrize(
    ("name", "commit"),
    [("org/mine", COMMIT), ("org/mine@v1", COMMIT[::-1]), (f"org/mine@{COMMIT}", COMMIT), (f"org/mine@{COMMIT[::-1]}", COMMIT[::-1])],
)
def test_a_hub_model_is_the_commit_that_its_name_means(name: str, commit: str, hub: Path) -> None:
    found = resolve.resolve(name)
    assert (found.revision, found.path) == (commit, str(hub / "snapshots" / commit))
    assert resolve.hub_commit(name) == commit
    assert resolve.config(name) == {"model_type": "llama"}
    assert resolve.needs(name).download_bytes == 0


def test_a_folder_of_the_hub_s_cache_is_its_main(hub: Path) -> None:
    found = resolve.resolve(str(hub))
    assert (found.revision, found.path) == (COMMIT, str(hub / "snapshots" / COMMIT))
    assert resolve.config(str(hub)) == {"model_type": "llama"}


@pytest.mark.parametrize("name", ["org/mine@v2", "org/mine@" + "0" * 40])
def test_a_revision_that_is_not_here_is_refused(name: str, hub: Path) -> None:
    assert resolve.hub_commit(name) is None
    with pytest.raises(ConfigError, match=f"model '{name}' is not in the local hub cache"):
        resolve.resolve(name)


def test_a_snapshot_is_checked_like_any_directory(hub: Path) -> None:
    cut(hub / "snapshots" / COMMIT)
    with pytest.raises(ConfigError, match=f"model 'org/mine': {SHARDS[1]} is damaged"):
        resolve.resolve("org/mine")


def test_the_commit_that_is_here_stays_whatever_the_hub_has(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the hub's client, which takes a commit without looking what main means meanwhile."""
    asked = []

    def download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, "*.py" in allow_patterns))
        return str(hub / "snapshots" / COMMIT)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    resolve.resolve("org/mine")
    resolve.resolve("org/mine", trust_remote_code=True)
    resolve.fetch("org/mine")
    assert asked == [("org/mine", COMMIT, False), ("org/mine", COMMIT, True), ("org/mine", None, False)]


def test_fetch_takes_hub_ids(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "fetch", "org/mine@v1"]) == 0
    assert capsys.readouterr().out.strip() == str(hub / "snapshots" / COMMIT[::-1])
    assert main(["models", "fetch", "smollm"]) == 2
    assert "or give a hub id org/name[@revision]" in capsys.readouterr().err

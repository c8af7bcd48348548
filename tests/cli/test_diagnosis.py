"""What `tqbench doctor` finds out, in places that are not like this one."""

from __future__ import annotations

import hashlib
import urllib.request
from importlib.metadata import Distribution
from pathlib import Path
from types import SimpleNamespace

import pytest

from tqbench.cli import diagnosis
from tqbench.corpora import wikitext_2
from tqbench.kernels import native
from tqbench.measure import device, gpu


def fact(name: str) -> diagnosis.Fact:
    return next(one for one in diagnosis.facts() if one.name == name)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_gpu_without_a_torch_that_can_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "0000:01:00.0"
    folder.mkdir()
    (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(device, "NVIDIA", tmp_path)
    monkeypatch.setattr(device, "torch_version", lambda: "2.13.0+cpu")
    found = fact("cuda")
    assert (found.state, found.value) == ("missing", "NVIDIA H200; torch 2.13.0+cpu cannot use it")
    assert found.next.startswith("pip install --force-reinstall torch ")
    monkeypatch.setattr(device, "torch_version", lambda: "2.13.0+cu130")
    assert (fact("cuda").state, fact("cuda").value) == ("ready", "NVIDIA H200; torch 2.13.0+cu130")


def test_what_the_driver_tells_of_a_gpu_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"name": "NVIDIA H200", "driver": "580.1", "capability": "9.0", "memory_bytes": 1 << 37}
    one = SimpleNamespace(
        facts=lambda: {name: gpu.Told(x) for name, x in told.items()} | {"power_limit_w": gpu.Told(reason="Not Supported")}
    )
    monkeypatch.setattr(gpu, "all_of_them", lambda: [one])
    assert fact("gpu 0").value == "NVIDIA H200, capability 9.0, 128.0 GiB, driver 580.1"
    monkeypatch.setattr(gpu, "all_of_them", lambda: "NVML cannot be used: no driver")
    assert (fact("nvml").state, fact("nvml").value) == ("missing", "NVML cannot be used: no driver")


def test_the_native_library_is_loaded_to_see_what_it_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.path():
        assert fact("native").state == "ready"
        assert fact("native").value.split(",")[0] in ("avx512", "avx2", "neon", "scalar")
    broken = tmp_path / "libtqbench_native.so"
    broken.write_text("no library")
    monkeypatch.setenv("TQBENCH_NATIVE", str(broken))
    found = fact("native")
    assert found.state == "wrong"
    assert str(broken) in found.value
    monkeypatch.setattr(native, "path", lambda: None)
    found = fact("native")
    assert found.state == "missing"
    assert "install a C++17 compiler" in found.next


def test_a_missing_extra_has_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = diagnosis._version
    monkeypatch.setattr(diagnosis, "_version", lambda name: None if name == "hqq" else real(name))
    found = next(one for one in diagnosis.facts() if (one.topic, one.name) == ("extras", "peers"))
    assert (found.state, found.value, found.next) == ("missing", "needs hqq", 'pip install "tqbench[peers]"')
    assert isinstance(diagnosis.distribution("tqbench"), Distribution)


def test_the_text_is_known_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "wiki.test.raw"
    text.write_text("another text")
    monkeypatch.setenv("TQBENCH_WIKITEXT", str(text))
    found = fact("wikitext-2")
    assert found.state == "wrong"
    assert "is not the raw wikitext-2 test split" in found.value
    monkeypatch.setattr(wikitext_2, "SHA256", hashlib.sha256(b"another text").hexdigest())
    assert (fact("wikitext-2").state, fact("wikitext-2").value) == ("ready", f"12 B in {text}")
    monkeypatch.delenv("TQBENCH_WIKITEXT")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    assert fact("wikitext-2").state == "missing"
    (tmp_path / "Salesforce___wikitext" / "wikitext-2-raw-v1").mkdir(parents=True)
    assert fact("wikitext-2").state == "ready"


def test_the_hub_is_asked_once_and_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(request: urllib.request.Request, timeout: float) -> None:
        asked.append((request.full_url, timeout))
        raise TimeoutError("timed out")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    found = next(one for one in diagnosis.facts() if one.topic == "hub")
    assert asked == [("https://hub.example", diagnosis.HUB_SECONDS)]
    assert (found.state, found.value) == ("missing", "https://hub.example does not answer: timed out")

"""Which devices are here, in places that are not like this one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tqbench.core.errors import Unsupported
from tqbench.measure import device


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux machine with torch for CUDA and no GPU."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(device, "NVIDIA", tmp_path)
    monkeypatch.setattr(device, "OTHERS", ())
    monkeypatch.setattr(device, "torch_version", lambda: "2.13.0+cu130")
    return tmp_path


def gpu(place: Path, name: str = "NVIDIA H200") -> None:
    folder = place / f"0000:0{len(list(place.iterdir()))}:00.0"
    folder.mkdir()
    (folder / "information").write_text(f"Model: \t\t {name}\nIRQ: 1\n")


def test_a_device_that_is_not_there_has_a_reason(place: Path) -> None:
    assert device.absent("cpu") is None
    assert device.absent("cuda") == "no GPU with a driver is seen here"
    with pytest.raises(Unsupported, match="device 'cuda' is not here: no GPU with a driver is seen here"):
        device.check("cuda")
    assert device.absent("mps") == "this is no machine with Apple silicon"


def test_a_driver_shows_its_gpus(place: Path) -> None:
    gpu(place)
    gpu(place, "NVIDIA L4")
    assert device.gpus() == ["NVIDIA H200", "NVIDIA L4"]
    assert device.absent("cuda") is None
    assert device.absent("cuda:1") is None
    assert device.absent("cuda:2") == "there are 2 GPUs here"


def test_a_container_may_show_the_device_and_not_the_driver(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "OTHERS", (place,))
    assert device.absent("cuda:7") is None


def test_a_torch_without_cuda_is_the_reason_wherever_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(place)
    monkeypatch.setattr(device, "torch_version", lambda: "2.13.0+cpu")
    assert device.absent("cuda") == "torch 2.13.0+cpu is built without CUDA, and there is NVIDIA H200"


def test_torch_has_the_last_word(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gpu(place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unsupported, match="sees no GPU: its driver may be too old, or CUDA_VISIBLE_DEVICES hides it"):
        device.check("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    device.check("cuda:0")
    gpu(place)
    with pytest.raises(Unsupported, match=r"torch sees 1 GPU$"):
        device.check("cuda:1")

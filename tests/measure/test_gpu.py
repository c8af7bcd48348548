"""What NVML tells, on a GPU that is made up: each quantity by itself, and a reason where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tqbench.measure import clock, environment, gpu


class Nvml:
    """Two GPUs. Energy counts with the clock at 300 W; what is in `broken` raises."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, hand: list[float], *broken: str):
        self.hand, self.broken = hand, broken
        self.reads = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "broken"):
            raise RuntimeError("Not Supported")
        return object.__getattribute__(self, name)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - as NVML calls it
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"handle {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return {"GPU-a": "handle 0", "GPU-b": "handle 1"}[uuid]

    def nvmlDeviceGetName(self, handle: str) -> bytes:  # noqa: N802
        return {"handle 0": b"NVIDIA H200", "handle 1": b"NVIDIA L4"}[handle]

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:  # noqa: N802
        return (9, 0)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(total=1 << 37)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        self.reads += 1
        return SimpleNamespace(gpu=100 if self.reads % 2 else 50)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 300_000

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:  # noqa: N802
        return {1: 1980, 2: 3201}[which]

    def nvmlDeviceGetTemperature(self, handle: str, which: int) -> int:  # noqa: N802
        return 55

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return int(1e3 * 300 * self.hand[0])

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
        return 0x4 | 0x1


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found = [0.0]
    monkeypatch.setattr(clock, "seconds", lambda: found[0])
    return found


@pytest.fixture
def nvml(hand: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import torch

    def use(*broken: str) -> gpu.Gpu:
        made = Nvml(hand, *broken)
        monkeypatch.setattr(gpu, "_nvml", lambda: made)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid={"cuda:0": "b"}[device]))
        found = gpu.find("cuda:0")
        assert isinstance(found, gpu.Gpu)
        return found

    return use


def test_a_device_is_found_by_its_uuid_not_by_its_number(nvml: Any) -> None:
    """CUDA_VISIBLE_DEVICES=1 makes the second GPU torch's first."""
    facts = gpu.plainly(nvml().facts())
    assert facts == {"name": "NVIDIA L4", "driver": "580.1", "capability": "9.0", "memory_bytes": 1 << 37, "power_limit_w": 700.0}
    every = gpu.all_of_them()
    assert [one.facts()["name"].value for one in every if isinstance(one, gpu.Gpu)] == ["NVIDIA H200", "NVIDIA L4"]


def test_a_meter_adds_up_its_stretches_and_nothing_between_them(nvml: Any, hand: list[float]) -> None:
    meter = gpu.Meter(nvml())
    for seconds in (1.0, 3.0):
        with meter:
            hand[0] += seconds
        hand[0] += 50  # between stretches
    found = meter.summary()
    assert (found["seconds"], found["energy_j"]) == (4.0, 1200.0)
    assert found["samples"] >= 2
    assert 0.5 < found["utilisation"] < 1
    assert found["range"]["utilisation"] == [0.5, 1.0]
    assert (found["power_w"], found["clock_mhz"], found["memory_clock_mhz"], found["temperature_c"]) == (300, 1980, 3201, 55)
    assert found["throttled"] == ["power cap"]
    assert "missing" not in found


def test_what_cannot_be_read_is_null_with_its_reason(nvml: Any, hand: list[float]) -> None:
    broken = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksThrottleReasons")
    meter = gpu.Meter(nvml(*broken))
    with meter:
        hand[0] += 2
    found = meter.summary()
    assert (found["energy_j"], found["power_w"], found["throttled"]) == (None, None, None)
    assert found["missing"] == dict.fromkeys(("energy_j", "power_w", "throttled"), "RuntimeError: Not Supported")
    assert found["temperature_c"] == 55


def test_a_moment_is_too_short_for_energy(nvml: Any, hand: list[float]) -> None:
    meter = gpu.Meter(nvml())
    with meter:
        hand[0] += 0.01
    assert meter.summary()["missing"]["energy_j"] == "metered for 0.01 s, which is too short for the counter of energy"


def test_without_a_driver_there_is_a_reason_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.find("cpu") == "NVML reads NVIDIA GPUs, not cpu"
    monkeypatch.setattr(gpu, "_nvml", lambda: "NVML cannot be used: NVMLError: Driver Not Loaded")
    assert gpu.find("cuda") == gpu.all_of_them() == "NVML cannot be used: NVMLError: Driver Not Loaded"


def test_the_environment_names_the_gpus(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml("nvmlSystemGetDriverVersion")
    monkeypatch.setattr(gpu, "names", gpu.names.__wrapped__)
    assert environment.numerics()["gpus"] == {
        "0": "NVIDIA H200, capability 9.0, driver RuntimeError: Not Supported",
        "1": "NVIDIA L4, capability 9.0, driver RuntimeError: Not Supported",
    }
    monkeypatch.setattr(gpu, "all_of_them", lambda: "NVML cannot be used: no driver")
    monkeypatch.setattr(gpu, "gpus", lambda: ["NVIDIA H200"])
    assert gpu.names() == {"0": "NVIDIA H200; NVML cannot be used: no driver"}
    monkeypatch.setattr(gpu, "gpus", list)
    assert "gpus" not in environment.numerics()


def test_nvml_here_answers_or_says_why_not() -> None:
    """The package itself, whatever this machine has."""
    found = gpu.all_of_them()
    assert found if isinstance(found, list) else found.startswith("NVML ")

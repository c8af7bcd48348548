"""What NVML tells of an NVIDIA GPU: what it is, and what it does while something runs on it. What cannot be read is None, with the reason.

Reading costs the host some tenths of a millisecond and the interpreter's lock, so nothing is read while something is timed.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import Any

from tqbench.measure import clock
from tqbench.measure.device import gpus

HERTZ = 4  # how often a running meter reads
LEAST = 0.5  # seconds that a counter of energy must run to tell anything: it is renewed some ten times a second
PREFIX = "GPU-"
THROTTLES = {  # NVML's reasons to clock down that a reader must know of
    0x4: "power cap",
    0x8: "slowdown by the hardware",
    0x20: "heat",
    0x40: "heat, by the hardware",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Told:
    """What NVML answered, or why it did not."""

    value: Any = None
    reason: str | None = None


@cache
def _nvml() -> Any:
    """NVML, initialised once; the reason as text where it cannot be."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - no package, no driver, no permission: whatever it is, nothing can be read
        return f"NVML cannot be used: {_words(error)}"
    return nvml


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _ask(fn: Callable[[], Any]) -> Told:
    try:
        return Told(fn())
    except Exception as error:  # noqa: BLE001 - every quantity may be missing on some GPU, and says so in its own way
        return Told(reason=_words(error))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class Gpu:
    """One GPU, as NVML knows it."""

    nvml: Any
    handle: Any

    def facts(self) -> dict[str, Told]:
        """What does not change."""
        nvml, handle = self.nvml, self.handle
        return {
            "name": _ask(lambda: _text(nvml.nvmlDeviceGetName(handle))),
            "driver": _ask(lambda: _text(nvml.nvmlSystemGetDriverVersion())),
            "capability": _ask(lambda: ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle)))),
            "memory_bytes": _ask(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
            "power_limit_w": _ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
        }

    def now(self) -> dict[str, Told]:
        """What it does at this moment."""
        nvml, handle = self.nvml, self.handle
        return {
            "utilisation": _ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            "power_w": _ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            "clock_mhz": _ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "memory_clock_mhz": _ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            "temperature_c": _ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        }

    def joules(self) -> Told:
        """The energy that it has used since its driver was loaded."""
        return _ask(lambda: self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3)

    def throttled(self) -> Told:
        """Why it runs slower than it could, if it does."""
        return _ask(lambda: _reasons(self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)))


def _reasons(mask: int) -> list[str]:
    return [words for bit, words in THROTTLES.items() if mask & bit]


def all_of_them() -> list[Gpu] | str:
    """Every GPU that NVML shows, or why it shows none."""
    nvml = _nvml()
    if isinstance(nvml, str):
        return nvml
    found = _ask(lambda: [Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())])
    return found.value if found.reason is None else f"NVML shows no GPU: {found.reason}"


@cache
def names() -> dict[str, str]:
    """The GPUs of this machine in a few words each, by their number; without NVML as far as the driver's files tell."""
    found = all_of_them()
    if isinstance(found, str):
        return {str(i): f"{name}; {found}" for i, name in enumerate(gpus())}
    return {str(i): _described(one.facts()) for i, one in enumerate(found)}


def _described(facts: Mapping[str, Told]) -> str:
    parts = (("", "name"), ("capability ", "capability"), ("driver ", "driver"))
    return ", ".join(f"{word}{facts[key].reason if facts[key].value is None else facts[key].value}" for word, key in parts)


def find(device: str) -> Gpu | str:
    """The GPU that is a CUDA device of torch, found by its UUID because CUDA_VISIBLE_DEVICES renumbers; or why it is not known."""
    if not device.startswith("cuda"):
        return f"NVML reads NVIDIA GPUs, not {device}"
    nvml = _nvml()
    if isinstance(nvml, str):
        return nvml
    import torch

    uuid = _ask(lambda: str(torch.cuda.get_device_properties(device).uuid))
    handle = _ask(lambda: nvml.nvmlDeviceGetHandleByUUID(PREFIX + uuid.value.removeprefix(PREFIX))) if uuid.reason is None else uuid
    return Gpu(nvml, handle.value) if handle.reason is None else f"NVML does not know this device: {handle.reason}"


def plainly(told: Mapping[str, Told]) -> dict[str, Any]:
    """As records keep it: the values, and beside them why some are missing."""
    missing = {name: one.reason for name, one in told.items() if one.reason is not None}
    return {name: one.value for name, one in told.items()} | ({"missing": missing} if missing else {})


@dataclass
class Meter:
    """Reads a GPU in the background, in as many stretches as it is entered for."""

    gpu: Gpu
    seconds: float = 0.0
    joules: Told = Told(0.0)
    samples: dict[str, list[Told]] = field(default_factory=dict)
    throttles: list[Told] = field(default_factory=list)
    _start: tuple[float, Told] = (0.0, Told())
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Meter:
        self._stop.clear()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._start = clock.seconds(), self.gpu.joules()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        began, before = self._start
        after, ended = self.gpu.joules(), clock.seconds()
        self._stop.set()
        if self._thread:
            self._thread.join()
        self.seconds += ended - began
        failed = next((one.reason for one in (self.joules, before, after) if one.reason), None)
        self.joules = Told(reason=failed) if failed else Told(self.joules.value + after.value - before.value)

    def _read(self) -> None:
        while True:
            for name, told in self.gpu.now().items():
                self.samples.setdefault(name, []).append(told)
            self.throttles.append(self.gpu.throttled())
            if self._stop.wait(1 / HERTZ):
                return

    def summary(self) -> dict[str, Any]:
        """Means over the samples with the least and the most; energy over the whole."""
        told = {name: _mean(found) for name, found in self.samples.items()}
        told |= {"energy_j": self._energy(), "throttled": self._throttled()}
        ends = {name: [min(known), max(known)] for name, found in self.samples.items() if (known := _known(found))}
        read = max(map(len, self.samples.values()), default=0)
        return {
            "seconds": self.seconds,
            "samples": read,
            "hertz": HERTZ,
            **plainly(told),
            "range": ends,
        }

    def _throttled(self) -> Told:
        """All reasons that were seen; none is known only where it could be asked."""
        failed = next((one for one in self.throttles if one.reason is not None), None)
        return failed or Told(sorted({reason for one in self.throttles for reason in one.value}))

    def _energy(self) -> Told:
        if self.joules.reason or self.seconds >= LEAST:
            return self.joules
        return Told(reason=f"metered for {self.seconds:.2f} s, which is too short for the counter of energy")


def _known(found: list[Told]) -> list[float]:
    return [float(one.value) for one in found if one.reason is None]


def _mean(found: list[Told]) -> Told:
    known = _known(found)
    return Told(fmean(known)) if known else Told(reason=found[0].reason if found else "nothing was read")

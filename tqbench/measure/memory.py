"""Memory of this process, and of the device that it computes on."""

from __future__ import annotations

import sys
from pathlib import Path


def reset_peak(device: str = "cpu") -> None:
    """Start a new peak of the process, where the kernel can (Linux), and of the device's allocator."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def device_peak(device: str) -> dict[str, int]:
    """The most bytes since `reset_peak` that torch's allocator had given out on a CUDA device, and had taken from it; nothing elsewhere."""
    if not device.startswith("cuda"):
        return {}
    import torch

    return {"allocated": int(torch.cuda.max_memory_allocated(device)), "reserved": int(torch.cuda.max_memory_reserved(device))}


def device_free(device: str) -> int | None:
    """Bytes of a CUDA device that nothing holds yet, what torch's allocator keeps ready included; None elsewhere."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def ran_out(error: BaseException) -> bool:
    """Whether this says that there was no memory, of the host or of a device."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "OutOfMemory", "Cannot allocate")
    )


def peak() -> int | None:
    """The largest resident set since `reset_peak`, in bytes; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return _peak_of_process()
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return int(line.split()[1]) * 1024 if line else None


def available() -> int:
    """Bytes that may still be taken without paging."""
    import psutil

    return int(psutil.virtual_memory().available)


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def out_of_memory_kills() -> int | None:
    """How often the kernel's out-of-memory killer struck on this machine; None where it does not tell."""
    try:
        text = Path("/proc/vmstat").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), None)

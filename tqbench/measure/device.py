"""Which devices are here. What drivers and packages tell is asked without loading torch; torch has the last word when a session opens."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqbench.core.errors import Unsupported

NVIDIA = Path("/proc/driver/nvidia/gpus")  # Linux: one folder per GPU
OTHERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))  # in containers, under Windows, and of AMD


def gpus() -> list[str]:
    """The NVIDIA GPUs that a driver shows, by name."""
    found = [folder / "information" for folder in sorted(NVIDIA.glob("*"))]
    return [_model(file) or "NVIDIA GPU" for file in found]


def _model(file: Path) -> str:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "")


def absent(device: str) -> str | None:
    """Why a device of torch cannot be here; None where nothing speaks against it."""
    kind, _, index = device.partition(":")
    if kind == "mps":
        return None if sys.platform == "darwin" and platform.machine() == "arm64" else "this is no machine with Apple silicon"
    if kind != "cuda":
        return None
    built, seen = torch_version() or "", gpus()
    if "+cpu" in built or sys.platform == "darwin":
        return f"torch {built} is built without CUDA{f', and there is {seen[0]}' if seen else ''}"
    if sys.platform == "linux" and not seen and not any(path.exists() for path in OTHERS):
        return "no GPU with a driver is seen here"
    return f"there are {len(seen)} GPUs here" if seen and index and int(index) >= len(seen) else None


def torch_version() -> str | None:
    """The installed torch."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def check(device: str) -> None:
    """Raise if nothing can be computed on a device."""
    if why := absent(device) or _unseen(device):
        raise Unsupported(f"device {device!r} is not here: {why}")


def _unseen(device: str) -> str | None:
    """What torch itself says."""
    if not device.startswith("cuda"):
        return None
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU: its driver may be too old, or CUDA_VISIBLE_DEVICES hides it"
    count, index = torch.cuda.device_count(), torch.device(device).index or 0
    return None if index < count else f"torch sees {count} GPU{'s' * (count != 1)}"

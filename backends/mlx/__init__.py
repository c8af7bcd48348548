"""Our store inside an mlx-lm model, on the CPU or on Apple's GPU."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from tqbench.core.errors import Unsupported
from tqbench.core.session import LocalModel, Session


def open_session(model: LocalModel, device: str = "cpu", dtype: str = "float32") -> Session:
    """Load the model and open a session on it."""
    require("mlx", "mlx-lm")
    from backends.mlx.session import load

    return load(model, device, dtype)


def require(*packages: str) -> None:
    """Raise Unsupported with the command to run if a package is not installed."""
    missing = [package for package in packages if not _installed(package)]
    if missing:
        raise Unsupported(f'the mlx backend needs {" and ".join(missing)}; install with: pip install "tqbench[mlx]"')


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False

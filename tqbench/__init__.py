"""What KV-cache quantization costs and what it buys: `tqbench.run("suites/quickstart.yaml")`, `tqbench.load("quickstart").frame()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqbench.core.finder import announce

if TYPE_CHECKING:
    from tqbench.runner.api import load as load
    from tqbench.runner.api import run as run

    __version__: str

__all__ = ["__version__", "load", "run"]

announce()


def __getattr__(name: str) -> Any:
    """Bound at first use, so that importing a part of tqbench does not import all of it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tqbench")
    if name in ("load", "run"):
        from tqbench.runner import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""How checks look at what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqbench.core.errors import ConfigError, StorageError, Unsupported


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """Why the call was refused, or None if it was not. Any error but tqbench's own is a fault and passes through."""
    try:
        call(*args, **kwargs)
    except (Unsupported, ConfigError, StorageError) as reason:
        return str(reason)
    return None

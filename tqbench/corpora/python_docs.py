"""The Python language reference, which CPython carries in `pydoc_data.topics`: text that is there without a network.

It differs between Python versions, so records name its hash."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from tqbench.core.errors import ConfigError
from tqbench.corpora import Text


def load(options: dict[str, Any], root: Path) -> Text:  # noqa: ARG001 - this corpus takes no options
    """All topics in their own order, parted by blank lines."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ConfigError("this Python was installed without pydoc_data.topics; use corpus wikitext-2 or file") from None
    return Text("python-docs", "\n\n".join(topics.values()), f"pydoc_data.topics of Python {platform.python_version()}")

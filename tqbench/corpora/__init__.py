"""Text, one file per corpus, each with `load(options) -> Text`; and the recipes that cut it into scored windows."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqbench.core.errors import ConfigError, unknown
from tqbench.core.registry import modules


@dataclass(frozen=True)
class Text:
    """A corpus, and where it came from."""

    name: str
    text: str
    origin: str

    @cached_property
    def sha256(self) -> str:
        """Of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def names() -> list[str]:
    """The corpora by the names that suites use."""
    return sorted(name.replace("_", "-") for name in modules(__name__) if name != "recipes")


def load(options: dict[str, Any], root: Path = Path()) -> Text:
    """The text of a corpus: `{name: …, …}`."""
    name = str(options["name"])
    if name not in names():
        raise ConfigError(unknown("corpus", name, names()))
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    text: Text = module.load({key: value for key, value in options.items() if key != "name"}, root)
    return text

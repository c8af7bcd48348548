"""Any UTF-8 text file: `{name: file, path: notes.txt}`, relative to the suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqbench.core.errors import ConfigError
from tqbench.corpora import Text


def load(options: dict[str, Any], root: Path) -> Text:
    """The file's text as it is."""
    if not isinstance(options.get("path"), str):
        raise ConfigError("corpus file needs a path: {name: file, path: …}")
    path = root / Path(options["path"]).expanduser()
    try:
        return Text("file", path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"corpus file {str(path)!r} cannot be read: {error}") from error

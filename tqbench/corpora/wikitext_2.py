"""wikitext-2, raw test split: from the file that TQBENCH_WIKITEXT names, else from the hub. Recognised by its hash, never by its name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from tqbench.core.errors import ConfigError
from tqbench.corpora import Text

SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"


def load(options: dict[str, Any], root: Path) -> Text:  # noqa: ARG001 - this corpus takes no options
    """The whole split as one string."""
    path = os.environ.get("TQBENCH_WIKITEXT")
    try:
        raw = Path(path).read_bytes() if path else _from_hub()
    except OSError as error:
        raise ConfigError(f"TQBENCH_WIKITEXT: {error}") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != SHA256:
        raise ConfigError(f"{path or 'the hub copy'} is not the raw wikitext-2 test split: SHA-256 {found}, expected {SHA256}")
    return Text("wikitext-2", raw.decode(), "file" if path else "hub Salesforce/wikitext wikitext-2-raw-v1")


def _from_hub() -> bytes:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError('wikitext-2 needs its raw test file (set TQBENCH_WIKITEXT to it) or `pip install "tqbench[hub]"`') from None
    try:
        rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"]
    except Exception as error:
        raise ConfigError(
            f"wikitext-2 cannot be loaded from the hub ({type(error).__name__}: {error}); set TQBENCH_WIKITEXT to wiki.test.raw"
        ) from error
    return join(rows).encode()


def join(rows: list[str]) -> str:
    """The file's text from the hub's rows, which keep a blank line as an empty string."""
    return "".join(row or " \n" for row in rows)

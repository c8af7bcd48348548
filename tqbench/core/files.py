"""Files: written whole or not at all, found by hash, kept under one cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """`TQBENCH_CACHE`, else the XDG cache folder."""
    own = os.environ.get("TQBENCH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tqbench"


def converted(gguf: Path, sha256: str | None) -> Path:
    """Where the directory lies that a GGUF file is written to once; its hash is part of the name."""
    return cache_root() / "converted" / f"{gguf.stem}-{str(sha256)[:16]}"


def write_atomic(path: Path, data: bytes) -> None:
    """A temporary file beside it, fsync, rename: a reader or a killed writer never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, data: Any) -> None:
    """JSON for people and diffs; NaN is refused, because null with a reason is the only way to say that there is no number."""
    write_atomic(path, (json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(data: Mapping[str, Any]) -> str:
    """The hash of all that a JSON file says but its own `seal`, however it is laid out."""
    said = {key: value for key, value in data.items() if key != "seal"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def short_hash(data: Any, length: int = 10) -> str:
    """A short name for plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:length]

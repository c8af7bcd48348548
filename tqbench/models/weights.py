"""What of a model's directory must be as it should before an engine loads it: safetensors, all of them, whole. Pickles are refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SAMPLES, PIECE = 4096, 64  # of each file, and bytes of each
OTHERS = ("*.h5", "*.msgpack", "*.onnx", "*.gguf")
CONVERT = (
    "to make safetensors of a checkpoint that you trust, load it in an environment of its own with transformers and call "
    "`save_pretrained(FOLDER)`; on the hub, look for a revision that has them and name it as org/name@revision"
)


def problems(folder: Path, name: str) -> list[str]:
    """Why the weights of a model cannot be loaded; none if they can."""
    who = f"model {name!r}"
    index = folder / INDEX
    if index.is_file():
        return [f"{who}: {line}" for line in _sharded(folder, index)]
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        return [f"{who} {_without(folder)}"]
    return [f"{who}: {line}" for file in files for line in _damaged(file)]


def some(folder: Path) -> bool:
    """Whether any weights are there, of whatever form."""
    return any(file for pattern in ("*.safetensors", INDEX, *PICKLES, *OTHERS) for file in folder.glob(pattern))


def fingerprint(folder: Path) -> str:
    """The hash of a model's weights: names, shapes, types, and up to `SAMPLES` pieces of each file, spread evenly: all would take as
    long as loading. It tells models and fine-tunes apart, not a single changed weight."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("model*.safetensors")):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
            file.seek(0)
            digest.update(file.read(header))
            size = path.stat().st_size
            for offset in range(header, size, max(PIECE, (size - header) // SAMPLES)):
                file.seek(offset)
                digest.update(file.read(PIECE))
    return digest.hexdigest()


def _sharded(folder: Path, index: Path) -> Iterator[str]:
    """Every shard that the index names must be there, whole, with the arrays that the index says."""
    try:
        shards = json.loads(index.read_text("utf-8"))["weight_map"]
        wanted: dict[str, set[str]] = {}
        for array, shard in shards.items():
            wanted.setdefault(Path(str(shard)).name, set()).add(array)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"{index.name} cannot be read: {type(error).__name__}: {error}"
        return
    missing = [shard for shard in sorted(wanted) if not (folder / shard).is_file()]
    if missing:
        yield f"{len(missing)} of {len(wanted)} shards are missing: {', '.join(missing)}; copy or download them again"
    for shard in sorted(set(wanted) - set(missing)):
        damaged = list(_damaged(folder / shard))
        yield from damaged
        lacking = [] if damaged else sorted(wanted[shard] - _arrays(folder / shard))
        if lacking:
            yield f"{shard} lacks {len(lacking)} of the arrays that {index.name} says it has, {lacking[0]!r} first"


def _damaged(file: Path) -> Iterator[str]:
    """The header must be readable, and the file as long as it says."""
    try:
        _arrays(file)
    except (SafetensorError, OSError) as error:
        yield f"{file.name} is damaged or not complete ({error}); copy or download it again"


def _arrays(file: Path) -> set[str]:
    with safe_open(file, framework="np") as opened:
        return set(opened.keys())


def _without(folder: Path) -> str:
    """What a directory without safetensors has instead."""
    adapters = sorted(folder.glob("adapter*.safetensors"))
    if adapters:
        return f"is an adapter ({adapters[0].name}), not a model; merge it into its base model and save that"
    pickles = sorted({file.name for pattern in PICKLES for file in folder.glob(pattern) if "optimizer" not in file.name})
    if pickles:
        return f"has no safetensors, only {', '.join(pickles[:3])}: a pickle may run any code when it is loaded and is refused; {CONVERT}"
    others = sorted({file.name for pattern in OTHERS for file in folder.glob(pattern)})
    if others:
        return f"has no model*.safetensors, only {', '.join(others[:3])}; a .gguf file is named as such, other forms are not read"
    return "has no weights: no model*.safetensors lies in its directory"

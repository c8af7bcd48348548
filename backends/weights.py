"""Where weights come from: GGUF files are written once as a Hugging Face directory in float32, so that every engine loads the same exact
weights in a second; what a directory says of its architecture and its own code is settled before anything of it is run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.files import converted, write_json
from tqbench.core.session import LocalModel

NOTE = "gguf.json"  # beside converted weights: how they were stored


def directory(model: LocalModel) -> Path:
    """The model as a directory of safetensors, configuration and tokenizer."""
    path = Path(model.path)
    if path.is_dir():
        return path
    target = converted(path, model.sha256)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        try:
            _convert(path, temporary)
            os.replace(temporary, target)  # noqa: PTH105 - refuses a filled target, so the first of two writers wins
        except OSError:
            if not target.exists():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def describe(model: LocalModel, dtype: str) -> str:
    """How the weights are stored and computed, for the record."""
    path = Path(model.path)
    if path.is_dir():
        return f"{f'commit {model.revision}' if model.revision else f'directory {path.name}'}, computed in {dtype}"
    return f"{_types(path, model)}, computed in {dtype}, dequantized on load from {path.name} (sha256 {str(model.sha256)[:16]})"


def _types(gguf: Path, model: LocalModel) -> str:
    """What the file calls its quantization, and the types of its matrices. Found once, because to read all its keys takes seconds."""
    note = converted(gguf, model.sha256) / NOTE
    if not note.exists():
        write_json(note, _read_types(gguf))
    found = json.loads(note.read_text())
    matrices = ", ".join(f"{count} {kind}" for kind, count in sorted(found["matrices"].items()))
    return f"{found['file_type']} ({matrices})" if found["file_type"] else matrices


def _read_types(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader, LlamaFileType

    reader = GGUFReader(path)
    field = reader.fields.get("general.file_type")
    known = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    matrices = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    return {"file_type": known.get(int(field.parts[field.data[0]][0])) if field else None, "matrices": dict(matrices)}


def settled(model: LocalModel, folder: Path) -> tuple[Any, Any]:
    """The model's configuration and tokenizer, or in words why there is none here: its own code is not run unasked, and what transformers
    does not know cannot run."""
    from transformers import AutoConfig, AutoTokenizer

    options = {"trust_remote_code": model.trust_remote_code, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(folder, **options)
    except (KeyError, ValueError) as error:  # what its registry raises
        raise _unknown(model, folder) from error
    try:
        return config, AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:
        if not model.trust_remote_code and _own_code(folder, "tokenizer_config.json"):
            raise untrusted(model, _own_code(folder, "tokenizer_config.json")) from error
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise Unsupported(f"model {model.name!r} has no tokenizer that {_engine()} can load: {reason}") from error


def remote_code(folder: Path) -> str:
    """The files of a model's own code, for the record of a model that ran it."""
    files = sorted(folder.glob("*.py"))
    digest = hashlib.sha256(b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()
    return f"{', '.join(file.name for file in files)} (sha256 {digest[:16]})"


def _unknown(model: LocalModel, folder: Path) -> Exception:
    """Of an architecture that transformers does not know."""
    own = _own_code(folder, "config.json")
    if own and not model.trust_remote_code:
        return untrusted(model, own)
    kind = _read(folder / "config.json").get("model_type")
    if kind is None:
        return Unsupported(f"the config.json of model {model.name!r} names no model_type, so its architecture is not known")
    return Unsupported(f"architecture {kind!r} of model {model.name!r} is not known to {_engine()}; a newer one may")


def _engine() -> str:
    return f"transformers {version('transformers')}"


def untrusted(model: LocalModel, own: list[str]) -> ConfigError:
    """That a model needs these files of its own, and what to do."""
    return ConfigError(
        f"model {model.name!r} needs code of its own ({', '.join(own)}), which is not run unasked: read it, and if you trust it, put "
        "`trust_remote_code: true` into the suite"
    )


def _own_code(folder: Path, file: str) -> list[str]:
    """The modules that a configuration asks to run."""
    wanted = _read(folder / file).get("auto_map")
    values = wanted.values() if isinstance(wanted, dict) else [wanted]
    names = [name for value in values for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
    return sorted({f"{name.rpartition('--')[2].partition('.')[0]}.py" for name in names})


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


SAMPLED = 4096  # values of each array that are hashed, spread evenly: all of them would take as long as loading


def fingerprint(arrays: Iterable[tuple[str, bytes]]) -> str:
    """The hash of described arrays and their sampled bytes."""
    digest = hashlib.sha256()
    for described, sample in arrays:
        digest.update(described.encode() + b"\0" + sample)
    return digest.hexdigest()


def spread(size: int) -> int:
    """The step that takes at most `SAMPLED` of so many values."""
    return max(1, -(-size // SAMPLED))


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is written is not quantized any more
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantized.state_dict())
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)

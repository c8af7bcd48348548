"""GGUF files, written once as a Hugging Face directory in float32, so that every engine loads the same exact weights in a second."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
        return f"directory {path.name}, computed in {dtype}"
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

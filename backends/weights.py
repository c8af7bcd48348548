"""GGUF files, written once as a Hugging Face directory in float32, so that every engine loads the same exact weights in a second."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tqbench.core.files import converted
from tqbench.core.session import LocalModel


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


def describe(model: LocalModel) -> str:
    """How the weights are stored and computed, for the record."""
    path = Path(model.path)
    return f"{path.name} (sha256 {str(model.sha256)[:16]}), dequantized on load" if path.is_file() else f"directory {path.name}"


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

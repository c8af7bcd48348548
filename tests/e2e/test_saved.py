"""The packaged model's cache in a file, and another process that goes on from it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqbench.cache.storage import Origin, load, save
from tqbench.core import registry
from tqbench.core.presets import read
from tqbench.core.session import LocalModel, Terms
from tqbench.models import packaged

TEXT = "The tower is 324 metres tall, about the same height as an 81-storey building, and the tallest structure in Paris. " * 14
CONTEXT, MORE = 300, 12
LEARNS = {"name": "learns", "k": {"codec": "codebook", "bits": 3, "center": True}, "v": {"codec": "block", "window": 20}, "sinks": 4}
SCHEMES: dict[str, Any] = {name: name for name in ("turbo4", "q8_0", "kivi2", "f16")} | {"learns": LEARNS}

ELSEWHERE = """
import sys
from pathlib import Path
from tests.e2e import test_saved as here
session = here.opened()
for name in here.SCHEMES:
    print(name, here.digest(session, here.taken(session, Path(sys.argv[1]) / name, name)))
"""


def opened() -> Any:
    model = packaged.PACKAGED[packaged.DEFAULT]
    return registry.backend("transformers")(LocalModel(packaged.DEFAULT, str(model.path), model.sha256), "cpu", "float32")


def about(session: Any, name: str) -> tuple[Any, Terms, Any]:
    scheme, ids = read(SCHEMES[name]), session.tokenize(TEXT)
    return scheme, Terms(calibration=session.calibrate([ids[-200:][::-1].copy()]) if scheme.calibrated else None), ids


def taken(session: Any, path: Path, name: str) -> Any:
    scheme, terms, ids = about(session, name)
    return session.new_cache(scheme, terms, load(path, Origin.of(session, scheme, ids[:CONTEXT])))


def digest(session: Any, cache: Any) -> str:
    ids = session.tokenize(TEXT)[CONTEXT : CONTEXT + MORE]
    logits = np.concatenate([session.forward(ids[i : i + 1], cache).numpy() for i in range(MORE)])
    return hashlib.sha256(logits.tobytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.model
def test_another_process_goes_on_to_the_last_bit(open_packaged: Any, tmp_path: Path) -> None:
    session, here = open_packaged("float32"), {}
    for name in SCHEMES:
        scheme, terms, ids = about(session, name)
        cache = session.new_cache(scheme, terms, session.context(ids[:CONTEXT]))
        save(tmp_path / name, cache.state(), Origin.of(session, scheme, ids[:CONTEXT]), "ans" if name == "turbo4" else "zstd")
        here[name] = digest(session, cache)
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert dict(line.split() for line in done.stdout.splitlines()) == here
    assert len(set(here.values())) == len(SCHEMES)

"""Models and texts that tests share. Nothing is downloaded here: `make test` has fetched the packaged model."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tqbench.core.files import cache_root
from tqbench.core.session import LocalModel, Session
from tqbench.models import packaged

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before anything loads torch, and its OpenMP with it: several processes test at once, and threads that wait by spinning take their time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels run on the CPU then
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def packaged_model() -> LocalModel:
    """The packaged model. Its absence is a failure, not a skip."""
    model = packaged.PACKAGED[packaged.DEFAULT]
    assert model.path.exists(), f"run `make test`, or `tqbench models fetch {packaged.DEFAULT}`"
    return LocalModel(packaged.DEFAULT, str(model.path), model.sha256)


@pytest.fixture(scope="session")
def open_packaged(packaged_model: LocalModel) -> Iterator[Callable[[str], Session]]:
    """Opens the packaged model in a dtype, once per test session."""
    from tqbench.core import registry

    opened: dict[str, Session] = {}

    def open_session(dtype: str) -> Session:
        if dtype not in opened:
            opened[dtype] = registry.backend("transformers")(packaged_model, "cpu", dtype)
        return opened[dtype]

    yield open_session
    for session in opened.values():
        session.close()


@pytest.fixture(scope="session")
def wikitext() -> str:
    """The raw wikitext-2 test split, or a visible skip."""
    if "TQBENCH_WIKITEXT" not in os.environ:
        pytest.skip("TQBENCH_WIKITEXT does not name the raw wikitext-2 test split")
    from tqbench.corpora import load

    return load({"name": "wikitext-2"}).text


@pytest.fixture(scope="session")
def tiny_model(packaged_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Llama as a directory, with the packaged model's tokenizer: loads at once, for tests of everything around it."""
    from backends import weights
    from backends.transformers import tiny

    folder: Path = tmp_path_factory.mktemp("tiny")
    model: Any = tiny.llama(vocab_size=49152, max_position_embeddings=8192)
    model.save_pretrained(folder)
    for file in weights.directory(packaged_model).glob("token*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny tensors in one thread: a second one would only wait, and on a busy machine for long. The packaged model takes all there are."""
    torch = sys.modules.get("torch")
    if torch is None or "model" in request.keywords:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _cache_is_known() -> None:
    """Subprocesses of tests use the same cache."""
    os.environ["TQBENCH_CACHE"] = str(cache_root())

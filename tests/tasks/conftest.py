"""A tokenizer whose tokens are bytes, and cells of a tiny model."""

from __future__ import annotations

from typing import Any

import pytest

from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.core.presets import preset, read
from tqbench.core.record import Cell, Record
from tqbench.corpora import Text
from tqbench.tasks import Job, run

TEXT = Text("words", "The quick brown fox jumps over the lazy dog. " * 60 + "Pack my box with five dozen jugs of liquor. " * 60, "a test")


class ByteWords:
    """With a template that marks who speaks, as those of real models do."""

    bos_token_id = None
    eos_token_id = 0
    chat_template = "by hand"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode("latin-1")

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return f"<user>{messages[0]['content']}</user><model>"


@pytest.fixture
def open_tiny():
    """Opens a session that reads bytes on a tiny model; `words` is the text that it is asked about."""

    def open_session(model: Any) -> TransformersSession:
        session = TransformersSession(model, ByteWords(), "tiny")
        session.words = TEXT
        return session

    return open_session


@pytest.fixture
def session(open_tiny):
    with open_tiny(tiny.llama(max_position_embeddings=2048)) as opened:
        yield opened


@pytest.fixture
def measured(session):
    """Measures a cell of a task; cells share what a worker would keep for a setting."""
    beside: dict[Any, Any] = {}

    def measure(task: str, scheme: Any, params: dict[str, Any], **job: Any) -> tuple[Record, dict[str, Any]]:
        data = None if scheme is None else (preset(scheme) if isinstance(scheme, str) else read(scheme)).to_data()
        cell = Cell("tiny", "transformers", "cpu", "float32", data, "auto", task, params, {"name": "words"})
        result = run(Job(job.pop("session", session), cell, TEXT, lambda n: None, beside=job.pop("beside", beside), **job))
        return Record(cell, "ok", **result.fields).audited(), result.arrays

    return measure

"""What tokenizers know besides words: what begins a text, what ends an answer, and what stands around a message, on every backend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from backends import words
from backends.mlx.session import MlxSession
from backends.transformers.session import TransformersSession
from backends.weights import directory
from tqbench.core.errors import Unsupported
from tqbench.core.session import LocalModel


@pytest.fixture(scope="module")
def tokenizer(packaged_model: LocalModel) -> Any:
    return AutoTokenizer.from_pretrained(directory(packaged_model), local_files_only=True)


@pytest.mark.parametrize("kind", [TransformersSession, MlxSession])
def test_a_message_between_its_frame_is_the_template(tokenizer: Any, kind: Any) -> None:
    session = SimpleNamespace(tokenizer=tokenizer, info=SimpleNamespace(name="packaged"))
    message = "What is <|im_end|> for?"  # written by a user, it ends nothing
    before, after = kind.chat(session)
    asked = [{"role": "user", "content": "Hello there"}]
    wanted = tokenizer(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True), add_special_tokens=False)[
        "input_ids"
    ]
    assert [*before, *kind.tokenize(session, "Hello there"), *after] == wanted
    ids = kind.tokenize(session, message)
    assert tokenizer.eos_token_id not in ids
    assert kind.detokenize(session, ids) == message
    assert kind.detokenize(session, after).strip() == "assistant"


def test_without_a_template_or_a_message_in_it() -> None:
    with pytest.raises(Unsupported, match="`chat: false`"):
        words.around_message(SimpleNamespace(chat_template=None), "tiny")
    shouting = SimpleNamespace(chat_template="…", apply_chat_template=lambda *_, **__: "USER: ONE TWO THREE")
    with pytest.raises(Unsupported, match="as it is"):
        words.around_message(shouting, "tiny")


def test_whatever_ends_an_answer() -> None:
    tokenizer = SimpleNamespace(eos_token_id=7)
    assert words.stops(tokenizer, SimpleNamespace(eos_token_id=[5, 6])) == (5, 6, 7)
    assert words.stops(tokenizer, SimpleNamespace(eos_token_id=7)) == (7,)
    assert words.stops(tokenizer, SimpleNamespace(eos_token_id=None)) == (7,)
    assert words.stops(None, SimpleNamespace()) == ()

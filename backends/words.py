"""What a tokenizer knows besides words: where a text begins, where an answer ends, and what stands around a message."""

from __future__ import annotations

from typing import Any

import numpy as np

from tqbench.core.errors import Unsupported
from tqbench.core.session import Ids

MESSAGE = "0123456789"  # stands for the user's in the template; nothing else in one looks like it


def bos(tokenizer: Any) -> int | None:
    """The token that this tokenizer itself puts first, if it does."""
    if tokenizer is None:
        return None
    ids = tokenizer("a")["input_ids"]
    found: int | None = tokenizer.bos_token_id
    return found if found is not None and ids and ids[0] == found else None


def stops(tokenizer: Any, config: Any) -> tuple[int, ...]:
    """The tokens that end an answer, by the model's configuration and the tokenizer's."""
    said = getattr(config, "eos_token_id", None)
    named = [*(said if isinstance(said, list | tuple) else [said]), getattr(tokenizer, "eos_token_id", None)]
    return tuple(dict.fromkeys(int(token) for token in named if token is not None))


def around_message(tokenizer: Any, name: str) -> tuple[Ids, Ids]:
    """Token ids before and after a user's message, up to where the answer begins. The message itself is never read as a template."""
    if not getattr(tokenizer, "chat_template", None):
        raise Unsupported(f"the tokenizer of {name} has no chat template; ask without one (`chat: false`)")
    text = tokenizer.apply_chat_template([{"role": "user", "content": MESSAGE}], tokenize=False, add_generation_prompt=True)
    before, found, after = text.partition(MESSAGE)
    if not found:
        raise Unsupported(f"the chat template of {name} does not hold a user's message as it is; ask without one (`chat: false`)")
    ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))
    return tuple(np.asarray(part, dtype=np.int64) for part in ids)  # type: ignore[return-value]

"""How text becomes scored windows. A perplexity means nothing without its recipe, so every record names it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tqbench.core.errors import ConfigError
from tqbench.core.session import Ids


@dataclass(frozen=True)
class Window:
    """Tokens for one fresh cache, and for each the token to predict, or −1 where nothing is scored."""

    tokens: Ids
    targets: Ids


def stream(ids: Ids, context: int, count: int, warmup: int, bos: int | None) -> list[Window]:  # noqa: ARG001 - the text as it is, no BOS
    """Disjoint windows of `context` tokens; every position from `warmup` on predicts the next token of the text."""
    windows = []
    for start in range(0, count * context, context):
        targets = ids[start + 1 : start + context + 1].copy()
        targets[:warmup] = -1
        windows.append(Window(ids[start : start + context], targets))
    return windows


def llamacpp(ids: Ids, context: int, count: int, warmup: int, bos: int | None) -> list[Window]:  # noqa: ARG001 - always half a window
    """As llama-perplexity: disjoint chunks; the second half is scored, up to the last token inside the chunk; BOS, if the model wants
    one, stands before the text and then takes the place of each chunk's first token."""
    windows = []
    ids = ids if bos is None else np.append(bos, ids)
    for start in range(0, count * context, context):
        tokens = ids[start : start + context].copy()
        targets = np.append(tokens[1:], -1)
        targets[: context // 2] = -1
        if bos is not None:
            tokens[0] = bos
        windows.append(Window(tokens, targets))
    return windows


RECIPES: dict[str, Callable[[Ids, int, int, int, int | None], list[Window]]] = {"stream": stream, "llamacpp": llamacpp}


def windows(recipe: str, ids: Ids, context: int, tokens: int, warmup: int, bos: int | None) -> list[Window]:
    """Windows over the first `tokens` tokens of the text."""
    count = tokens // context
    if len(ids) < count * context + 1:
        raise ConfigError(f"the text has {len(ids)} tokens, {count} windows of {context} need {count * context + 1}")
    return RECIPES[recipe](ids, context, count, warmup, bos)


def fingerprint(parts: list[Window]) -> str:
    """The hash of everything that was run and scored."""
    digest = hashlib.sha256()
    for window in parts:
        digest.update(window.tokens.astype("<i8").tobytes() + window.targets.astype("<i8").tobytes())
    return digest.hexdigest()

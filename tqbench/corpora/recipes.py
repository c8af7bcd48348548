"""How text becomes scored windows. A perplexity means nothing without its recipe, so every record names it with all its parameters.

A recipe is a function of a few integers that says where windows begin and end and which of their tokens are predicted: what is run, what
it costs and how much text it takes all follow from that. Beside it stand what is tokenized, where BOS goes, and the keys that it takes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tqbench.core.errors import ConfigError
from tqbench.core.session import Ids


@dataclass(frozen=True)
class Window:
    """Tokens for one fresh cache, and for each the token to predict, or −1 where nothing is scored."""

    tokens: Ids
    targets: Ids


@dataclass(frozen=True)
class Span:
    """A window as positions in the text: tokens [start, end) are run, and of these [first, last) predict the token that follows."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Cut:
    """The numbers of a recipe. `tokens` is how much text is covered; each recipe says how it gets there."""

    context: int
    tokens: int
    warmup: int = 0
    stride: int = 0

    def starts(self) -> range:
        """Where disjoint windows begin. What does not fill a window is left out."""
        return range(0, self.tokens - self.context + 1, self.context)


def stream(cut: Cut) -> Iterator[Span]:
    """Disjoint windows; every position from `warmup` on predicts the next token of the text, the last one the next window's first."""
    for start in cut.starts():
        yield Span(start, start + cut.context, start + cut.warmup, start + cut.context)


def llamacpp(cut: Cut) -> Iterator[Span]:
    """As llama-perplexity: disjoint windows; the second half is scored, up to the last token inside the window.

    BOS, if the model wants one, stands before the text and then takes the place of each window's first token.
    """
    for start in cut.starts():
        yield Span(start, start + cut.context, start + cut.context // 2, start + cut.context - 1)


def gptq(cut: Cut) -> Iterator[Span]:
    """As GPTQ's and its successors' scripts (a context of 2048 there): disjoint windows; each predicts its own tokens but the first."""
    for start in cut.starts():
        yield Span(start, start + cut.context, start, start + cut.context - 1)


def hf_stride(cut: Cut) -> Iterator[Span]:
    """As transformers documents it: windows that advance by `stride`; each predicts those of its own tokens that none before it has.

    The text ends after `tokens` tokens, and the last window with it: it may be shorter than the others.
    """
    covered = 1  # nothing comes before the first token of the text
    for start in range(0, max(cut.tokens - cut.context, 0) + cut.stride, cut.stride):
        end = min(start + cut.context, cut.tokens)
        first = max(covered, start + 1)
        if first < end:  # disjoint windows may leave a last one of a single token, which predicts nothing
            yield Span(start, end, first - 1, end - 1)
        covered = end


def as_it_is(text: str) -> str:
    """The text, unchanged."""
    return text


def joined_rows(text: str) -> str:
    """The rows of the text joined by blank lines, with rows as the `datasets` copy of wikitext-2-raw holds them: a line with its line feed,
    and nothing for a blank line."""
    return "\n\n".join(line if line.strip() else "" for line in io.StringIO(text))


@dataclass(frozen=True)
class Recipe:
    """How windows are cut, and what that needs."""

    spans: Callable[[Cut], Iterator[Span]]
    prepare: Callable[[str], str] = as_it_is  # what is tokenized
    bos: Literal["never", "text", "windows"] = "never"  # BOS, if the model wants one: before the text, or first in each window as well
    keys: tuple[str, ...] = ()  # of `warmup` and `stride`, those that a suite may give


RECIPES = {
    "stream": Recipe(stream, keys=("warmup",)),
    "llamacpp": Recipe(llamacpp, bos="windows"),
    "gptq": Recipe(gptq, joined_rows, bos="text"),
    "hf-stride": Recipe(hf_stride, joined_rows, bos="text", keys=("stride",)),
}


def prepare(params: Mapping[str, Any], text: str) -> str:
    """What is tokenized."""
    return RECIPES[params["recipe"]].prepare(text)


def spans(params: Mapping[str, Any]) -> list[Span]:
    """The windows as positions, BOS counted as a token of the text where it stands before it."""
    cut = Cut(params["context"], params["tokens"], params.get("warmup", 0), params.get("stride", 0))
    return list(RECIPES[params["recipe"]].spans(cut))


def windows(params: Mapping[str, Any], ids: Ids, bos: int | None) -> list[Window]:
    """The windows over the first `tokens` tokens of the text after those to `skip`. `bos`: what this tokenizer puts before a text, if it
    does."""
    place, found = RECIPES[params["recipe"]].bos, spans(params)
    whole, ids = len(ids), ids[params.get("skip", 0) :]
    if bos is not None and place != "never":
        ids = np.append(bos, ids)
    needed = max(max(span.end, span.last + 1) for span in found)
    if len(ids) < needed:
        after = f" after the first {params['skip']}" if params.get("skip") else ""
        raise ConfigError(f"the text has {whole} tokens, {len(found)} windows of {params['context']} need {needed}{after}")
    return [_window(ids, span, bos if place == "windows" else None) for span in found]


def _window(ids: Ids, span: Span, bos: int | None) -> Window:
    tokens, targets = ids[span.start : span.end].copy(), np.full(span.end - span.start, -1, dtype=np.int64)
    targets[span.first - span.start : span.last - span.start] = ids[span.first + 1 : span.last + 1]
    if bos is not None:
        tokens[0] = bos
    return Window(tokens, targets)


def fingerprint(parts: list[Window]) -> str:
    """The hash of everything that was run and scored."""
    digest = hashlib.sha256()
    for window in parts:
        digest.update(window.tokens.astype("<i8").tobytes() + window.targets.astype("<i8").tobytes())
    return digest.hexdigest()

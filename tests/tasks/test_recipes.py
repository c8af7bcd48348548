"""The recipes against the tools they are named after: plain loops over a plain model, as those tools run them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.core.record import Cell
from tqbench.corpora import Text
from tqbench.tasks import Job, perplexity

CONTEXT = 64
# Rows as `datasets` holds wikitext-2-raw: a line with its line feed, and nothing for a blank line.
ROWS = [
    "",
    " = Robert Boulter = \n",
    "",
    *[f" In {year} he had a guest @-@ starring role . \n" for year in range(1990, 2000)],
    "",
    " = = Theatre = = \n",
]


class Bytes:
    """A tokenizer whose tokens are bytes; like Llama's it puts BOS first unless told otherwise, like Qwen's it does not."""

    def __init__(self, bos: int | None):
        self.bos_token_id = bos

    def __call__(self, text: str, *, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        first = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": [*first, *text.encode()]}


@pytest.fixture(params=[1, None], ids=["bos", "no bos"])
def tokenizer(request: pytest.FixtureRequest) -> Bytes:
    return Bytes(request.param)


def ours(tokenizer: Bytes, **params: Any) -> float:
    """The baseline's perplexity by our task, from the text as its file holds it."""
    text = Text("rows", "".join(row or " \n" for row in ROWS), "test")
    params = {"context": CONTEXT, "warmup": 0, "protocol": "strict", "chunk": 24, **params}
    cell = Cell("tiny", "transformers", "cpu", "float32", None, "auto", "perplexity", params, {"name": "rows"})
    with TransformersSession(tiny.llama(), tokenizer, "tiny") as session:
        return perplexity.run(Job(session, cell, text, lambda n: None)).fields["metrics"]["ppl"].value


def encoded(tokenizer: Bytes) -> torch.Tensor:
    return torch.tensor([tokenizer("\n\n".join(ROWS))["input_ids"]])


@torch.inference_mode()
def test_gptq(tokenizer: Bytes) -> None:
    """Each window's mean over its own targets, windows weighed alike, as in GPTQ's, AutoGPTQ's and AWQ's evaluation."""
    model, ids = tiny.llama(), encoded(tokenizer)
    count = ids.numel() // CONTEXT
    assert count > 4
    total = torch.zeros((), dtype=torch.float64)
    for i in range(count):
        window = ids[:, i * CONTEXT : (i + 1) * CONTEXT]
        logits = model(window, use_cache=False).logits
        total += torch.nn.functional.cross_entropy(logits[0, :-1].double(), window[0, 1:]) * CONTEXT
    expected = (total / (count * CONTEXT)).exp().item()
    assert ours(tokenizer, recipe="gptq", tokens=ids.numel()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stride", [16, 32, 37, 64])
@torch.inference_mode()
def test_hf_stride(tokenizer: Bytes, stride: int) -> None:
    """The loop of transformers' page on the perplexity of fixed-length models, with its masking by −100 and its shorter last window.

    Each loss is weighed by the labels that it is a mean of. The page takes one less for each window but the first, whose first label is
    the only one that falls to the shift.
    """
    model, ids = tiny.llama(), encoded(tokenizer)
    total, scored, before = torch.zeros((), dtype=torch.float64), 0, 0
    for start in range(0, ids.numel(), stride):
        end = min(start + CONTEXT, ids.numel())
        window = ids[:, start:end]
        labels = window.clone()
        labels[:, : -(end - before)] = -100
        count = int((labels[:, 1:] != -100).sum())
        total += model(window, labels=labels, use_cache=False).loss.double() * count
        scored, before = scored + count, end
        if end == ids.numel():
            break
    expected = (total / scored).exp().item()
    assert ours(tokenizer, recipe="hf-stride", tokens=ids.numel(), stride=stride) == pytest.approx(expected, rel=1e-6)


def test_the_recipes_differ(tokenizer: Bytes) -> None:
    """So that the tests above could fail."""
    found = {
        ours(tokenizer, recipe=recipe, tokens=384, stride=stride)
        for recipe, stride in (("stream", 0), ("llamacpp", 0), ("gptq", 0), ("hf-stride", 16), ("hf-stride", 32))
    }
    assert len({f"{ppl:.3g}" for ppl in found}) >= 4

"""Windows by hand. That the recipes give the perplexities of the tools they are named after is shown in tests/tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tqbench.core.errors import ConfigError
from tqbench.core.session import Ids
from tqbench.corpora import recipes
from tqbench.corpora.recipes import Window

IDS = np.arange(100, 140)
BOS = 7
NONE = [-1]


def windows(recipe: str, tokens: int, bos: int | None = None, ids: Ids = IDS, **more: Any) -> list[Window]:
    return recipes.windows({"recipe": recipe, "context": 16, "tokens": tokens, **more}, ids, bos)


def numbers(first: int, last: int) -> list[int]:
    """Both included."""
    return list(range(first, last + 1))


def test_stream_scores_every_token_once_after_the_warmup() -> None:
    first, second = windows("stream", 32, warmup=4)
    assert first.tokens.tolist() == numbers(100, 115)
    assert first.targets.tolist() == NONE * 4 + numbers(105, 116)
    assert second.targets[-1] == 132


def test_stream_takes_the_text_as_it_is() -> None:
    assert windows("stream", 16, BOS)[0].tokens[0] == 100
    assert recipes.prepare({"recipe": "stream"}, "a\n\nb\n") == "a\n\nb\n"


def test_llamacpp_scores_the_second_half_up_to_the_last_token_inside() -> None:
    first, second = windows("llamacpp", 32, BOS)
    assert first.tokens.tolist() == [BOS, *numbers(100, 114)]
    assert first.targets.tolist() == NONE * 8 + numbers(108, 114) + NONE
    assert second.tokens.tolist() == [BOS, *numbers(116, 130)]


def test_a_model_without_bos_keeps_its_first_token() -> None:
    assert windows("llamacpp", 16)[0].tokens[0] == 100


def test_gptq_predicts_each_windows_own_tokens_but_the_first() -> None:
    first, second = windows("gptq", 32)
    assert first.tokens.tolist() == numbers(100, 115)
    assert first.targets.tolist() == numbers(101, 115) + NONE
    assert second.tokens.tolist() == numbers(116, 131)
    assert second.targets.tolist() == numbers(117, 131) + NONE


def test_gptq_has_bos_once_before_the_text() -> None:
    first, second = windows("gptq", 32, BOS)
    assert first.tokens.tolist() == [BOS, *numbers(100, 114)]
    assert first.targets.tolist() == numbers(100, 114) + NONE
    assert second.tokens.tolist() == numbers(115, 130)


def test_gptq_leaves_out_what_fills_no_window() -> None:
    assert len(windows("gptq", 31)) == 1


def test_hf_stride_scores_in_each_window_what_none_before_it_has() -> None:
    first, second, third = windows("hf-stride", 24, stride=4)
    assert first.tokens.tolist() == numbers(100, 115)
    assert first.targets.tolist() == numbers(101, 115) + NONE
    assert second.tokens.tolist() == numbers(104, 119)
    assert second.targets.tolist() == NONE * 11 + numbers(116, 119) + NONE
    assert third.tokens.tolist() == numbers(108, 123)


def test_hf_stride_ends_with_the_text_in_a_shorter_window() -> None:
    *_, last = windows("hf-stride", 26, stride=6)
    assert last.tokens.tolist() == numbers(112, 125)
    assert last.targets.tolist() == NONE * 9 + numbers(122, 125) + NONE


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("stride", [1, 5, 8, 15])
@pytest.mark.parametrize("tokens", [16, 17, 33, 40])
def test_hf_stride_scores_every_token_but_the_first_exactly_once(tokens: int, stride: int, bos: int | None) -> None:
    found = np.concatenate([window.targets for window in windows("hf-stride", tokens, bos, stride=stride)])
    text = IDS[:tokens] if bos is None else [BOS, *IDS[: tokens - 1]]
    assert found[found >= 0].tolist() == list(text[1:])


def test_disjoint_strides_are_gptqs_windows() -> None:
    """A single token that is left at the end has no predecessor in its window, so nothing is run for it."""
    disjoint, gptq = (windows(name, 33, stride=16) for name in ("hf-stride", "gptq"))
    assert recipes.fingerprint(disjoint) == recipes.fingerprint(gptq)


@pytest.mark.parametrize("recipe", ["gptq", "hf-stride"])
def test_rows_are_joined_by_blank_lines(recipe: str) -> None:
    """As `"\\n\\n".join` does with the rows ["", " = Title = \\n", "", " Text , \\n", " more .\\n"]."""
    text = " \n = Title = \n \n Text , \n more .\n"
    assert recipes.prepare({"recipe": recipe}, text) == "\n\n = Title = \n\n\n\n\n Text , \n\n\n more .\n"


@pytest.mark.parametrize(
    ("recipe", "needed"), [("stream", 49), ("llamacpp", 48), ("gptq", 48), ("hf-stride", 48)], ids=lambda value: str(value)
)
def test_short_text_is_refused(recipe: str, needed: int) -> None:
    with pytest.raises(ConfigError, match=rf"the text has 40 tokens, \d windows of 16 need {needed}"):
        windows(recipe, 48, stride=8)
    assert windows(recipe, 48, stride=8, ids=np.arange(needed))


def test_what_is_counted_is_what_is_run() -> None:
    """Costs come from the spans; here they are held to the windows."""
    params = {"recipe": "hf-stride", "context": 16, "tokens": 40, "stride": 5}
    assert sum(len(window.tokens) for window in recipes.windows(params, IDS, None)) == 5 * 16 + 15
    assert sum(span.end - span.start for span in recipes.spans(params)) == 5 * 16 + 15


def test_the_fingerprint_sees_tokens_and_targets() -> None:
    a, b = windows("stream", 16), windows("stream", 16, warmup=1)
    assert recipes.fingerprint(a) != recipes.fingerprint(b)
    assert recipes.fingerprint(a) == recipes.fingerprint(windows("stream", 16, ids=IDS.copy()))


def test_windows_begin_after_what_is_skipped() -> None:
    ids = np.arange(200)
    params = {"recipe": "stream", "context": 16, "tokens": 48, "skip": 100}
    found = recipes.windows(params, ids, None)
    assert [int(one.tokens[0]) for one in found] == [100, 116, 132]
    assert int(found[-1].targets[-1]) == 148
    with pytest.raises(ConfigError, match=r"the text has 200 tokens, 3 windows of 16 need 49 after the first 160"):
        recipes.windows(params | {"skip": 160}, ids, None)

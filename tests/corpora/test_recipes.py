"""Windows by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tqbench.core.errors import ConfigError
from tqbench.corpora import recipes

IDS = np.arange(100, 140)


def test_stream_scores_every_token_once_after_the_warmup() -> None:
    first, second = recipes.windows("stream", IDS, 16, 32, 4, None)
    assert first.tokens.tolist() == list(range(100, 116))
    assert first.targets.tolist() == [-1] * 4 + list(range(105, 117))
    assert second.targets[-1] == 132


def test_llamacpp_scores_the_second_half_up_to_the_last_token_inside() -> None:
    first, second = recipes.windows("llamacpp", IDS, 16, 32, 0, 7)
    assert first.tokens.tolist() == [7, *range(100, 115)]
    assert (first.targets >= 0).sum() == 16 - 16 // 2 - 1
    assert first.targets.tolist() == [-1] * 8 + list(range(108, 115)) + [-1]
    assert second.tokens.tolist() == [7, *range(116, 131)]


def test_a_model_without_bos_keeps_its_first_token() -> None:
    assert recipes.windows("llamacpp", IDS, 16, 16, 0, None)[0].tokens[0] == 100


def test_short_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="the text has 40 tokens, 3 windows of 16 need 49"):
        recipes.windows("stream", IDS, 16, 48, 0, None)


def test_the_fingerprint_sees_tokens_and_targets() -> None:
    a, b = recipes.windows("stream", IDS, 16, 16, 0, None), recipes.windows("stream", IDS, 16, 16, 1, None)
    assert recipes.fingerprint(a) != recipes.fingerprint(b)
    assert recipes.fingerprint(a) == recipes.fingerprint(recipes.windows("stream", IDS.copy(), 16, 16, 0, None))

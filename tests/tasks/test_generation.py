"""The task `generation` on a tiny random model: trajectories are the engine's own greedy ones, and both ways of holding a scheme against
them agree where they must."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tqbench.core.errors import ConfigError
from tqbench.tasks import generation
from tqbench.tasks._prompts import fingerprint

PARAMS: dict[str, Any] = {"context": 150, "new": 10, "prompts": 4, "seed": 0, "protocol": "strict", "chunk": 64}


def test_trajectories_are_the_engines_own(session: Any, measured: Any) -> None:
    record, _ = measured("generation", None, PARAMS)
    found = generation.prompts(PARAMS, session.tokenize(session.words.text), None)
    for row, prompt in zip(record.prompts, found, strict=True):
        ids = torch.from_numpy(prompt)[None]
        with torch.inference_mode():
            own = session.model.generate(
                ids, max_new_tokens=10, do_sample=False, eos_token_id=list(session.info.stop_tokens), pad_token_id=0
            )
        assert row["trajectory_sha256"] == fingerprint((own[0, len(prompt) :].tolist(),))
    assert all(row["agreed"] == row["tokens"] for row in record.prompts)


@pytest.mark.parametrize("scheme", ["q8_0", "turbo4", "turbo2", "kivi2"])
def test_free_and_led_part_at_the_same_token(measured: Any, scheme: str) -> None:
    """Up to the first difference a free run is led along the same tokens."""
    record, arrays = measured("generation", scheme, PARAMS)
    assert record.outcome == "ok"
    assert [row["agreed"] for row in record.prompts] == [row["led"] for row in record.prompts]
    assert record.metrics["survival"].value == np.mean([row["agreed"] == row["tokens"] for row in record.prompts])
    assert len(arrays["nll"]) == sum(row["tokens"] for row in record.prompts)


def test_the_zero_is_zero(measured: Any) -> None:
    base, _ = measured("generation", None, PARAMS)
    same, _ = measured("generation", {"scheme": "turbo2", "bypass": "identity"}, PARAMS)
    assert same.metrics["survival"].value == 1
    assert same.metrics["survival"].ends[0] < 0.6  # four prompts say no more
    assert same.metrics["forced_kld"].ends == (0, 0)
    assert same.fingerprint == base.fingerprint


def test_worse_schemes_part_earlier_and_lie_further_off(measured: Any) -> None:
    found = [measured("generation", scheme, PARAMS)[0] for scheme in ("q8_0", "turbo2", "destructive")]
    assert [r.metrics["forced_kld"].value for r in found] == sorted(r.metrics["forced_kld"].value for r in found)
    assert [sum(row["agreed"] for row in r.prompts) for r in found] == sorted(
        (sum(row["agreed"] for row in r.prompts) for r in found), reverse=True
    )
    assert found[0].metrics["forced_top1"].value > found[2].metrics["forced_top1"].value


def test_a_run_that_is_taken_up_again_finds_the_same_trajectories(measured: Any) -> None:
    base, _ = measured("generation", None, PARAMS)
    after, _ = measured("generation", "turbo4", PARAMS)
    alone, _ = measured("generation", "turbo4", PARAMS, beside={})
    assert after.text["ids_sha256"] == alone.text["ids_sha256"] == base.text["ids_sha256"]
    assert after.prompts == alone.prompts


def test_deployed_tokens_come_one_by_one(measured: Any) -> None:
    """Led along a trajectory in one call, its tokens would be exact to each other."""
    record, _ = measured("generation", "turbo2", PARAMS | {"protocol": "deploy"}, beside={})
    assert [row["agreed"] for row in record.prompts] == [row["led"] for row in record.prompts]


def test_an_answer_that_ends_is_no_difference(session: Any, measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _ = measured("generation", None, PARAMS)
    first = generation.prompts(PARAMS, session.tokenize(session.words.text), None)[0]
    cache = session.new_cache(None)
    third = [token for token, _ in zip(_greedy(session, cache, first), range(3), strict=False)][-1]
    monkeypatch.setattr(session, "info", _stopping(session.info, third))
    ended, _ = measured("generation", {"scheme": "turbo2", "bypass": "identity"}, PARAMS, beside={})
    assert ended.prompts[0]["tokens"] <= 3 < record.prompts[0]["tokens"]
    assert ended.prompts[0]["agreed"] == ended.prompts[0]["tokens"]
    assert ended.metrics["survival"].value == 1


def _greedy(session: Any, cache: Any, prompt: Any) -> Any:
    logits = session.forward(prompt, cache, last=True)
    while True:
        token = session.choose(logits)
        yield token
        logits = session.forward(np.array([token]), cache, last=True)


def _stopping(info: Any, token: int) -> Any:
    import dataclasses

    return dataclasses.replace(info, stop_tokens=(token,))


def test_prompts_share_no_token(session: Any) -> None:
    ids = np.arange(5000)
    found = generation.prompts(PARAMS, ids, None)
    assert [len(prompt) for prompt in found] == [150] * 4
    assert len(np.unique(np.concatenate(found))) == 600
    begun = generation.prompts(PARAMS, ids, 7)
    assert all(prompt[0] == 7 and len(prompt) == 150 for prompt in begun)
    with pytest.raises(ConfigError, match="the text has 300"):
        generation.prompts(PARAMS, ids[:300], None)


def test_a_context_that_is_too_long_is_refused(measured: Any) -> None:
    with pytest.raises(ConfigError, match="2048 positions"):
        measured("generation", None, PARAMS | {"context": 2040})

"""What only a model that can read shows: numbers found and lost, and lm-eval's own model beside ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqbench.core.presets import preset
from tqbench.core.record import Cell, Record
from tqbench.core.session import LocalModel, Session
from tqbench.corpora import load
from tqbench.tasks import Job, run

pytestmark = [pytest.mark.model, pytest.mark.slow]
OPPOSITES = Path(__file__).parents[1] / "tasks" / "lm_eval_opposites"
LM_EVAL = {"context": 512, "task": "tqbench_opposites", "limit": None, "fewshot": None, "include_path": str(OPPOSITES), "seed": 1234}
NEEDLE = {"context": 1024, "depth": [0.0, 0.5, 1.0], "form": "passkey", "samples": 1, "digits": 5, "seed": 0, "chat": True}
CUT = {"protocol": "strict", "chunk": 512}


@pytest.fixture
def measured(open_packaged: Callable[[str], Session]):
    beside: dict[Any, Any] = {}

    def measure(task: str, scheme: str | None, params: dict[str, Any]) -> Record:
        data = preset(scheme).to_data() if scheme else None
        corpus = {"name": "python-docs"}
        cell = Cell("packaged", "transformers", "cpu", "float32", data, "auto", task, params | CUT, corpus)
        result = run(Job(open_packaged("float32"), cell, load(corpus), lambda n: None, beside=beside))
        arrays.update(result.arrays)
        return Record(cell, "ok", **result.fields).audited()

    arrays: dict[str, Any] = {}
    measure.arrays = arrays  # type: ignore[attr-defined]
    return measure


def test_eight_bits_keep_a_number_and_a_wreck_loses_it(measured: Any) -> None:
    base, fine, wreck = (measured("needle", scheme, NEEDLE) for scheme in (None, "q8_0", "destructive"))
    assert (base.outcome, fine.outcome, wreck.outcome) == ("ok", "ok", "ok")
    assert base.metrics["needle_score"].value == fine.metrics["needle_kept"].value == 1
    assert wreck.metrics["needle_score"].value == 0
    assert abs(fine.metrics["needle_dnll"].value) < 0.1
    assert wreck.metrics["needle_dnll"].value > 1


def test_a_message_is_as_the_tokenizer_writes_it(open_packaged: Callable[[str], Session]) -> None:
    session: Any = open_packaged("float32")
    before, after = session.chat()
    whole = session.tokenizer.apply_chat_template([{"role": "user", "content": "How are you?"}], tokenize=False, add_generation_prompt=True)
    wanted = session.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [*before, *session.tokenize("How are you?"), *after] == wanted
    assert session.info.stop_tokens[0] == session.tokenizer.eos_token_id
    assert session.detokenize(wanted[-3:]).strip() == "assistant"


@pytest.mark.filterwarnings("ignore")
def test_the_baseline_is_lm_evals_own_model(measured: Any, open_packaged: Callable[[str], Session], packaged_model: LocalModel) -> None:
    """The same documents through `hf` of lm-eval, which computes in one forward call what a session computes in pieces."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    ours = measured("lm_eval", None, LM_EVAL)
    session: Any = open_packaged("float32")
    theirs = HFLM(pretrained=session.model, tokenizer=session.tokenizer, batch_size=1)
    found = lm_eval.simple_evaluate(theirs, tasks=["tqbench_opposites"], task_manager=TaskManager(include_path=str(OPPOSITES)))
    assert ours.harness["results"]["tqbench_opposites"]["acc,none"] == found["results"]["tqbench_opposites"]["acc,none"]
    assert ours.harness["results"]["tqbench_opposites"]["acc_norm,none"] == found["results"]["tqbench_opposites"]["acc_norm,none"]
    likely = [float(answer[0][0]) for row in found["samples"]["tqbench_opposites"] for answer in row["resps"]]
    assert ours.text["requests"] == len(likely) == 80
    assert np.isclose(measured.arrays["nll"].sum(dtype=np.float64), -sum(likely), rtol=1e-4)

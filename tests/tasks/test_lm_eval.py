"""The task `lm_eval` on a tiny random model and a task of our own, which lies beside this file and downloads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset
from tqbench.core.record import Cell
from tqbench.metrics.tokens import nll
from tqbench.tasks import Job

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install tqbench[eval]")

HERE = Path(__file__).parent
PARAMS: dict[str, Any] = {"context": 256, "task": "tqbench_opposites", "limit": 4, "fewshot": None, "include_path": "lm_eval_opposites"}
PARAMS |= {"seed": 1234, "protocol": "strict", "chunk": 64}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")


@pytest.fixture
def evaluated(measured: Any):
    return lambda scheme, **changes: measured("lm_eval", scheme, PARAMS | changes, root=HERE)


@pytest.fixture
def model(session: Any):
    """A session as lm-eval sees it."""

    def make(scheme: str | None = "turbo4", **changes: Any) -> Any:
        from tqbench.tasks._harness import Served, SessionModel
        from tqbench.tasks._proof import Witness

        chosen = None if scheme is None else preset(scheme)
        data = chosen.to_data() if chosen else None
        cell = Cell("tiny", "transformers", "cpu", "float32", data, "auto", "lm_eval", PARAMS | changes, {"name": "words"})
        job = Job(session, cell, session.words, lambda n: None)
        return SessionModel(Served(job, chosen, Witness(chosen, session.info) if chosen else None))

    return make


def asked(*args: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type="loglikelihood", doc={}, arguments=args, idx=0)


def test_identity_gives_identical_scores_and_turbo2_other_logits(evaluated: Any) -> None:
    base, _ = evaluated(None)
    same, arrays = evaluated({"scheme": "turbo2", "bypass": "identity"})
    other, _ = evaluated("turbo2")
    assert (base.outcome, same.outcome, other.outcome) == ("ok", "ok", "ok")
    assert same.harness["results"] == base.harness["results"]
    assert same.fingerprint == base.fingerprint != other.fingerprint
    assert same.metrics["eval_same"].value == 1
    assert same.metrics["eval_delta"].value == 0
    assert other.metrics["eval_dnll"].value != 0
    for record in (same, other):
        assert record.harness["active"] == record.text["requests"] == 16
        assert record.harness["least_coverage"] == record.coverage == 1
        assert record.text["ids_sha256"] == base.text["ids_sha256"]
    assert (arrays["coverage"] == 1).all()
    assert len(arrays["documents"]) == 4
    held = other.harness
    assert held["version"]
    assert held["versions"] == {"tqbench_opposites": 1.0}
    assert held["n-samples"]["tqbench_opposites"] == {"original": 20, "effective": 4}
    assert "acc_stderr,none" in held["results"]["tqbench_opposites"]
    assert held["task_hashes"] == base.harness["task_hashes"]


def test_requests_in_which_nothing_was_packed_are_counted(evaluated: Any) -> None:
    """The questions are 50 to 80 bytes, and so as many tokens: some reach past the window, some do not."""
    codec = {"codec": "affine", "bits": 4, "window": 75}
    evaluated(None)
    record, arrays = evaluated({"name": "some", "k": codec, "v": codec})
    assert record.outcome == "ok"
    assert 0 < record.harness["active"] < record.text["requests"]
    assert record.harness["active"] == (arrays["coverage"] > 0).sum()
    assert record.harness["least_coverage"] == 0
    assert record.metrics["eval_active"].value == record.harness["active"] / record.text["requests"]


def test_when_no_request_was_served_by_the_scheme_there_is_no_score(evaluated: Any) -> None:
    record, _ = evaluated("kivi2")  # its last 128 tokens are exact
    assert (record.outcome, record.metrics, record.harness) == ("inactive", {}, {})


def test_alone_it_runs_the_baseline_itself(evaluated: Any, measured: Any) -> None:
    evaluated(None)
    after, _ = evaluated("turbo4")
    alone, _ = measured("lm_eval", "turbo4", PARAMS, root=HERE, beside={})
    assert after.metrics == alone.metrics
    assert after.fingerprint == alone.fingerprint


def test_a_likelihood_is_that_of_the_whole_text(model: Any, session: Any) -> None:
    """Against one forward call over everything, by the plain formula."""
    subject = model(None)
    pairs = [("The cat sat on", " the mat"), ("The cat sat on", " a chair"), ("", "Nothing before"), ("Ends in a space ", "here")]
    found = subject.loglikelihood([asked(*pair) for pair in pairs])
    for (lead, answer), (value, is_greedy) in zip(pairs, found, strict=True):
        ids = session.tokenize(lead + answer) if lead else np.append([subject.prefix_token_id], session.tokenize(answer))
        logits = session.forward(ids, session.new_cache(None)).double().numpy()
        count = len(session.tokenize(answer)) + (lead != lead.rstrip())
        wanted = nll(logits[-count - 1 : -1], ids[-count:])
        assert value == pytest.approx(-wanted.sum(), abs=1e-4)
        assert is_greedy == bool((logits[-count - 1 : -1].argmax(1) == ids[-count:]).all())


def test_rolling_predicts_every_token_once(model: Any, session: Any) -> None:
    text = "A sentence of a few words, and another one. " * 3
    (whole,) = model(None, context=256).loglikelihood_rolling([asked(text)])
    ids = np.append([model(None).prefix_token_id], session.tokenize(text))
    logits = session.forward(ids[:-1], session.new_cache(None)).double().numpy()
    assert whole == pytest.approx(-nll(logits, ids[1:]).sum(), abs=1e-3)
    subject = model(None, context=32)
    subject.loglikelihood_rolling([asked(text)])
    assert sum(len(part.nll) for part in subject.served.parts) == len(ids) - 1


def test_what_is_too_long_loses_its_beginning(model: Any, session: Any) -> None:
    subject = model(None, context=32)
    ((short, _),) = subject.loglikelihood([asked("x" * 100 + "The end of it", " is near")])
    ids = session.tokenize("x" * 100 + "The end of it is near")[-33:]
    logits = session.forward(ids[:-1], session.new_cache(None)).double().numpy()
    assert short == pytest.approx(-nll(logits[-8:], ids[-8:]).sum(), abs=1e-4)


def test_answers_are_greedy_and_stop(model: Any, session: Any) -> None:
    import torch

    prompt = "The quick brown fox"
    subject = model(None)
    (free,) = subject.generate_until([asked(prompt, {"until": [], "max_gen_toks": 12})])
    with torch.inference_mode():
        ids, stops = torch.from_numpy(session.tokenize(prompt))[None], list(session.info.stop_tokens)
        own = session.model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=stops, pad_token_id=0)
    wanted = session.detokenize([token for token in own[0, len(prompt) :].tolist() if token not in stops])
    assert free == wanted
    stop = wanted[5:7]
    (cut,) = subject.generate_until([asked(prompt, {"until": [stop], "max_gen_toks": 12})])
    assert cut == wanted.partition(stop)[0]
    scheme = model("turbo4")
    scheme.generate_until([asked(prompt, {"until": ["\n"], "max_gen_toks": 4})])
    assert scheme.served.coverage == [1.0]
    assert len(scheme.served.scores.kld) == 1
    with pytest.raises(Unsupported, match="at random"):
        subject.generate_until([asked(prompt, {"do_sample": True, "temperature": 0.7})])
    with pytest.raises(ConfigError, match="leaves no room"):
        subject.generate_until([asked(prompt, {"max_gen_toks": 256})])


def test_names_that_it_does_not_know(evaluated: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tqbench_opposites'"):
        evaluated(None, task="tqbench_oposites")


def test_without_the_extra_the_reason_is_how_to_get_it(evaluated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tqbench.tasks import lm_eval

    def missing(name: str) -> str:
        raise lm_eval.PackageNotFoundError(name)

    monkeypatch.setattr(lm_eval, "version", missing)
    with pytest.raises(Unsupported, match=r'pip install "tqbench\[eval\]"'):
        evaluated(None)

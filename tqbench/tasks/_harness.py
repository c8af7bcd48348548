"""A session as a model of lm-evaluation-harness. Imported only when such a task runs: lm_eval is an extra, and brings torch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tqbench.core.errors import ConfigError, Unsupported, unknown
from tqbench.core.scheme import Scheme
from tqbench.core.session import Ids, Terms, TokenScores
from tqbench.tasks import Job
from tqbench.tasks._prompts import Beside, Prefix, fingerprint, forced, greedy
from tqbench.tasks._proof import Witness
from tqbench.tasks._terms import terms as terms_of

ANSWER = 256  # tokens of an answer where the task does not say how many, as lm-eval has it
FACTS = ("versions", "n-shot", "n-samples", "higher_is_better", "results", "groups")


@dataclass(frozen=True)
class Evaluated:
    """What a task came to: its first metric with the standard error, that metric document by document, and what lm-eval says beside it."""

    score: tuple[float, float | None]
    documents: Any
    facts: dict[str, Any]
    scores: TokenScores
    served: Served


def evaluate(job: Job, scheme: Scheme | None) -> Evaluated:
    """Run the task on the cell's cache, or on the model's own."""
    params = job.cell.params
    served = Served(job, scheme, None if scheme is None else Witness(scheme, job.session.info))
    model, loaded = SessionModel(served), _loaded(job)
    found: Any = lm_eval.evaluate(model, loaded, limit=params["limit"], log_samples=True)
    if not served.parts:
        raise Unsupported(f"lm-eval's task {params['task']} asked for nothing that a language model answers")
    own = (found.get("groups") or {}).get(params["task"]) or found["results"][params["task"]]
    metric = next((name for name, value in own.items() if "," in name and "_stderr" not in name and isinstance(value, (int, float))), None)
    if metric is None:
        raise Unsupported(f"lm-eval's task {params['task']} has no metric that is a number (it has: {', '.join(own)})")
    name, _, kept = metric.partition(",")
    stderr = own.get(f"{name}_stderr,{kept}")
    facts = {key: found[key] for key in FACTS if key in found} | {"metric": metric, "task_hashes": _hashes(found["samples"])}
    return Evaluated(
        (float(own[metric]), float(stderr) if isinstance(stderr, (int, float)) else None),
        _documents(found["samples"], name, kept),
        _plain(facts),
        served.scores,
        served,
    )


def _loaded(job: Job) -> Any:
    """The task with its examples and seeds set, as `lm_eval.simple_evaluate` sets them. That would also describe the machine, with programs
    that it starts; and only where the folder of the suite lacks the task are the thousands of lm-eval's own read."""
    params = job.cell.params
    folder, task = str(job.root / params["include_path"]) if params["include_path"] else None, params["task"]
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if folder is not None and task not in manager.all_tasks:
        manager = TaskManager(include_path=folder)
    if task not in manager.all_tasks:
        raise ConfigError(unknown("task of lm-evaluation-harness", task, manager.all_tasks))
    random.seed(params["seed"])
    np.random.seed(params["seed"])  # the generator that tasks of lm-eval draw from
    loaded = manager.load([task])
    for one in loaded["tasks"].values():
        if params["fewshot"] is not None and one.get_config("num_fewshot") != 0:
            one.set_config(key="num_fewshot", value=params["fewshot"])
        elif one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=0)
        one.set_fewshot_seed(seed=params["seed"])
    return loaded


def _hashes(samples: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """What each task asked, as lm-eval hashes it: documents, prompts and targets in their order."""
    keys = ("doc_hash", "prompt_hash", "target_hash")
    return {
        task: hashlib.sha256("".join(str(row.get(key, "")) for row in rows for key in keys).encode()).hexdigest()
        for task, rows in sorted(samples.items())
    }


def _documents(samples: dict[str, list[dict[str, Any]]], metric: str, kept: str) -> Any:
    """The metric of each document; none where it is not a number of each."""
    rows = [row for name in sorted(samples) for row in samples[name] if row.get("filter", kept) == kept]
    found = [row.get(metric) for row in sorted(rows, key=lambda row: (str(row.get("task", "")), row["doc_id"]))]
    if any(not isinstance(value, (int, float, np.number)) for value in found):
        return np.empty(0)
    return np.array(found, dtype=np.float64)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


@dataclass
class Served:
    """Every request that was answered: its scores beside the baseline's, and how much of what it attended was packed."""

    job: Job
    scheme: Scheme | None
    witness: Witness | None
    terms: Terms = field(default_factory=Terms)
    about: dict[str, Any] = field(default_factory=dict)
    parts: list[TokenScores] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    asked: list[Ids] = field(default_factory=list)
    prefix: Prefix | None = None  # of the last request: the next one often has the same
    own: Prefix | None = None
    ready: bool = False

    @property
    def requests(self) -> int:
        """How many pieces of text were run to an answer."""
        return len(self.parts)

    @property
    def scores(self) -> TokenScores:
        """Of all answers."""
        return TokenScores.join(self.parts)

    @property
    def where(self) -> Any:
        """The request of each scored token."""
        return np.repeat(np.arange(len(self.parts)), [len(part.nll) for part in self.parts])

    @property
    def fingerprint(self) -> str:
        """The hash of what was asked."""
        return fingerprint(self.asked)

    def begin(self, texts: list[Ids]) -> None:
        """Codecs learn from text that is in none of the first requests."""
        if not self.ready:
            self.terms, self.about = terms_of(self.job, texts, self.scheme)
            self.ready = True

    def likely(self, lead: Ids, answer: Ids) -> TokenScores:
        """An answer led along its tokens, beside the baseline."""
        mine, own = self._prefixes(lead[:-1])
        self.asked += [lead, answer]
        return self._scored(mine, own, lead, answer)

    def say(self, lead: Ids, most: int) -> Iterator[int]:
        """A greedy answer. Its first token is scored beside the baseline, which proves that the scheme had an effect."""
        mine, own = self._prefixes(lead[:-1])
        self.asked.append(lead)
        session, cache = self.job.session, mine.cache()
        logits = session.forward(lead[-1:], cache, last=True)
        self._scored(mine, own, lead, np.array([session.choose(logits)]), count=False)
        try:
            yield from greedy(session, cache, logits, most)
        finally:
            self._count(cache)

    def _scored(self, mine: Prefix, own: Prefix, lead: Ids, answer: Ids, *, count: bool = True) -> TokenScores:
        params, session = self.job.cell.params, self.job.session
        kept = Beside(session, self.job.beside).kept(("logits", lead.tobytes(), answer[:-1].tobytes()), len(answer))
        cache, against = mine.cache(), None if kept else own.cache()
        step = 1 if params["protocol"] == "deploy" else min(params["chunk"], len(answer))
        scores = forced(session, (cache, against), lead[-1:], answer, (params["chunk"], step), kept)
        self.parts.append(scores)
        self.job.progress(len(answer))
        if count:
            self._count(cache)
        return scores

    def _count(self, cache: Any) -> None:
        if self.witness is not None:
            self.coverage.append(self.witness.see(cache.evidence()))

    def _prefixes(self, tokens: Ids) -> tuple[Prefix, Prefix]:
        """All but the last token of what comes before an answer, in the cell's cache and in the model's own; each is run when needed."""
        if self.prefix is None or self.own is None or not np.array_equal(self.prefix.tokens, tokens):
            session, chunk, told = self.job.session, self.job.cell.params["chunk"], self.job.progress
            self.own = Prefix(session, None, Terms(), tokens, chunk, told)
            self.prefix = self.own if self.scheme is None else Prefix(session, self.scheme, self.terms, tokens, chunk, told, self.witness)
        return self.prefix, self.own


class SessionModel(TemplateLM):
    """What lm-eval asks of a model, answered through a session."""

    def __init__(self, served: Served):
        super().__init__()
        self.served, self.session = served, served.job.session
        self.max_length = int(served.job.cell.params["context"])
        if self.max_length > self.session.info.max_positions:
            much = f"context {self.max_length} is longer than the {self.session.info.max_positions} positions of {self.session.info.name}"
            raise ConfigError(much)

    @property
    def eot_token_id(self) -> int:
        """What ends an answer."""
        stops = self.session.info.stop_tokens
        if not stops:
            raise Unsupported(f"{self.session.info.name} has no token that ends an answer, which lm-eval asks for")
        return stops[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that begins with nothing."""
        start = self.session.info.start_token
        return self.eot_token_id if start is None else start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """With BOS where the model's tokenizer puts one."""
        ids, bos = self.session.tokenize(string).tolist(), self.session.info.bos_token
        return [bos, *ids] if bos is not None and add_special_tokens is not False else ids

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        pairs = [_cut(lead, answer, self.max_length) for _, lead, answer in requests]
        self.served.begin([np.concatenate(pair) for pair in pairs])
        found = [self.served.likely(*pair) for pair in pairs]
        return [(-float(scores.nll.sum()), bool((scores.place == 0).all())) for scores in found]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Of whole texts, in windows that each predict what none before them has."""
        texts = [list(self._windows(request.args[0])) for request in requests]
        found = iter(self._loglikelihood_tokens([(None, *pair) for pairs in texts for pair in pairs]))
        return [sum(next(found)[0] for _ in pairs) for pairs in texts]

    def _windows(self, text: str) -> Iterable[tuple[list[int], list[int]]]:
        ids = self.tok_encode(text)
        windows = get_rolling_token_windows(token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
        return map(make_disjoint_window, windows)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Greedy answers, up to a stop sequence."""
        asked = [(request.args[0], normalize_gen_kwargs(request.args[1], ANSWER)) for request in requests]
        for _, wanted in asked:
            if wanted.get("do_sample") or wanted.get("temperature"):
                raise Unsupported("this task of lm-eval draws its answers at random; only greedy ones can be compared")
        leads = [self._lead(text, wanted["max_gen_toks"]) for text, wanted in asked]
        self.served.begin(leads)
        return [self._until(lead, wanted) for lead, (_, wanted) in zip(leads, asked, strict=True)]

    def _lead(self, text: str, answer: int) -> Ids:
        if answer >= self.max_length:
            raise ConfigError(
                f"context {self.max_length} leaves no room for the {answer} tokens of an answer that this task of lm-eval wants"
            )
        ids = self.tok_encode(text)[-(self.max_length - answer) :] or [self.prefix_token_id]
        return np.array(ids, dtype=np.int64)

    def _until(self, lead: Ids, wanted: Any) -> str:
        stops = handle_stop_sequences(wanted["until"], eos=None)
        said: list[int] = []
        text = ""
        for token in self.served.say(lead, wanted["max_gen_toks"]):
            if token in self.session.info.stop_tokens:
                break
            said.append(token)
            text = self.session.detokenize(said)
            if any(stop and stop in text for stop in stops):
                break
        return str(postprocess_generated_text(text, stops, None))


def _cut(lead: list[int], answer: list[int], most: int) -> tuple[Ids, Ids]:
    """What fits the model, cut from the left as lm-eval cuts it: the last token of an answer is only predicted."""
    whole = (lead + answer)[-(most + 1) :]
    ids = np.array(whole, dtype=np.int64)
    return ids[: -len(answer)], ids[-len(answer) :]

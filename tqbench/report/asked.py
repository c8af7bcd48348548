"""What models were asked, for people: the columns of `needle`, `generation` and `lm_eval`, headings, and what lies behind the figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqbench.core.record import Cell, Record
from tqbench.metrics.shares import Step, able, share, survival
from tqbench.report.column import BITS, COVERAGE, KERNELS, Column, Figure, Line, metric
from tqbench.report.text import NONE, bounds, number, plain, value

SHOWN_AFTER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # tokens; and after all
FAILS = "†"


def heading(cell: Cell) -> str:
    """What was asked, in few words."""
    params, context = cell.params, f"{cell.params['context']:,}"
    return {
        "needle": lambda: f"needle {params['form']} @ {context}",
        "generation": lambda: f"generation of {params['new']} @ {context}",
        "lm_eval": lambda: f"lm-eval {params['task']} · at most {context} tokens",
    }[cell.task]()


def facts(record: Record) -> list[str]:
    """What a reader must know of the questions."""
    params, text = record.cell.params, record.text
    if record.cell.task == "needle":
        chat = "chat template" if params["chat"] else "no chat template"
        return [
            f"{text['prompts']} questions of {params['digits']} digits at depths {_list(params['depth'])}",
            chat,
            f"seed {params['seed']}",
        ]
    if record.cell.task == "generation":
        return [
            f"{text['prompts']} prompts, each continued greedily by the baseline for up to {params['new']} tokens",
            f"seed {params['seed']}",
        ]
    held = record.harness
    documents = held.get("n-samples", {}).get(params["task"], {})
    return [
        f"lm-eval {held.get('version', '')}, task version {_word(held.get('versions', {}).get(params['task']))}",
        f"{documents.get('effective', '?')} of {documents.get('original', '?')} documents, {text['requests']:,} requests",
        f"{_word(held.get('n-shot', {}).get(params['task']))} examples before each",
    ]


def _word(value: Any) -> str:
    return NONE if value is None else str(value)


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _base(name: str) -> Callable[[Line], Figure]:
    """The baseline's own figure; marked where it fails, so that there is nothing to lose."""

    def show(line: Line) -> Figure:
        estimate = line.record.metrics.get(name)
        if estimate is None:
            return Figure(NONE)
        return Figure(value(estimate, name) + ("" if able(estimate) else f" {FAILS}"), order=estimate.value)

    return show


def _score(line: Line) -> Figure:
    """A baseline that fails is marked in its own row, too."""
    figure, own = metric("needle_score")(line), line.record.metrics.get("needle_score")
    fails = own is not None and line.record.cell.scheme is None and not able(own)
    return Figure(f"{figure.text} {FAILS}", figure.detail, figure.order, figure.brief) if fails else figure


def _shares(name: str) -> Callable[[Line], Figure]:
    """A share that may be exactly 0 without anything being exact."""

    def show(line: Line) -> Figure:
        estimate = line.record.metrics.get(name)
        return Figure(NONE) if estimate is None else Figure(value(estimate, name), bounds(estimate, name), estimate.value)

    return show


def _evaluated(line: Line) -> Figure:
    """lm-eval's first metric, and which that is."""
    estimate, name = line.record.metrics.get("eval_score"), str(line.record.harness.get("metric", ""))
    if estimate is None:
        return Figure(NONE)
    return Figure(
        value(estimate, "eval_score"), f"{plain(name.partition(',')[0])} {bounds(estimate, 'eval_score')}".strip(), estimate.value
    )


def _active(line: Line) -> Figure:
    """Requests in which something was packed, of all."""
    held = line.record.harness
    if "active" not in held:
        return Figure(NONE)
    return Figure(f"{held['active']:,} of {line.record.text['requests']:,}", f"least {100 * held['least_coverage']:.3g} %", held["active"])


COLUMNS: dict[str, tuple[Column, ...]] = {
    "needle": (
        BITS,
        COVERAGE,
        Column("found %", "the share of questions whose greedy answer is the number, to the last digit; Wilson's 95 % interval", _score),
        Column("own %", "the same of the model's own cache on the same questions", _base("needle_base")),
        Column("kept %", "of the questions that the model's own cache answers, those that the scheme answers, too", _shares("needle_kept")),
        Column("first %", "teacher-forced: the share of the numbers' tokens that are the most likely ones there", _shares("needle_first")),
        Column("NLL", "teacher-forced: how unlikely the numbers' tokens are, nats per token", metric("needle_nll")),
        Column("KLD", "divergence from the baseline's own distribution over these tokens, nats per token", metric("needle_kld")),
        KERNELS,
    ),
    "generation": (
        BITS,
        COVERAGE,
        Column("agree %", "free-running: the share of prompts whose own greedy tokens all agree with the baseline's", _shares("survival")),
        Column("half after", "free-running: after how many tokens half of the prompts have parted from the baseline", metric("half_life")),
        Column("KLD", "led along the baseline's tokens: divergence from its distribution, nats per token", metric("forced_kld")),
        Column("top-1 %", "led along the baseline's tokens: how often its choice is the scheme's first, too", _shares("forced_top1")),
        KERNELS,
    ),
    "lm_eval": (
        BITS,
        COVERAGE,
        Column("score %", "the task's first metric as lm-eval computes it, in hundredths; 95 % interval", _evaluated),
        Column("own %", "the same of the model's own cache on the same documents", _shares("eval_base")),
        Column("Δ %", "the difference, document by document, in hundredths; 95 % interval", _shares("eval_delta")),
        Column("same %", "the share of documents with the same result as the baseline's", _shares("eval_same")),
        Column("ΔNLL", "how much less likely a token of an answer became, nats", metric("eval_dnll")),
        Column("active", "requests whose answer attended to something packed, of all; below it the least that one did", _active),
        KERNELS,
    ),
}


def by_depth(record: Record) -> dict[float, tuple[int, int, int, float]]:
    """Per depth: questions, those answered, those the baseline answers, and the mean NLL of the numbers' tokens."""
    found: dict[float, list[dict[str, Any]]] = {}
    for row in record.prompts:
        found.setdefault(row["depth"], []).append(row)
    return {
        depth: (
            len(rows),
            sum(row["hit"] for row in rows),
            sum(row["base_hit"] for row in rows),
            sum(row["nll"] for row in rows) / len(rows),
        )
        for depth, rows in sorted(found.items())
    }


def tile(found: tuple[int, int, int, float]) -> Figure:
    """Answered of asked, with what is known of the share; marked where the baseline fails."""
    asked, hits, base, _ = found
    fails = "" if able(share(base, asked)) else f" {FAILS}"
    return Figure(f"{hits} of {asked}{fails}", bounds(share(hits, asked), "needle_score"), hits / asked)


def curve(record: Record) -> list[Step]:
    """How many prompts still agree."""
    return survival([row["agreed"] for row in record.prompts], [row["agreed"] == row["tokens"] for row in record.prompts])


def after(steps: list[Step], tokens: int) -> Figure:
    """The share that agrees after so many tokens: the last known where fewer were compared."""
    known = [step for step in steps if step.after <= tokens]
    last = known[-1]
    return Figure(value(last.share, "survival"), bounds(last.share, "survival"), last.share.value)


def led_elsewhere(record: Record) -> int:
    """Prompts whose first difference lies elsewhere when they are led: rounding, as the forms that ran differ."""
    return sum(row["agreed"] != row["led"] for row in record.prompts)


def scores(record: Record) -> list[tuple[str, str, Figure]]:
    """Every metric of every task that lm-eval names: task, metric and filter, value with its standard error."""
    found = []
    for task, own in record.harness.get("results", {}).items():
        for name, got in own.items():
            metric_name, comma, kept = name.partition(",")
            if not comma or "_stderr" in metric_name or not isinstance(got, int | float):
                continue
            error = own.get(f"{metric_name}_stderr,{kept}")
            shown = f"± {number(error)}" if isinstance(error, int | float) else ""
            found.append((task, f"{metric_name}, {kept}", Figure(number(got, 4), shown, float(got))))
    return found

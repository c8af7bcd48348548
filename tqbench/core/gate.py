"""A gate: a limit on a metric, for every scheme whose label matches."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

# What a gate may be about: the task that measures it, and which way is better. None: any change counts, to better or worse.
Better = Literal["high", "low"] | None
METRICS: dict[str, dict[str, Better]] = {
    "perplexity": {
        **dict.fromkeys(("ppl", "dppl", "ln_ratio", "kld", "kld_p99", "kld_worst_decile", "kld_max", "rms_dp")),
        **dict.fromkeys(("top1", "top5"), "high"),
    },
    "decode": {
        **dict.fromkeys(("decode_tps", "decode_ratio", "captured_tps", "captured_ratio"), "high"),
        **dict.fromkeys(("decode_ms_p50", "decode_ms_p90", "decode_ms_p99"), "low"),
    },
    "prefill": {**dict.fromkeys(("prefill_tps", "prefill_ratio"), "high"), "ttft_ms": "low"},
    "memory": {"kv_bytes_per_token": "low", "tokens_per_gib": "high"},
    "storage": {
        **dict.fromkeys(("stored_ratio", "entropy_gain", "ttft_gain", "cos_k_min", "cos_v_min"), "high"),
        **dict.fromkeys(("save_ms", "load_ms", "ttft_load_ms"), "low"),
    },
    "needle": {
        **dict.fromkeys(("needle_score", "needle_kept", "needle_first"), "high"),
        **dict.fromkeys(("needle_nll", "needle_kld"), "low"),
        "needle_dnll": None,
    },
    "generation": {
        **dict.fromkeys(("survival", "forced_top1"), "high"),
        "forced_kld": "low",
        "forced_dnll": None,
    },
    "lm_eval": {**dict.fromkeys(("eval_score", "eval_same", "eval_active"), "high"), "eval_delta": None},
}
# Counted, or the most or least that was seen, so that there is nothing to be unsure of; every other metric is judged by its interval.
POINTS = {"kld_max", "kv_bytes_per_token", "tokens_per_gib", "stored_ratio", "entropy_gain", "cos_k_min", "cos_v_min", "eval_active"}
# Each pairs a scheme with the model's own cache beside it, so that what disturbs the machine meets both.
RATIOS = {"decode_ratio", "captured_ratio", "prefill_ratio", "ttft_gain"}
# Tables show these in percent; a limit on them is a share.
SHARES = {"top1", "top5", "needle_score", "needle_kept", "needle_first", "survival", "forced_top1", "eval_same", "eval_active"}
TASK_OF = {metric: task for task, metrics in METRICS.items() for metric in metrics}


@dataclass(frozen=True)
class Gate:
    """A limit on a metric of every scheme whose label matches one of the patterns."""

    schemes: tuple[str, ...]
    metric: str
    limit: float
    sided: Literal["one", "two"] = "two"
    expect: Literal["pass", "fail"] = "pass"
    required: bool = True

    @staticmethod
    def of(data: dict[str, Any]) -> Gate:
        """From JSON, where the patterns are a list."""
        return Gate(**{**data, "schemes": tuple(data["schemes"])})

    @property
    def better(self) -> Better:
        """Which way is better: the limit is then a bound on the other side alone."""
        return METRICS[TASK_OF[self.metric]][self.metric] if self.metric in TASK_OF else None

    def measured_by(self, task: str) -> bool:
        """Whether that task has the metric; one that nobody knows is looked for everywhere."""
        return TASK_OF.get(self.metric, task) == task

    def covers(self, label: str) -> bool:
        """Whether this gate judges the scheme of that label."""
        return any(matches(pattern, label) for pattern in self.schemes)


def too_large(metric: str, limit: float) -> str | None:
    """What is wrong with the limit of a share, or None: 99 is meant in percent, and nothing would ever reach it."""
    if metric not in SHARES or limit <= 1:
        return None
    return f"{metric} is a share from 0 to 1, and the limit {limit:g} is more than all of it; write {limit / 100:g} for {limit:g} %"


def matches(pattern: str, label: str) -> bool:
    """`*` and `?` are wildcards; brackets are not, because labels such as turbo4[identity] have them."""
    return fnmatchcase(label, pattern.replace("[", "[[]"))

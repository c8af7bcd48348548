"""How figures are written for people: as many digits as their interval supports."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tqbench.core.record import Estimate

NONE = "–"


@dataclass(frozen=True)
class Style:
    """How a metric is called and written."""

    title: str
    signed: bool = False
    scale: float = 1.0
    unit: str = ""


STYLES = {
    "ppl": Style("ppl"),
    "base_ppl": Style("baseline ppl"),
    "dppl": Style("Δppl", signed=True),
    "ln_ratio": Style("ln ratio", signed=True),
    "kld": Style("KLD"),
    "kld_median": Style("median KLD"),
    "kld_p90": Style("90 % KLD"),
    "kld_p99": Style("99 % KLD"),
    "kld_p999": Style("99.9 % KLD"),
    "kld_worst_decile": Style("worst decile KLD"),
    "kld_max": Style("max KLD"),
    "kld_k": Style("KLD K"),
    "kld_v": Style("KLD V"),
    "kld_worst": Style("KLD of the worst"),
    "kld_sum": Style("ΣKLD"),
    "kld_sum_k": Style("ΣKLD K"),
    "kld_sum_v": Style("ΣKLD V"),
    "rms_dp": Style("RMS Δp", scale=100, unit=" %"),
    "top1": Style("same top-1", scale=100, unit=" %"),
    "top5": Style("same top-5", scale=100, unit=" %"),
    "decode_tps": Style("decode", unit=" tok/s"),
    "decode_ratio": Style("decode against the own cache", unit="×"),
    "captured_tps": Style("captured decode", unit=" tok/s"),
    "captured_ratio": Style("captured decode against the own cache in place", unit="×"),
    "decode_ms_p50": Style("p50", unit=" ms"),
    "decode_ms_p90": Style("p90", unit=" ms"),
    "decode_ms_p99": Style("p99", unit=" ms"),
    "prefill_tps": Style("prefill", unit=" tok/s"),
    "prefill_ratio": Style("prefill against the own cache", unit="×"),
    "ttft_ms": Style("time to first token", unit=" ms"),
    "kv_bytes": Style("KV cache", unit=" B"),
    "kv_bytes_per_token": Style("bytes per token"),
    "tokens_per_gib": Style("tokens per GiB"),
    "gpu_power_w": Style("GPU power", unit=" W"),
    "joules_per_token": Style("energy per token", unit=" J"),
    "host_waits": Style("waits for the device per token"),
    "step_ms": Style("step", unit=" ms"),
    "marked_ms": Style("step with marks", unit=" ms"),
    "explained": Style("in named operations", scale=100, unit=" %"),
    "stored_ratio": Style("smaller than f16", unit="×"),
    "entropy_gain": Style("entropy stage", unit="×"),
    "save_ms": Style("save", unit=" ms"),
    "load_ms": Style("load", unit=" ms"),
    "ttft_load_ms": Style("first token from a file", unit=" ms"),
    "ttft_gain": Style("first token against computing anew", unit="×"),
    "cos_k_min": Style("worst cosine of K"),
    "cos_v_min": Style("worst cosine of V"),
    "needle_score": Style("needles found", scale=100, unit=" %"),
    "needle_base": Style("needles found by the baseline", scale=100, unit=" %"),
    "needle_kept": Style("needles kept", scale=100, unit=" %"),
    "needle_first": Style("needle tokens first", scale=100, unit=" %"),
    "needle_nll": Style("needle NLL"),
    "needle_dnll": Style("needle ΔNLL", signed=True),
    "needle_kld": Style("needle KLD"),
    "survival": Style("prompts that agree", scale=100, unit=" %"),
    "half_life": Style("half agree for", unit=" tokens"),
    "forced_top1": Style("led, same top-1", scale=100, unit=" %"),
    "forced_kld": Style("led, KLD"),
    "forced_nll": Style("led, NLL"),
    "forced_dnll": Style("led, ΔNLL", signed=True),
    "eval_score": Style("score", scale=100, unit=" %"),
    "eval_base": Style("baseline's score", scale=100, unit=" %"),
    "eval_delta": Style("Δ score", signed=True, scale=100, unit=" %"),
    "eval_same": Style("same documents", scale=100, unit=" %"),
    "eval_dnll": Style("answers' ΔNLL", signed=True),
    "eval_active": Style("active requests", scale=100, unit=" %"),
}


def title(metric: str) -> str:
    """The metric's name in tables."""
    return STYLES[metric].title if metric in STYLES else metric


def value(estimate: Estimate, metric: str) -> str:
    """The figure alone, without its unit."""
    return _written(estimate, metric)[0]


def interval(estimate: Estimate, metric: str) -> str:
    """The figure with its 95 % interval and unit."""
    style = STYLES.get(metric, Style(metric))
    middle, *limits = _written(estimate, metric)
    return f"{middle}{f' [{limits[0]}, {limits[1]}]' if limits else ''}{style.unit}"


def bounds(estimate: Estimate, metric: str) -> str:
    """The interval alone; empty if there is none."""
    _, *limits = _written(estimate, metric)
    return f"[{limits[0]}, {limits[1]}]" if limits else ""


def half(estimate: Estimate, metric: str) -> str:
    """Half the width of the interval; empty if there is none."""
    scale, (low, high) = STYLES.get(metric, Style(metric)).scale, estimate.ends
    width = scale * (high - low) / 2
    return f"±{_fixed(width, _decimals(width, 2))}" if width else ""


def bare(x: float, metric: str) -> str:
    """A figure that a person wrote, with the metric's unit."""
    style = STYLES.get(metric, Style(metric))
    return f"{style.scale * x:.6g}{style.unit}"


def exact(estimate: Estimate) -> bool:
    """Whether every token agreed, so that nothing is estimated."""
    return not any((estimate.value, *estimate.ends))


def inside(estimate: Estimate, floor: float | None) -> bool:
    """Whether nothing of the interval reaches the floor; a value below it with an interval beyond may be a difference all the same."""
    return floor is not None and max(map(abs, (estimate.value, *estimate.ends))) < floor


def number(x: float, digits: int = 3) -> str:
    """A figure without an interval."""
    return _fixed(x, _decimals(abs(x), digits))


def plain(text: str) -> str:
    """Text of unknown origin on one line, without control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def _written(estimate: Estimate, metric: str) -> list[str]:
    style = STYLES.get(metric, Style(metric))
    low, high = (style.scale * end for end in estimate.ends)
    middle = style.scale * estimate.value
    if low == high:
        return [_fixed(middle, _decimals(abs(middle), 3), style.signed and middle != 0)]
    decimals = _decimals((high - low) / 2, 2)
    return [_fixed(x, decimals, style.signed) for x in (middle, low, high)]


def _decimals(x: float, digits: int) -> int:
    """How many decimals show that many digits of x."""
    return max(0, digits - 1 - math.floor(math.log10(x))) if x and math.isfinite(x) else 0


def _fixed(x: float, decimals: int, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{x:{sign},.{decimals}f}" if decimals <= 6 else f"{x:{sign}.2e}"
    return text.replace("-", "−")

"""Speed and memory for people: the columns of `decode`, `prefill`, `memory` and `storage`, and where the time of a step goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqbench.core.quantity import size
from tqbench.core.record import Cell, Record
from tqbench.report import asked
from tqbench.report.column import BITS, COVERAGE, Column, Figure, Line, metric
from tqbench.report.grounds import disturbed
from tqbench.report.text import NONE, plain, value

STAGES = {  # in the order in which they are shown
    "model": "the model's own layers, sampling apart",
    "embed": "the table of token embeddings",
    "norm": "every normalization",
    "qkv": "the products that make queries, keys and values",
    "rope": "the rotary embedding, its tables, and the reshaping of heads around it",
    "append": "taking new keys and values in; of the model's own cache, copying it",
    "encode": "packing",
    "center": "vectors of all heads together, without their mean",
    "project": "onto principal components",
    "quantize": "coefficients to codes",
    "pack": "codes to bits",
    "gather": "arrays to bytes on the host",
    "entropy": "the entropy coder, checksums included",
    "write": "the file written and synchronized",
    "read": "the file read, from memory where the system still holds it",
    "restore": "bytes to arrays",
    "decode": "unpacking",
    "unpack": "bits to codes",
    "dequantize": "codes to coefficients",
    "unproject": "back from principal components",
    "uncenter": "the mean added, and heads apart again",
    "attend": "attention",
    "out": "the product behind attention",
    "residual": "what is added to the residual stream",
    "ffn": "the products of the feed-forward network",
    "activation": "its activation, and the product of its two halves",
    "lm_head": "the product that makes logits",
    "settle": "counting, for the evidence",
    "choose": "the next token, read back",
    "unexplained": "between stages",
}


def heading(cell: Cell) -> str:
    """What was timed or counted, in llama-bench's words; or what was asked."""
    if cell.task in asked.COLUMNS:
        return asked.heading(cell)
    context = cell.params["context"]
    if cell.task == "storage":
        level = cell.params["level"]
        return f"storage @ d{context} · {cell.params['entropy']}{'' if level is None else f' {level}'}"
    return {
        "decode": f"tg{cell.params.get('new')} @ d{context}",
        "breakdown": f"step @ d{context}",
        "prefill": f"pp{context}",
    }.get(cell.task, f"{cell.task} @ d{context}")


def facts(records: Sequence[Record]) -> list[str]:
    """What a reader must know of how the cells of a setting were timed: of the first what is true of all, and what is a scheme's own."""
    record = records[0]
    params, timing, model = record.cell.params, record.timing, record.model
    if record.cell.task in asked.COLUMNS:
        return asked.facts(record)
    if record.cell.task in ("perplexity", "sensitivity"):
        return []
    past = params["context"] + params.get("new", 0) > model.get("max_positions", params["context"])
    return [
        fact
        for fact in (
            "context prefilled by the model's own cache, then packed" if record.cell.task != "prefill" and params["context"] else "",
            _turns(record),
            f"{timing['threads']} threads, waiting: {timing['waiting']}" if timing else "",
            _attention(record),
            _graphs(records),
            _uncaptured(records),
            _packed(records),
            f"past the model's {model['max_positions']:,} positions: speed only" if past and record.cell.task == "decode" else "",
        )
        if fact
    ]


def _attention(record: Record) -> str:
    """The form of torch's attention that the model's own cache was read by, as far as it was seen."""
    steps = record.device.get("steps", {})
    forms = steps.get("own", steps.get("cell", {})).get("attention")
    return f"own attention: torch's {' + '.join(forms)}" if forms else ""


def _graphs(records: Sequence[Record]) -> str:
    """What captured steps were held against."""
    own = next((own for record in records if (own := record.device.get("captured", {}).get("own"))), None)
    if own is None:
        return ""
    forms = f", read by torch's {' + '.join(own['attention'])}" if own["attention"] else ""
    outside = "figures outside graphs contain Python's launches, and its copying for every token"
    return f"in graphs against the own cache in {own['cache']}{forms}; {outside}"


def _uncaptured(records: Sequence[Record]) -> str:
    """Whose steps were not captured where graphs are, and why."""
    on = [record for record in records if record.cell.device.startswith("cuda")]
    whose: dict[str, list[str]] = {}
    for record in on:
        if why := record.device.get("captured", {}).get("missing"):
            whose.setdefault(why, []).append(record.cell.label)
    reasons = [why if len(labels) == len(on) else f"{', '.join(dict.fromkeys(labels))} ({why})" for why, labels in whose.items()]
    return f"not in graphs: {'; '.join(reasons)}" if reasons else ""


def _packed(records: Sequence[Record]) -> str:
    """What schemes packed within their captured steps, if that is another number of tokens: the cost of packing counts for so many."""
    found = []
    for record in records:
        new, packed = record.cell.params.get("new"), record.device.get("captured", {}).get("cell", {}).get("packed", {})
        counts = {side.upper(): "–".join(map(str, sorted({min(each), max(each)}))) for side, each in packed.items() if {*each} != {new}}
        if counts:
            found.append(f"{record.cell.label} {' and '.join(f'{count} {side}' for side, count in counts.items())}")
    return f"packed within {records[0].cell.params['new']} tokens in graphs: {', '.join(dict.fromkeys(found))}" if found else ""


def _turns(record: Record) -> str:
    timing, stored = record.timing, record.storage
    if not timing or not stored:
        return f"{timing['repetitions']} repetitions, {timing['rounds']} rounds in turn with the model's own cache" if timing else ""
    coder = f"coder {stored['coder']['name']} ({stored['coder']['package']}), in one thread"
    again = f"{timing['repetitions']} repetitions in turn with prefilling the context anew"
    return f"{coder} · {again} · {stored['equal_steps']} tokens after it equal to the last bit those of a cache never saved"


def _timed(name: str) -> Any:
    shown = metric(name)

    def show(line: Line) -> Figure:
        figure = shown(line)
        mark = " !" if disturbed(line.record, name) and figure.text != NONE else ""
        return Figure(figure.text + mark, figure.detail, figure.order, figure.brief)

    return show


def _kernels(line: Line) -> Figure:
    """Every form that ran: speed without them means nothing."""
    ran = line.record.kernels
    attend, encode, decode = (plain(str(ran.get(op, NONE))).replace("+", " + ") for op in ("attend", "encode", "decode"))
    return Figure(attend, f"{encode} · {decode}") if ran else Figure(NONE)


def _bytes(name: str) -> Any:
    def show(line: Line) -> Figure:
        estimate = line.record.metrics.get(name)
        return Figure(size(estimate.value), order=estimate.value) if estimate else Figure(NONE)

    return show


def _beside(name: str, other: str, says: str) -> Any:
    """A timed figure with another below it."""
    shown = _timed(name)

    def show(line: Line) -> Figure:
        figure, below = shown(line), line.record.metrics.get(other)
        return Figure(figure.text, says.format(value(below, other)) if below else "", figure.order)

    return show


def _whole(name: str) -> Any:
    def show(line: Line) -> Figure:
        estimate = line.record.metrics.get(name)
        return Figure(f"{estimate.value:,.0f}", order=estimate.value) if estimate else Figure(NONE)

    return show


def _file(line: Line) -> Figure:
    estimate, per_token = (line.record.metrics.get(name) for name in ("stored_bytes", "stored_bytes_per_token"))
    return Figure(size(estimate.value), f"{per_token.value:,.0f} B/token", estimate.value) if estimate and per_token else Figure(NONE)


def _worst(side: str) -> Any:
    def show(line: Line) -> Figure:
        low, hundredth = (line.record.metrics.get(f"cos_{side}_{end}") for end in ("min", "p01"))
        return Figure(f"{low.value:.4f}", f"{hundredth.value:.4f}", low.value) if low and hundredth else Figure(NONE)

    return show


def _device_peak(line: Line) -> Figure:
    taken, held = (line.record.metrics.get(f"device_peak_{name}") for name in ("allocated", "reserved"))
    return Figure(size(taken.value), f"{size(held.value)} held", taken.value) if taken and held else Figure(NONE)


def _gpu(line: Line) -> Figure:
    use, power = (line.record.metrics.get(name) for name in ("gpu_utilisation", "gpu_power_w"))
    watts = f"{power.value:.0f} W" if power else ""
    return Figure(f"{100 * use.value:.0f}", watts, use.value) if use else Figure(NONE, watts)


def _captured(line: Line) -> Figure:
    own, figure = line.record.metrics.get("base_captured_tps"), _timed("captured_tps")(line)
    return Figure(figure.text, f"own {value(own, 'captured_tps')}" if own else "", figure.order)


def _peak(line: Line) -> Figure:
    peak = line.record.peak_bytes
    return Figure(size(peak), order=peak) if peak else Figure(NONE)


GPU = (
    Column(
        "GPU %",
        "the share of time in which the GPU computed anything, as NVML tells it, in repetitions of their own; below it its power",
        _gpu,
        optional=True,
    ),
    Column(
        "J/token", "energy of the GPU for a token, from NVML's counter, in the same repetitions", metric("joules_per_token"), optional=True
    ),
    Column("waits", "how often the host waits for the device per token, as far as torch sees it", metric("host_waits"), optional=True),
)
FORMS = Column("kernels", "the form of attention that ran; below it those that packed and unpacked", _kernels)
RATIO = (
    "times as fast as the model's own cache, in turn with it: the median over rounds, which few that pack many tokens do not move (tok/s "
    "has all of them); of the baseline, that cache against itself"
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "decode": (
        BITS,
        COVERAGE,
        Column("tok/s", "tokens per second, one after another, all rounds together, with the 95 % interval", _timed("decode_tps")),
        Column("× own", RATIO, _timed("decode_ratio")),
        Column("p50 ms", "the median latency of a token", _timed("decode_ms_p50")),
        Column("p90 ms", "the latency that one token in ten exceeds", _timed("decode_ms_p90")),
        Column("p99 ms", "the latency that one token in a hundred exceeds", _timed("decode_ms_p99")),
        Column(
            "graph tok/s",
            "the same steps in captured CUDA graphs, so without what Python and the engine take to ask for every launch, which all other "
            "speeds here contain; nothing is read back within a round; below it the model's own cache so",
            _captured,
            optional=True,
        ),
        Column(
            "graph × own",
            "times as fast in captured graphs as the model's own cache, in turn with it and kept in place there: of all rounds together",
            metric("captured_ratio"),
            optional=True,
        ),
        *GPU,
        FORMS,
    ),
    "prefill": (
        BITS,
        COVERAGE,
        Column("tok/s", "tokens per second of the whole text through an empty cache", _timed("prefill_tps")),
        Column("× own", RATIO, _timed("prefill_ratio")),
        Column("first token ms", "from the first token of the text to the first new one", _timed("ttft_ms")),
        *GPU,
        FORMS,
    ),
    "breakdown": (
        BITS,
        COVERAGE,
        Column("step ms", "the median of a step, decoded without marks", _timed("step_ms")),
        Column("marked ms", "the mean of a step with marks at both ends of every operation", metric("marked_ms")),
        Column("explained %", "the share of a marked step that lies in a named operation", metric("explained")),
        FORMS,
    ),
    "memory": (
        BITS,
        COVERAGE,
        Column("KV cache", "bytes of all keys and values that are kept, packed and exact", _bytes("kv_bytes")),
        Column("B/token", "of these, per token of the context", _whole("kv_bytes_per_token")),
        Column(
            "tokens/GiB", "how many tokens a gibibyte holds: windows, sinks and tables once, the rest as packed", _whole("tokens_per_gib")
        ),
        Column(
            "peak", "of the process, or of the device's memory, while it decodes; other caches that are held aside are taken off", _peak
        ),
        Column(
            "device peak",
            "the most that tensors took of the device's memory while it decodes, without other caches that are held aside; below it what "
            "torch's allocator held in all",
            _device_peak,
            optional=True,
        ),
        FORMS,
    ),
    "storage": (
        BITS,
        Column("file", "bytes of the file; below it per token of the context", _file),
        Column(
            "× f16",
            "how many times smaller than the same tokens in 16 bits: the file with all that is in it, exact tokens as the model has them, "
            "and a share of what codecs learned",
            metric("stored_ratio"),
        ),
        Column("entropy", "how many times smaller the entropy stage made the arrays", metric("entropy_gain")),
        Column(
            "save ms",
            "from the exact context to the file; below it megabytes of 16 bits per second",
            _beside("save_ms", "save_mbps", "{} MB/s"),
        ),
        Column("load ms", "from the file to a cache; below it megabytes of 16 bits per second", _beside("load_ms", "load_mbps", "{} MB/s")),
        Column(
            "first token ms",
            "from the file to the first new token; below it with the context computed anew by the model's own cache",
            _beside("ttft_load_ms", "ttft_recompute_ms", "anew {}"),
        ),
        Column("× anew", "times as fast to the first token as computing the context anew, in turn: the median", _timed("ttft_gain")),
        Column(
            "worst cos K", "the lowest cosine of a vector with the exact one; below it what one in a hundred falls short of", _worst("k")
        ),
        Column("worst cos V", "the same of the values", _worst("v")),
        FORMS,
    ),
}


def meaning(cell: Cell, stage: str) -> str:
    """What a stage is: where operations are told apart, the model is what is left."""
    return "positions, masks, and the loop over layers" if (cell.task, stage) == ("breakdown", "model") else STAGES[stage]


def lanes(record: Record) -> dict[str, str]:
    """The lanes whose stages are shown, each with what was timed."""
    if record.cell.task == "storage":
        return {"save": "saving, from the exact context to the file", "load": "loading, from the file to the first token"}
    if record.cell.task in ("decode", "breakdown"):
        return {"cell": "a token"}
    return {"cell": f"one more chunk of {record.cell.params.get('chunk')} tokens behind the text"}


def per_move(record: Record, lane: str) -> dict[str, float]:
    """Milliseconds of a move by stage, with what no stage explains."""
    staged = record.stages.get(lane)
    if not staged:
        return {}
    moves, spent = record.stages["moves"], staged["stages"]
    rest = staged["whole"] - sum(spent.values())
    return {name: 1e3 * seconds / moves for name, seconds in (*spent.items(), ("unexplained", rest))}


def disturbed_stages(record: Record, lane: str = "cell") -> bool:
    """Whether others used the machine in the repetition that the stages come from."""
    return bool(record.stages.get(lane, {}).get("disturbed"))

"""What a cell will cost: a first guess from the model's configuration. `history` corrects it by what earlier cells took on this machine.

Work is counted in the seconds of one core of a two-core server CPU that others use now and then: 2 flops per parameter and token, and 4 per
layer, channel and position that it attends to, at 50 Gflop/s in float32 (75 were measured alone, 35 with others). A pass through a scheme
takes 1.6 times as long as a plain one. A token alone costs what the weights and the cache are to be read, and a cell that is timed runs the
model's own cache as often as the scheme. A machine of another kind is off by its own factor, which the first records tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tqbench.core.codec import ITEMSIZE
from tqbench.core.errors import Unsupported
from tqbench.core.presets import read
from tqbench.core.record import Cell
from tqbench.corpora import recipes
from tqbench.measure import device, environment
from tqbench.suite.deciding import Expected
from tqbench.tasks import breakdown, decode, generation, lm_eval, memory, needle, prefill, sensitivity, storage
from tqbench.tasks.perplexity import KEPT_BYTES, passes

FLOPS_PER_CORE = 50e9
SCHEME_PASS = 1.6  # of a plain pass
BYTES_PER_CORE = 5e9  # per second, of weights and exact keys and values
UNPACK = 2e-9  # seconds per value and core, of what a scheme's step reads
PROCESS_BYTES = 600 << 20  # the interpreter with torch and transformers loaded
SPARE = 1.3  # of arrays: what the allocator holds besides
STARTUP = 8.0  # seconds until a worker has imported its libraries
READ_BYTES = 5e8  # per second, of weights from the disk
ASKING = {"needle": needle.tokens, "generation": generation.tokens, "lm_eval": lm_eval.tokens}
RECORD_BYTES, EVIDENCE_BYTES = 2_000, 800  # of record.json: in all, and per layer and side of a scheme


@dataclass(frozen=True)
class Cost:
    """What a cell will take. None where the model's configuration or the device is not known before it is loaded."""

    tokens: int
    seconds: float | None  # without `beside`
    peak_bytes: int | None
    disk_bytes: int | None = None  # its record and arrays; for the first cell of a model that must be converted, that too
    download_bytes: int | None = 0  # for the first cell of a model that is not here; None if nobody knows how much
    unsupported: str | None = None  # why the device is not here, or why the scheme cannot store this model's vectors
    learned: int = 0  # from how many earlier cells of this machine; 0 is a first guess
    beside: float = 0.0  # seconds more if no scheme of its setting is measured before it: the baseline then runs beside it
    expected: Expected | None = None  # where a cell that is scored until it is decided is likely to end


@dataclass(frozen=True)
class Size:
    """The few facts about a model that decide time and memory."""

    layers: int
    channels: int  # of all query heads together
    kv_channels: int
    head_dim: int
    vocab: int
    parameters: int

    @staticmethod
    def of(config: dict[str, Any] | None) -> Size | None:
        """From a configuration in the words of Hugging Face; None if it does not say."""
        try:
            data = config or {}
            hidden, layers, heads, vocab = (int(data[f]) for f in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"))
            kv_heads = int(data.get("num_key_value_heads") or heads)
            head_dim = int(data.get("head_dim") or hidden // heads)
            inner = int(data["intermediate_size"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
        q, kv = heads * head_dim, kv_heads * head_dim
        layer = 2 * hidden * q + 2 * hidden * kv + 3 * hidden * inner
        tables = 1 if data.get("tie_word_embeddings", True) else 2
        return Size(layers, q, kv, head_dim, vocab, layers * layer + tables * hidden * vocab)

    def weights(self, dtype: str) -> int:
        """Bytes of the parameters."""
        return self.parameters * ITEMSIZE[dtype]


def tokens(cell: Cell, size: Size | None = None) -> int:
    """How many tokens a cell runs through the model, all passes together; where windows overlap, some of the text more than once. How many
    probes of layers there are depends on the model: all of its layers are taken to hold K and V, and of an unknown one a single one."""
    if cell.task == "decode":
        return _context(cell) + decode.steps(cell)
    if cell.task == "prefill":
        return _context(cell) + prefill.tokens(cell)
    if cell.task == "breakdown":
        return _context(cell) + breakdown.tokens(cell)
    if cell.task == "memory":
        return _context(cell) + memory.STEPS
    if cell.task == "storage":
        return _context(cell) + storage.tokens(cell)
    if cell.task == "sensitivity":
        return sensitivity.passes(cell, size.layers if size else 1) * _covered(cell)
    if cell.task in ASKING:
        return ASKING[cell.task](cell)
    return round(passes(cell) * _covered(cell))


def _context(cell: Cell) -> int:
    """The context is prefilled for the baseline, which comes first, and kept for the schemes."""
    return int(cell.params["context"]) if cell.scheme is None else 0


def _covered(cell: Cell) -> int:
    """The tokens of all windows together."""
    return sum(span.end - span.start for span in recipes.spans(cell.params))


def cost(cell: Cell, size: Size | None) -> Cost:
    """The first guess for one cell."""
    if size is None:
        missing = _not_here(cell)
        return Cost(tokens(cell), 0.0 if missing else None, None, unsupported=missing)
    unsupported, peak, disk = _unsupported(cell, size), peak_bytes(cell, size), _disk_bytes(cell, size)
    if unsupported:
        return Cost(tokens(cell, size), 0.0, peak, disk, unsupported=unsupported)
    if cell.device != "cpu":
        return Cost(tokens(cell, size), None, peak, disk)
    alone, first = (work(cell, size, first=one) / int(environment.threads()) for one in (False, True))
    return Cost(tokens(cell, size), alone, peak, disk, beside=first - alone)


def startup(size: Size | None, dtype: str) -> float:
    """Seconds until a worker has loaded the model and begins to measure."""
    return STARTUP + (size.weights(dtype) / READ_BYTES if size else 0.0)


def work(cell: Cell, size: Size | None, *, first: bool) -> float:
    """What there is to compute, in seconds of a core; tokens where the model is not known. Only good for ratios on other devices.
    `first`: no scheme of its setting was measured before it, so the baseline must run beside it."""
    if size is None:
        return float(tokens(cell))
    slower, token = 2 if cell.dtype == "float64" else 1, _token(size, cell.params["context"] / 2)
    if cell.task in ("decode", "memory", "breakdown"):
        return slower * (_context(cell) * token + (tokens(cell) - _context(cell)) * _step(cell, size))
    if cell.task in ASKING:  # the baseline's own cell keeps what it said, for the schemes
        decoded = generation.steps(cell) * cell.params["prompts"] if cell.task == "generation" else 0
        many = (tokens(cell) - decoded) * token * (1 if cell.scheme is None else SCHEME_PASS)
        learning = cell.params.get("calibration", {}).get("tokens", 0) * token if cell.scheme else 0
        return float(slower * (many + learning + decoded * _step(cell, size)))
    if cell.task == "storage":  # mostly prefill, over and over by the model's own cache
        return slower * tokens(cell) * token
    if cell.task == "sensitivity":
        own = 1 + SCHEME_PASS * (sensitivity.passes(cell, size.layers) - 1)
        return float(slower * token * (own * _covered(cell) + cell.params.get("calibration", {}).get("tokens", 0)))
    if cell.task == "prefill":
        run = _context(cell) + prefill.tokens(cell) * (1 if cell.scheme is None else (1 + SCHEME_PASS) / 2)
        return slower * run * token
    # All passes but the baseline's, which runs beside the first scheme only while its logits can be kept, go through the scheme.
    own = passes(cell) if cell.scheme is None else SCHEME_PASS * (passes(cell) - 1) + (first or not _kept(cell, size))
    return float(slower * token * (own * _covered(cell) + cell.params.get("calibration", {}).get("tokens", 0)))


def _kept(cell: Cell, size: Size) -> bool:
    """Whether the baseline's logits for all windows fit what is set aside for them."""
    return _covered(cell) * size.vocab * ITEMSIZE[cell.dtype] <= KEPT_BYTES


def _token(size: Size, attended: float) -> float:
    """Seconds of a core for one of many tokens that run together."""
    return (2 * size.parameters + 4 * size.layers * size.channels * attended) / FLOPS_PER_CORE


def _step(cell: Cell, size: Size) -> float:
    """Seconds of a core for a token alone, in the mean of the two lanes."""
    values = 2 * size.layers * size.kv_channels * cell.params["context"]
    read_and_written = size.weights(cell.dtype) + 3 * values * ITEMSIZE[cell.dtype]  # a cache that is concatenated is written anew
    return float(read_and_written / BYTES_PER_CORE + (0.0 if cell.scheme is None else values * UNPACK / 2))


def peak_bytes(cell: Cell, size: Size) -> int:
    """The memory that a worker takes for a cell, at most."""
    weights, item = size.weights(cell.dtype), ITEMSIZE[cell.dtype]
    if cell.task not in ("perplexity", "sensitivity"):  # the context, the two lanes, and one layer unpacked
        held = 2 * size.layers * size.kv_channels * (cell.params["context"] + cell.params.get("new", 0)) * item
        answers = cell.params.get("prompts", 0) * cell.params.get("new", 0) * size.vocab * item  # the baseline's logits along them
        copies = 6 if cell.task == "decode" and cell.device.startswith("cuda") else 3.5  # captured lanes come on top
        return int(PROCESS_BYTES + weights + SPARE * (copies * held + min(KEPT_BYTES, answers)))
    caches = 1 if cell.scheme is None else 2  # a scheme's own and the baseline beside it
    logits = 2 * caches * min(cell.params["chunk"], cell.params["context"]) * size.vocab * max(4, item)  # and their softmax
    cache = caches * 2 * size.layers * size.kv_channels * cell.params["context"] * item
    once = cell.params["context"] if cell.task == "sensitivity" else cell.params["tokens"]  # a window's logits serve all probes
    kept = min(KEPT_BYTES, once * size.vocab * 4) if cell.scheme else 0  # the baseline's logits, for the next scheme
    return int(PROCESS_BYTES + weights + SPARE * (logits + cache + kept))


def _disk_bytes(cell: Cell, size: Size) -> int:
    """The record, and the array of every score or of every timed move and round."""
    record = RECORD_BYTES + (2 * size.layers * EVIDENCE_BYTES if cell.scheme else 0)
    if cell.task == "perplexity":
        return record + 4 * sum(span.last - span.first for span in recipes.spans(cell.params))
    if cell.task == "sensitivity":
        return record + 4 * _covered(cell) * (4 * size.layers if cell.scheme else 1)
    moves = {
        **dict.fromkeys(("decode", "breakdown"), cell.params.get("new", 0)),
        "prefill": len(prefill.pieces(cell.params)) if cell.task == "prefill" else 0,
    }
    samples = 3 if cell.task == "decode" and cell.device.startswith("cuda") else 2  # moves and rounds, and rounds of captured steps
    return int(record + 8 * 2 * samples * moves.get(cell.task, 0) * cell.params.get("repetitions", 0))


def _not_here(cell: Cell) -> str | None:
    why = device.absent(cell.device)
    return f"device {cell.device!r} is not here: {why}" if why else None


def _unsupported(cell: Cell, size: Size) -> str | None:
    """Why a cell cannot run here, as far as that is known beforehand."""
    missing = _not_here(cell)
    if cell.scheme is None or missing:
        return missing
    try:
        scheme = read(cell.scheme)
        scheme.check(size.head_dim, size.kv_channels // size.head_dim)
        scheme.check_run(cell.backend, cell.params["protocol"])
    except Unsupported as error:
        return str(error)
    return None

"""What a cell will cost: a first guess from the model's configuration, before anything has run.

Measured with 135M parameters in float32 on 2 cores: about 500 tokens/s plain at 512 to 1024 tokens of context. That is 2 flops per
parameter and token, and 4 per layer, channel and position that it attends to, at about 75 Gflop/s per core. A pass through a scheme
takes 1.25 times as long as a plain one. A token alone costs what the weights and the cache are to be read: the plain forms unpack the
whole cache for it, at 3 to 30 ns per value and core, and a cell that is timed runs the model's own cache as often as the scheme.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tqbench.core.codec import ITEMSIZE
from tqbench.core.errors import Unsupported
from tqbench.core.presets import read
from tqbench.core.record import Cell
from tqbench.corpora import recipes
from tqbench.measure import environment
from tqbench.tasks import decode, memory, prefill, storage
from tqbench.tasks.perplexity import KEPT_BYTES, passes

FLOPS_PER_CORE = 75e9
SCHEME_PASS = 1.25  # of a plain pass
BYTES_PER_CORE = 5e9  # per second, of weights and exact keys and values
UNPACK = 1e-8  # seconds per value and core, in a scheme's plain forms
PROCESS_BYTES = 500 << 20  # the interpreter with torch and transformers loaded


@dataclass(frozen=True)
class Cost:
    """A first guess. None where the model's configuration or the device is not known before it is loaded."""

    tokens: int
    seconds: float | None
    peak_bytes: int | None
    unsupported: str | None = None  # why the scheme cannot store this model's vectors


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


def tokens(cell: Cell) -> int:
    """How many tokens a cell runs through the model, all passes together; where windows overlap, some of the text more than once."""
    if cell.task == "decode":
        return _context(cell) + decode.steps(cell)
    if cell.task == "prefill":
        return _context(cell) + prefill.tokens(cell)
    if cell.task == "memory":
        return _context(cell) + memory.STEPS
    if cell.task == "storage":
        return _context(cell) + storage.tokens(cell)
    return round(passes(cell) * _covered(cell))


def _context(cell: Cell) -> int:
    """The context is prefilled for the baseline, which comes first, and kept for the schemes."""
    return int(cell.params["context"]) if cell.scheme is None else 0


def _covered(cell: Cell) -> int:
    """The tokens of all windows together."""
    return sum(span.end - span.start for span in recipes.spans(cell.params))


def cost(cell: Cell, config: dict[str, Any] | None) -> Cost:
    """The first guess for one cell."""
    size = Size.of(config)
    if size is None:
        return Cost(tokens(cell), None, None)
    return Cost(tokens(cell), _seconds(cell, size), _peak_bytes(cell, size), _unsupported(cell, size))


def _seconds(cell: Cell, size: Size) -> float | None:
    if cell.device != "cpu":
        return None
    cores, slower = int(environment.threads()), 2 if cell.dtype == "float64" else 1
    if cell.task in ("decode", "memory"):
        alone = tokens(cell) - _context(cell)
        return float(slower * (_context(cell) * _token(size, cell.params["context"] / 2) + alone * _step(cell, size)) / cores)
    if cell.task == "storage":  # mostly prefill, over and over by the model's own cache
        return float(slower * tokens(cell) * _token(size, cell.params["context"] / 2) / cores)
    if cell.task == "prefill":
        run = _context(cell) + prefill.tokens(cell) * (1 if cell.scheme is None else (1 + SCHEME_PASS) / 2)
        return float(slower * run * _token(size, cell.params["context"] / 2) / cores)
    # All passes but the baseline's, which runs once beside a scheme, go through the scheme. What it learns from runs plain.
    plain = passes(cell) if cell.scheme is None else 1 + SCHEME_PASS * (passes(cell) - 1)
    run = plain * _covered(cell) + cell.params.get("calibration", {}).get("tokens", 0)
    return float(run * slower * _token(size, cell.params["context"] / 2) / cores)


def _token(size: Size, attended: float) -> float:
    """Seconds of a core for one of many tokens that run together."""
    return (2 * size.parameters + 4 * size.layers * size.channels * attended) / FLOPS_PER_CORE


def _step(cell: Cell, size: Size) -> float:
    """Seconds of a core for a token alone, in the mean of the two lanes."""
    values = 2 * size.layers * size.kv_channels * cell.params["context"]
    own = (
        float(ITEMSIZE[cell.dtype]) * (size.parameters + 3 * values) / BYTES_PER_CORE
    )  # read, and written anew by a cache that is concatenated
    return float(own + (0.0 if cell.scheme is None else values * UNPACK / 2))


def _peak_bytes(cell: Cell, size: Size) -> int:
    if cell.task != "perplexity":  # the context, the two lanes, and one layer unpacked
        held = 2 * size.layers * size.kv_channels * (cell.params["context"] + cell.params.get("new", 0)) * ITEMSIZE[cell.dtype]
        return int(PROCESS_BYTES + size.parameters * ITEMSIZE[cell.dtype] + 3.5 * held)
    caches = 1 if cell.scheme is None else 2  # a scheme's own and the baseline beside it
    item = ITEMSIZE[cell.dtype]
    logits = 2 * caches * min(cell.params["chunk"], cell.params["context"]) * size.vocab * max(4, item)  # and their softmax
    cache = caches * 2 * size.layers * size.kv_channels * cell.params["context"] * item
    kept = min(KEPT_BYTES, cell.params["tokens"] * size.vocab * 4) if cell.scheme else 0  # the baseline's logits, for the next scheme
    return int(PROCESS_BYTES + size.parameters * item + logits + cache + kept)


def _unsupported(cell: Cell, size: Size) -> str | None:
    if cell.scheme is None:
        return None
    try:
        scheme = read(cell.scheme)
        scheme.check(size.head_dim, size.kv_channels // size.head_dim)
        scheme.check_run(cell.backend, cell.params["protocol"])
    except Unsupported as error:
        return str(error)
    return None

"""The rate at which memory can be read, measured here and now, and how many copies of a cache it takes to read from memory at all."""

from __future__ import annotations

from functools import partial

import torch

from tqbench.bench.result import Ceiling
from tqbench.kernels import native, stream
from tqbench.measure import clock, environment, memory

UNKNOWN_CACHE = 64 << 20  # where the system does not tell: as large as they mostly are
BUFFER, WORKING_SET = 32, 4  # times the last-level cache
SAMPLES = 9


def measure(threads: int, device: str = "cpu", earlier: Ceiling | None = None) -> Ceiling:
    """The best of several passes over a buffer that no cache holds; together with an earlier measurement, of both."""
    if device != "cpu":
        return _on_device(threads, device, earlier)
    if reason := native.missing():
        return Ceiling(None, threads, reason=reason)
    size = min(BUFFER * cache_bytes(), memory.available() // 8)
    buffer = torch.ones(size // stream.WORD, dtype=torch.int64)  # written, so that every page is there
    seconds = [clock.timed(lambda: stream.total(buffer, threads)) for _ in range(SAMPLES)]
    samples = (*(earlier.samples if earlier else ()), *(buffer.nbytes / 1e9 / each for each in seconds))
    return Ceiling(max(samples), threads, buffer.nbytes, samples)


def _on_device(threads: int, device: str, earlier: Ceiling | None) -> Ceiling:
    """The same of a GPU: passes of torch's sum, many in a row."""
    buffer = torch.ones(BUFFER * cache_bytes(device) // 4, dtype=torch.float32, device=device)
    wait, run = clock.waiter(device), partial(torch.sum, buffer)
    for _ in range(SAMPLES):
        run()
    seconds = [clock.timed(lambda: [run() for _ in range(SAMPLES)], wait) / SAMPLES for _ in range(SAMPLES)]
    samples = (*(earlier.samples if earlier else ()), *(buffer.nbytes / 1e9 / each for each in seconds))
    return Ceiling(max(samples), threads, buffer.nbytes, samples)


def copies(nbytes: int, device: str = "cpu") -> int:
    """How many copies to use in turn, so that none is still in the processor when its turn comes again."""
    wanted = min(WORKING_SET * cache_bytes(device), memory.available() // 64) if device == "cpu" else WORKING_SET * cache_bytes(device)
    return max(1, min(-(-wanted // max(1, nbytes)), 256))


def uncached(nbytes: int, device: str = "cpu") -> bool:
    """Whether so much, read in turn, comes from memory: `copies` gives up where memory is scarce or a cache is tiny."""
    return nbytes >= 2 * cache_bytes(device)


def cache_bytes(device: str = "cpu") -> int:
    """The last-level cache, or a guess."""
    if device != "cpu":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return environment.last_level_cache() or UNKNOWN_CACHE

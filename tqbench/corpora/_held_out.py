"""Text for codecs to learn from: never what is scored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tqbench.core.errors import ConfigError
from tqbench.core.session import Ids

WINDOW = 512  # tokens of a stretch
PIECE = 32  # a run of so many tokens that is also scored means that the texts overlap


def held_out(ids: Ids, scored: list[Ids], tokens: int, seed: int) -> list[Ids]:
    """Stretches of the text, drawn with that seed, of which no run of `PIECE` tokens is scored."""
    flat = np.concatenate(scored)
    piece = min(PIECE, len(flat))
    runs = set(_runs(flat, piece))
    wanted = -(-tokens // WINDOW)
    found: list[Ids] = []
    for start in np.random.default_rng(seed).permutation(np.arange(0, len(ids) - WINDOW + 1, WINDOW)):
        stretch = ids[start : start + WINDOW]
        if len(found) < wanted and runs.isdisjoint(_runs(stretch, piece)):
            found.append(stretch)
    if len(found) < wanted:
        raise ConfigError(
            f"calibration wants {wanted} stretches of {WINDOW} tokens that are not scored, its text has {len(found)}; "
            "give another corpus or fewer tokens under `calibration`"
        )
    return found


def _runs(ids: Ids, length: int) -> Iterator[int]:
    """The hash of every run of so many tokens."""
    data, size = ids.astype("<i8").tobytes(), 8
    return (hash(data[size * i : size * (i + length)]) for i in range(len(ids) - length + 1))

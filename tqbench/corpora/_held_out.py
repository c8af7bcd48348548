"""Text for codecs to learn from: never what is scored."""

from __future__ import annotations

import numpy as np

from tqbench.core.errors import ConfigError
from tqbench.core.session import Ids

WINDOW = 512  # tokens of a stretch
PIECE = 32  # a run of so many tokens that is also scored means that the texts overlap


def held_out(ids: Ids, scored: list[Ids], tokens: int, seed: int) -> list[Ids]:
    """Stretches of the text, drawn with that seed, of which no run of `PIECE` tokens is scored."""
    starts = np.arange(0, len(ids) - WINDOW + 1, WINDOW)
    order = np.random.default_rng(seed).permutation(starts)
    runs = {window[i : i + PIECE].tobytes() for window in scored for i in range(len(window) - PIECE + 1)}
    wanted = -(-tokens // WINDOW)
    found: list[Ids] = []
    for start in order:
        stretch = ids[start : start + WINDOW]
        if len(found) < wanted and not any(stretch[i : i + PIECE].tobytes() in runs for i in range(0, WINDOW, PIECE)):
            found.append(stretch)
    if len(found) < wanted:
        raise ConfigError(
            f"calibration wants {wanted} stretches of {WINDOW} tokens that are not scored, its text has {len(found)}; "
            "give another corpus or fewer tokens under `calibration`"
        )
    return found

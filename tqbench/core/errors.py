"""Every error tqbench raises on purpose.

TqbenchError
├── ConfigError        a suite, option or name is wrong: exit 2, all problems of a file at once
├── Unsupported        the thing asked for cannot run here: outcome `unsupported`, with the reason
├── EvidenceError      a cache or kernel contradicts itself while running: outcome `failed`
├── EditedError        the files of a run are not those that were written: exit 4
├── StorageError       a saved cache or stream is damaged, or belongs to something else: outcome `failed`
└── LockedError        another run works in this result folder: exit 2
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class TqbenchError(Exception):
    """Base of all errors that tqbench raises on purpose; the message is a full sentence for the user."""


class ConfigError(TqbenchError):
    """One or more mistakes in what the user wrote, each with its place."""

    def __init__(self, problems: Sequence[str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Unsupported(TqbenchError):
    """What was asked for cannot run on this model, backend or machine."""


class EvidenceError(TqbenchError):
    """The run contradicts what it claims to do."""


class EditedError(TqbenchError):
    """Files of a run were changed after they were written, so nothing in it can be trusted."""


class StorageError(TqbenchError):
    """What was saved is damaged, or was saved by something else than what asks for it."""


class LockedError(TqbenchError):
    """Another process works in the same result folder."""


MOST_NAMES = 40  # in a sentence; of more, the nearest five


def unknown(what: str, name: str, allowed: Iterable[str]) -> str:
    """Who, what, allowed, and the likely meaning: the sentence for any name that is not known."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = names if len(names) <= MOST_NAMES else [*(difflib.get_close_matches(name, names, n=5, cutoff=0) or names[:5]), "…"]
    return f"unknown {what} {name!r}{hint} (known: {', '.join(shown)})"


PRECEDENCE = (70, 2, 4, 3, 1, 5, 0)  # internal · usage · audit · incomplete · gate · inconclusive · passed


def worst(codes: Iterable[int]) -> int:
    """The exit code of several: the worst wins."""
    found = set(codes)
    return next((code for code in PRECEDENCE if code in found), 0)

"""What the user asked of kernels, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

from tqbench.core.codec import Codec
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.op import Choice, Op, Place


class Wanted:
    """What the user asked of kernels: `auto`, a name, or `op=name,op=name`.

    A bare name is taken by every operation that has such a form for the codec; at least one must, else it is an error that says why.
    """

    def __init__(self, kernel: str):
        self.pinned: dict[str, str] = {}
        self.bare, self.taken, self.reasons = "auto", False, list[str]()
        if "=" in kernel:
            for item in kernel.split(","):
                op, _, name = item.partition("=")
                if op not in ("encode", "decode", "attend") or not name:
                    raise ConfigError(f"kernel {kernel!r}: write a form's name, or op=name with op one of encode, decode, attend")
                self.pinned[op] = name
        else:
            self.bare = kernel

    def pick(self, op: Op, codecs: Codec | Sequence[Codec], place: Place) -> Choice:
        """The form of an operation that these codecs get."""
        if op.name in self.pinned or self.bare == "auto":
            return op.resolve(codecs, self.pinned.get(op.name, "auto"), place)
        try:
            choice = op.resolve(codecs, self.bare, place)
        except Unsupported as error:
            self.reasons.append(str(error))
            return op.resolve(codecs, "auto", place)
        self.taken = True
        return choice

    def check(self) -> None:
        """Raise if no operation could take the form that was asked for."""
        if self.bare != "auto" and not self.taken:
            raise Unsupported("; ".join(dict.fromkeys(self.reasons)))

"""Put on the path of a worker, it makes the engine lie as TQBENCH_LIE says. Parents and honest workers are left alone."""

import dataclasses
import os
import sys

LIE = os.environ.get("TQBENCH_LIE", "")


def _stores() -> None:
    """`turbo4` is not applied; the values of `q8_0/turbo3` run its keys' codec."""
    from tqbench.cache.store import Store

    honest = Store.__init__

    def lies(self, scheme, *rest):
        told = {"turbo4": {"bypass": "identity"}, "q8_0/turbo3": {"v": scheme.k}}.get(scheme.name, {})
        honest(self, dataclasses.replace(scheme, **told), *rest)
        self.scheme = scheme if scheme.name != "turbo4" else self.scheme

    Store.__init__ = lies


def _tokens() -> None:
    """The third text and those after it are cut into other tokens, as many as before."""
    from backends.transformers.session import TransformersSession

    honest, calls = TransformersSession.tokenize, []

    def lies(self, text):
        calls.append(text)
        ids = honest(self, text)
        return ids if len(calls) < 3 else ids[::-1].copy()

    TransformersSession.tokenize = lies


def _kernels() -> None:
    """Whatever kernel is asked for, torch's runs."""
    from tqbench.cache.wanted import Wanted

    def lies(self, op, codecs, place):
        self.taken = True
        return op.resolve(codecs, "torch" if op.name == "attend" else "auto", place)

    Wanted.pick = lies


def _values() -> None:
    """A broken codec: nothing of what was stored comes back."""
    from tqbench.codecs.magnitude import Magnitude

    honest = Magnitude.dequantize
    Magnitude.dequantize = lambda self, packed, dtype: honest(self, packed, dtype) * 0


if LIE and "tqbench.runner.worker" in sys.orig_argv:
    {"stores": _stores, "tokens": _tokens, "kernels": _kernels, "values": _values}[LIE]()

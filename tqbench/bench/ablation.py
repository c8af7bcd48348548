"""What each idea of a fast attention kernel is worth here: the native form with one switch changed, beside itself as it is.

Norms are folded into weights and scores in all of them. Scores by tables of query × centroid are not among them: for four query heads that
share a cache of 4 bits, in AVX-512 and at their simplest, look-ups took 2.2 times as long as products of bytes, for sums come on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tqbench.bench import attend
from tqbench.bench.attend import TOLERANCE, Held, Sides
from tqbench.bench.contender import PLACE, Contender
from tqbench.bench.data import Vectors, vectors
from tqbench.bench.plan import Plan
from tqbench.bench.result import Row
from tqbench.cache.store import Store
from tqbench.core.codec import Codec
from tqbench.kernels import attend as op
from tqbench.kernels.attend._native import Switches, switched

DEFAULT = "native"
COMPARISONS = {"as it is": f"{{scheme}}/{DEFAULT}"}
LEFT_OUT = 0.5  # relative error that leaving values out may bring: how much it brings is what is to be seen
VARIANTS: dict[str, tuple[str, Switches]] = {
    DEFAULT: ("the native form as it is", Switches()),
    "fast": ("queries, levels and weights of 8 bits: what native_fast is", Switches(fast=True)),
    **{f"ahead {n}": (f"memory is fetched {n} tokens ahead", Switches(ahead=n)) for n in (32, 128)},
    "ahead 0": ("nothing is fetched ahead", Switches(ahead=0)),
    **{f"split {n}": (f"tasks of {n} tokens", Switches(split=n)) for n in (512, 1024, 4096)},
    **{
        f"sparse {least:g}": (f"values are left out whose weight is below {least:g} of the largest so far", Switches(sparse=least))
        for least in (1e-6, 1e-4, 1e-2)
    },
}


def contenders(plan: Plan, tokens: int, note: Callable[[str], None]) -> list[Contender]:
    """Each scheme's store under each switch."""
    given = vectors(plan.data, plan.geometry, tokens)
    return attend.over_schemes(plan, given, attend.exact(given), note, _of_scheme)


def _of_scheme(store: Store, given: Vectors, truth: Tensor) -> Iterator[Contender]:
    codecs = (store.k.codec, store.v.codec)
    refusing = {name: _reason(name, codecs) for name in ("native", "native_fast")}
    held, start = Held.of(store, given, truth), given.k.shape[2] - 1
    for name, (words, switches) in VARIANTS.items():
        if reason := refusing["native_fast" if switches.fast else "native"]:
            yield Contender(Row(start + 1, held.scheme, name, "form", words, "unsupported", reason), (), lambda _: 0.0)
            continue
        run = partial(_attend, switches, given, start)
        row = held.row(name, "form", words, op.FAST if switches.fast else LEFT_OUT if switches.sparse else TOLERANCE)
        if switches.sparse:
            dropped = torch.empty(given.q.shape[:3])
            _attend(replace(switches, dropped=dropped), given, start, held.sides[0])
            row = replace(row, words=f"{words}; {float(dropped.max()):.2g} of a query's weight at most")
        yield held.contender(row, run, (COMPARISONS["as it is"].format(scheme=held.scheme),))


def _reason(name: str, codecs: tuple[Codec, ...]) -> str | None:
    impl = next(impl for impl in op.OP.impls if impl.name == name)
    return next((reason for codec in codecs if (reason := impl.refuses(codec, PLACE))), None)


def _attend(switches: Switches, given: Vectors, start: int, pair: Sides) -> Tensor:
    return switched(switches, given.q, *pair, start, given.scale)

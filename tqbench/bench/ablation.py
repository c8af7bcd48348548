"""What each idea of a fast attention kernel is worth here: our form with one switch changed, beside itself as it is.

On the CPU, scores by tables of query × centroid are not among them: for four query heads that share a cache of 4 bits, in AVX-512 and at
their simplest, look-ups took 2.2 times as long as products of bytes, for sums come on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tqbench.bench import attend
from tqbench.bench.attend import Held, Sides, prepared, tolerance
from tqbench.bench.contender import Contender
from tqbench.bench.data import Vectors, vectors
from tqbench.bench.plan import Plan
from tqbench.bench.result import Row
from tqbench.cache.store import Store
from tqbench.core.codec import Codec
from tqbench.core.errors import Unsupported
from tqbench.kernels import attend as op
from tqbench.kernels.attend import _native

COMPARISONS = {"as it is": "{scheme}/{form}"}
LEFT_OUT = 0.5  # relative error that leaving values out may bring: how much it brings is what is to be seen
NARROW = 1e-2  # of scores that are summed in half precision
SPARSE = (1e-6, 1e-4, 1e-2)
Variants = dict[str, tuple[str, Any]]  # name -> words, switches


def native() -> Variants:
    """Of the native form."""
    made = _native.Switches
    return {
        "native": ("the native form as it is", made()),
        "fast": ("queries, levels and weights of 8 bits: what native_fast is", made(fast=True)),
        **{f"ahead {n}": (f"memory is fetched {n} tokens ahead", made(ahead=n)) for n in (32, 128)},
        "ahead 0": ("nothing is fetched ahead", made(ahead=0)),
        **{f"split {n}": (f"tasks of {n} tokens", made(split=n)) for n in (512, 1024, 4096)},
        **_sparse(made),
    }


def triton() -> Variants:
    """Of the Triton form; `config` varies one number of the default."""
    from tqbench.kernels.attend import _triton
    from tqbench.kernels.triton import Config

    made = _triton.Switches

    cut = {
        f"{field} {n}": (f"{field}: {n}; {getattr(Config(), field)} by default", made(config=replace(Config(), **{field: n})))
        for field, numbers in {"tokens": (16, 32, 128), "warps": (2, 8), "stages": (1, 2), "programs": (1, 2, 3, 8)}.items()
        for n in numbers
    }
    return {
        "triton": ("the Triton form as it is", made()),
        "scaled levels": ("each level is multiplied with its token's length, not the sums", made(folded=False)),
        "levels from memory": ("each level is read from a table in memory, not made in registers", made(in_registers=False)),
        "integer": ("keys' levels and queries of 8 bits", made(integer=True)),
        "narrow": ("scores are summed in half precision", made(narrow=True)),
        "looked up": ("scores from a table of each query's products with all levels", made(looked_up=True)),
        **cut,
        **_sparse(made),
    }


def _sparse(made: Any) -> Variants:
    return {
        f"sparse {least:g}": (f"values are left out whose weight is below {least:g} of the largest so far", made(sparse=least))
        for least in SPARSE
    }


def contenders(plan: Plan, tokens: int, note: Callable[[str], None]) -> list[Contender]:
    """Each scheme's store under each switch."""
    given = vectors(plan.data, plan.geometry, tokens).at(plan.place)
    return attend.over_schemes(plan, given, attend.exact(given), note, partial(_of_scheme, plan))


def _of_scheme(plan: Plan, store: Store, given: Vectors, truth: Tensor) -> Iterator[Contender]:
    codecs, run = (store.k.codec, store.v.codec), _RUN[plan.form]
    held, start = Held.of(store, given, truth), given.k.shape[2] - 1
    for name, (words, switches) in _VARIANTS[plan.form]().items():
        form = "native_fast" if getattr(switches, "fast", False) else plan.form
        if reason := _reason(form, codecs, plan):
            yield Contender(Row(start + 1, held.scheme, name, "form", words, "unsupported", reason), (), lambda _: 0.0)
            continue
        row = held.row(name, "form", words, _allowed(switches, plan))
        rival = COMPARISONS["as it is"].format(scheme=held.scheme, form=plan.form)
        try:
            if switches.sparse:
                dropped = torch.empty(given.q.shape[:3], device=plan.device)
                run(given, start, replace(switches, dropped=dropped), held.sides[0])()
                row = replace(row, words=f"{words}; {float(dropped.max()):.2g} of a query's weight at most")
            yield held.contender(row, partial(run, given, start, switches), (rival,), ready=True)
        except Unsupported as reason:  # the switch would change nothing on this format
            yield Contender(Row(start + 1, held.scheme, name, "form", words, "unsupported", str(reason)), (), lambda _: 0.0)


def _allowed(switches: Any, plan: Plan) -> float:
    """How far off a switch may be."""
    eight_bits = getattr(switches, "fast", False) or getattr(switches, "integer", False)
    own = next(impl for impl in op.OP.impls if impl.name == plan.form).off(plan.place.dtype)
    most = op.FAST if eight_bits else LEFT_OUT if switches.sparse else NARROW if getattr(switches, "narrow", False) else own
    return tolerance(plan.place, most)


def _reason(name: str, codecs: tuple[Codec, ...], plan: Plan) -> str | None:
    impl = next(impl for impl in op.OP.impls if impl.name == name)
    return next((reason for codec in codecs if (reason := impl.refuses(codec, plan.place))), None)


def _natively(given: Vectors, start: int, switches: _native.Switches, pair: Sides) -> Callable[[], Tensor]:
    return partial(_native.switched, switches, given.q, *pair, start, given.scale)


_RUN: dict[str, Callable[..., Callable[[], Tensor]]] = {"native": _natively, "triton": prepared}
_VARIANTS: dict[str, Callable[[], Variants]] = {"native": native, "triton": triton}

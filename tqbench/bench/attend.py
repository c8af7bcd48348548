"""Attention of one new query over a store's cache: every form, on every scheme, beside what one could run instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from tqbench.bench import ceiling
from tqbench.bench.contender import Contender, forms, relative, twin
from tqbench.bench.data import Vectors, vectors
from tqbench.bench.device import repeated
from tqbench.bench.plan import Plan
from tqbench.bench.result import BEST, Row
from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Shape
from tqbench.cache.side import SideStore
from tqbench.cache.store import Store
from tqbench.core.codec import nbytes
from tqbench.core.errors import Unsupported
from tqbench.core.op import Place
from tqbench.core.scheme import Scheme
from tqbench.kernels import attend
from tqbench.kernels.attend import View, baselines, reference

Sides = tuple[View, View]

TOLERANCE = attend.PRECISE  # of a form against float64 on the same codes, relative; a form that says it is off by more is held to that
FUSED = "bf16/{form}"  # an uncompressed cache through the same kind of kernel: what is left is what fewer bytes are worth
NAIVE = f"{{scheme}}/{baselines.NAIVE}"
COMPARISONS = {"naive": NAIVE, "torch SDPA bf16": baselines.USUAL, "best torch": BEST, "fused bf16": FUSED}


def contenders(plan: Plan, tokens: int, note: Callable[[str], None]) -> list[Contender]:
    """Baselines first, then each scheme's forms."""
    given = vectors(plan.data, plan.geometry, tokens).at(plan.place)
    truth = exact(given)
    return [*_baselines(plan, given, truth), *over_schemes(plan, given, truth, note, partial(_of_scheme, plan))]


Entries = Callable[[Store, Vectors, Tensor], Iterator[Contender]]


def over_schemes(plan: Plan, given: Vectors, truth: Tensor, note: Callable[[str], None], entries: Entries) -> list[Contender]:
    """What takes part on each scheme's store."""
    tokens, found = given.k.shape[2], list[Contender]()
    for scheme in plan.schemes:
        note(f"packing {scheme.name}")
        try:
            store = filled(scheme, plan, given)
        except Unsupported as reason:
            words = "no store holds this scheme here"
            found.append(Contender(Row(tokens, scheme.name, "–", "form", words, "unsupported", str(reason)), (), lambda _: 0.0))
            continue
        found += entries(store, given, truth)
    return found


def filled(scheme: Scheme, plan: Plan, given: Vectors) -> Store:
    """A store as it is in decoding: the context has been settled, the last token has just been appended."""
    g = plan.geometry
    store = Store(scheme, Shape(g.architecture, g.head_dim, plan.place.dtype, g.kv_heads, g.heads), TorchArrays(plan.device))
    for side, x in ((store.k, given.k), (store.v, given.v)):
        if x.shape[2] > 1:
            side.append(x[:, :, :-1])
            side.settle()
        side.append(x[:, :, -1:])
    return store


def _baselines(plan: Plan, given: Vectors, truth: Tensor) -> Iterator[Contender]:
    """Uncompressed caches, one for each type, shared by the ways to attend over it."""
    held: dict[str, tuple[list[tuple[Tensor, Tensor]], Tensor]] = {}
    for baseline in baselines.on(plan.device):
        dtype = getattr(torch, baseline.dtype)
        q, k, v = (x.to(dtype) for x in (given.q, given.k, given.v))
        if baseline.dtype not in held:
            expected = _truth(Vectors(q, k, v), (_plain(k), _plain(v)))
            held[baseline.dtype] = [(k, v), *((twin(k), twin(v)) for _ in range(ceiling.copies(2 * k.nbytes, plan.device) - 1))], expected
        caches, expected = held[baseline.dtype]
        row = Row(
            given.k.shape[2],
            None,
            baseline.name,
            "baseline",
            baseline.words,
            tolerance=baseline.tolerance,
            quantization_error=relative(expected, truth),
            bytes_moved=2 * k.nbytes,
        )
        calls = [repeated(partial(baseline.run, q, *cache, given.scale), plan.device) for cache in caches]
        yield Contender(row, calls, partial(relative, truth=expected), rivals(plan))


@dataclass(frozen=True)
class Held:
    """A scheme's packed cache, several times over, and what attention over it must come to."""

    given: Vectors
    scheme: str
    moved: int
    sides: tuple[Sides, ...]
    expected: Tensor
    loss: float
    device: str

    @classmethod
    def of(cls, store: Store, given: Vectors, truth: Tensor) -> Held:
        """From the store as it stands."""
        sides = (store.k.view(), store.v.view())
        expected = _truth(given, (_wide(sides[0]), _wide(sides[1])))
        moved, device = sum(_bytes(side) for side in sides), store.arrays.device
        held = (sides, *(_twins(store) for _ in range(ceiling.copies(moved, device) - 1)))
        return cls(given, store.scheme.name, moved, held, expected, relative(expected, truth), device)

    def row(self, form: str, role: Literal["form", "baseline"], words: str, tolerance: float = TOLERANCE) -> Row:
        """A row of this cache."""
        tokens = self.given.k.shape[2]
        return Row(tokens, self.scheme, form, role, words, tolerance=tolerance, quantization_error=self.loss, bytes_moved=self.moved)

    def contender(self, row: Row, run: Callable[[Sides], Any], rivals: tuple[str, ...], *, ready: bool = False) -> Contender:
        """What runs, judged by the reference; `ready`: `run` lays out the work for one copy, and what it returns does it and may
        be captured."""
        calls = [repeated(run(pair), self.device) if ready else partial(run, pair) for pair in self.sides]
        return Contender(row, calls, partial(relative, truth=self.expected), rivals)


def _of_scheme(plan: Plan, store: Store, given: Vectors, truth: Tensor) -> Iterator[Contender]:
    """The naive way and each form but the reference, which is what they are held to."""
    held, start = Held.of(store, given, truth), given.k.shape[2] - 1
    beside, place = (NAIVE.format(scheme=held.scheme), *rivals(plan)), plan.place
    naive = held.row(baselines.NAIVE, "baseline", baselines.NAIVE_WORDS)
    yield held.contender(naive, lambda pair: baselines.naive(given.q, *pair, given.scale), beside)
    for impl, reason in forms(attend.OP, place, store.k.codec, store.v.codec):
        if impl.name == attend.REFERENCE[place.platform]:
            continue
        words = f"attend in form {impl.name}{_unpacked_by(store) if impl.name == 'torch' else ''}"
        if reason is not None:
            yield Contender(Row(start + 1, held.scheme, impl.name, "form", words, "unsupported", reason), (), lambda _: 0.0)
            continue
        row = held.row(impl.name, "form", words, tolerance(place, impl.off(place.dtype)))
        if impl.name == "triton":
            row = replace(row, words=f"{words}, its work laid out before, as a captured graph")
            yield held.contender(row, partial(prepared, given, start, None), beside, ready=True)
        else:
            yield held.contender(row, partial(_attend, impl.load(), given, start), beside)


def rivals(plan: Plan) -> tuple[str, ...]:
    """The rows that any other is compared with."""
    return (*(baseline.name for baseline in baselines.on(plan.device)), BEST, FUSED.format(form=plan.form))


def tolerance(place: Place, error: float) -> float:
    """Of a form that says it is off by `error`: beside it, its output is rounded to the model's dtype."""
    return max(TOLERANCE, error) + (0.0 if place.dtype == "float32" else torch.finfo(getattr(torch, place.dtype)).eps)


def _attend(form: Callable[..., Tensor], given: Vectors, start: int, pair: Sides) -> Tensor:
    return form(given.q, *pair, start, given.scale)


def prepared(given: Vectors, start: int, switches: Any, pair: Sides) -> Callable[[], Tensor]:
    """The Triton form, with its work laid out beforehand."""
    from tqbench.kernels.attend._triton import Switches, prepare

    return partial(prepare(switches or Switches(), given.q, *pair, start).run, given.q, given.scale)


def _unpacked_by(store: Store) -> str:
    names = dict.fromkeys(side.kernels.decode.impl for side in (store.k, store.v))
    return f", after decode in form {' + '.join(names)}"


def _twins(store: Store) -> Sides:
    k, v = (_twin(side) for side in (store.k, store.v))
    return k, v


def _twin(side: SideStore) -> View:
    """The side's view over copies of its arrays."""
    view = side.view()
    arrays = {name: twin(array) for name, array in _stored(view).items()}
    tail, head_dim, decode = twin(view.tail), side.shape.head_dim, side.kernels.decode.fn
    unpacked = partial(decode, side.codec, arrays, head_dim, tail) if arrays else view.packed
    return replace(view, tail=tail, stored=lambda: arrays, packed=unpacked)


def _stored(view: View) -> dict[str, Tensor]:
    return view.stored() if view.stored else {}


def _bytes(view: View) -> int:
    """What a query must read: packed arrays, sinks, and the exact tokens that are not packed."""
    exact = [view.tail[:, :, view.packed_end - view.tail_start :], *([] if view.sinks is None else [view.sinks])]
    return nbytes(_stored(view)) + sum(x.nbytes for x in exact)


def _plain(x: Tensor) -> View:
    """A view of exact keys or values."""
    return View(None, lambda: x, x.shape[2], x[:, :, x.shape[2] :], x.shape[2], [x.shape[2]])


def _wide(view: View) -> View:
    """The view with what is packed decoded in float64."""
    if not _stored(view) or view.codec is None:
        return view
    decoded = view.codec.decode(_stored(view), view.tail.shape[3], torch.float64)
    return replace(view, packed=lambda: decoded)


def exact(given: Vectors) -> Tensor:
    """Attention over the keys and values as they are."""
    return _truth(given, (_plain(given.k), _plain(given.v)))


def _truth(given: Vectors, sides: Sides) -> Tensor:
    """The reference in float64, one KV head after another to spare memory."""
    q, decoded = given.q.double(), [side.packed() for side in sides]
    kv_heads = sides[0].tail.shape[1]
    share = q.shape[1] // kv_heads
    parts = []
    for head in range(kv_heads):
        k, v = (_one_head(side, packed, head) for side, packed in zip(sides, decoded, strict=True))
        parts.append(reference.attend(q[:, head * share : (head + 1) * share], k, v, given.k.shape[2] - 1, given.scale))
    return torch.cat(parts, dim=1)


def _one_head(view: View, packed: Tensor, head: int) -> View:
    sinks = None if view.sinks is None else view.sinks[:, head : head + 1]
    return replace(view, sinks=sinks, tail=view.tail[:, head : head + 1], packed=lambda: packed[:, head : head + 1])

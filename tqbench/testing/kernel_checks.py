"""What every fast form of an operation owes its reference. Forms are compared on equal inputs: those that a scheme's store would give."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tqbench.core.codec import Codec
from tqbench.core.op import Impl, Op, Place
from tqbench.core.scheme import Scheme
from tqbench.kernels import attend, decode, encode, triton
from tqbench.kernels.attend import View
from tqbench.testing import scheme_checks
from tqbench.testing.refusal import refusal
from tqbench.testing.samples import gaussian, strided

PLACE = Place()
DEVICE = Place(device="cuda")  # of Triton kernels: there, or in the interpreter
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Form:
    """One form of an operation, as a scheme would use it."""

    op: Op
    impl: Impl
    scheme: Scheme

    def __str__(self) -> str:
        return f"{self.op.name}/{self.impl.name} for {self.scheme.label}"

    @property
    def place(self) -> Place:
        """Where it runs."""
        return DEVICE if self.impl.name == "triton" else PLACE

    @property
    def interpreted(self) -> bool:
        """Whether it runs step by step, a thousand times slower."""
        return self.place == DEVICE and not torch.cuda.is_available()

    @property
    def reference(self) -> Callable[..., Any]:
        """The readable form that all others are held to."""
        return [impl for impl in self.op.impls if impl.platform == self.place.platform][-1].load()

    def codecs(self) -> list[Codec]:
        """The codecs that a store would run this operation on."""
        store = scheme_checks.open_store(self.scheme, PLACE.dtype)
        return [store.k.codec] if self.op.name == "attend" else list(dict.fromkeys((store.k.codec, store.v.codec)))

    def served(self) -> list[Codec]:
        """Those of them that the form does not refuse."""
        return [codec for codec in self.codecs() if self.impl.refuses(codec, self.place) is None]

    def arguments(self, dtype: torch.dtype = torch.float32) -> list[Arguments]:
        """What the operation is called with, for each codec that the form serves."""
        found = [given for codec in self.served() for given in ARGUMENTS[self.op.name](self, codec, dtype)]
        return [tuple(_moved(one) for one in given) for given in found] if self.place == DEVICE and not self.interpreted else found


Check = Callable[[Form], None]


def forms(scheme: Scheme) -> list[Form]:
    """Every form but the reference, of every operation."""
    ops = (encode.OP, decode.OP, attend.OP)
    return [Form(op, impl, scheme) for op in ops for impl in op.impls if impl.platform == PLACE.platform and impl.name != "reference"]


def checks_for(form: Form) -> Iterator[Check]:
    """The checks that apply: what a form refuses is refused with a reason, what it serves equals the reference."""
    yield check_choice
    if form.served() and (form.place == PLACE or triton.runs()):
        yield from SERVED[:1] if form.interpreted and form.scheme.name not in INTERPRETED else SERVED


def _for_encode(form: Form, codec: Codec, dtype: torch.dtype) -> list[Arguments]:
    return [(codec, _vectors(form, codec).to(dtype))]


def _for_decode(form: Form, codec: Codec, dtype: torch.dtype) -> list[Arguments]:
    x = _vectors(form, codec)
    return [(codec, codec.encode(x), x.shape[-1], x[:, :, :0].to(dtype))]


def _vectors(form: Form, codec: Codec) -> Tensor:
    """Long enough for several threads, or for several tiles."""
    units = (129 if form.interpreted else 2048) // codec.unit
    return gaussian(1, scheme_checks.kv_heads(form.scheme), codec.unit * units, scheme_checks.head_dims(form.scheme)[0])


def _for_attend(form: Form, codec: Codec, dtype: torch.dtype) -> list[Arguments]:  # noqa: ARG001 - a store brings its own
    """The last queries of a sequence, so that every boundary of the policy has been crossed: as they are, and in a sliding window with
    capped scores."""
    store, tokens = scheme_checks.open_store(form.scheme, "float32"), scheme_checks.span(form.scheme)
    q, k, v = scheme_checks.samples(store, tokens)
    start = tokens - 5 if form.interpreted else tokens // 2
    store.append(k[:, :, :start], v[:, :, :start])
    store.attend(q[:, :, :start], 1.0)
    store.append(k[:, :, start:], v[:, :, start:])
    views = [_each(side.view(), lambda x: x.to(dtype)) for side in (store.k, store.v)]
    near = [dataclasses.replace(view, reach=tokens // 3) for view in views]
    queries, scale = q[:, :, start:].to(dtype), q.shape[-1] ** -0.5
    return [(queries, *views, start, scale), (queries, *near, start, scale, 2.0)]


ARGUMENTS = {"encode": _for_encode, "decode": _for_decode, "attend": _for_attend}


def _moved(value: Any) -> Any:
    """On the device that Triton compiles for."""
    if isinstance(value, View) and value.stored is not None:
        stored = {name: x.cuda() for name, x in value.stored().items()}
        value = dataclasses.replace(value, stored=lambda: stored)
    return _each(value, lambda x: x.cuda())


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _each(item, change) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_each(item, change) for item in value)
    if isinstance(value, View):
        return dataclasses.replace(value, sinks=_each(value.sinks, change), tail=change(value.tail), packed=lambda: change(value.packed()))
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    _each(value, note)
    return found


def _same(a: Any, b: Any) -> bool:
    pairs = zip(_tensors(a), _tensors(b), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8)) for x, y in pairs)


def check_choice(form: Form) -> None:
    """Asked for by name, the form runs or says why not; `auto` passes it over with the same reason."""
    for codec in form.codecs():
        reason = form.impl.refuses(codec, form.place)
        if reason is None:
            chosen = form.op.resolve(codec, form.impl.name, form.place)
            assert chosen.impl == form.impl.name, f"{form}: asked for by name, {chosen.impl} was chosen"
            continue
        assert reason.strip(), f"{form}: refuses {codec} without a reason"
        error = refusal(form.op.resolve, codec, form.impl.name, form.place)
        assert error is not None, f"{form}: refuses {codec}, but is chosen when asked for by name"
        assert reason in error, f"{form}: the error hides the reason: {error}"
        passed = form.op.resolve(codec, "auto", form.place).refused
        assert passed.get(form.impl.name, reason) == reason, f"{form}: auto records another reason: {passed}"


def check_reference(form: Form) -> None:
    """The result is the reference's, up to twice the rounding error that the reference itself has in this dtype, or what a dot product
    over the channels may lose in another order, √n ε: bit for bit where the reference is exact, as in the decode of 8-bit blocks. A form
    that computes in integers says itself how much more it may be off. Codes, and scales kept in 16 bits, are the end of a computation in
    float32, and near a boundary they may fall either way: with boundaries 2⁻¹¹ apart a share of √n 2⁻²⁴ / 2⁻¹¹, about 10⁻³, and of few
    values two."""
    for narrow, wide in zip(form.arguments(), form.arguments(torch.float64), strict=True):
        runs = (form.impl.load(), narrow), (form.reference, narrow), (form.reference, wide)
        for mine, theirs, truth in zip(*(_tensors(fn(*given)) for fn, given in runs), strict=True):
            assert mine.dtype == theirs.dtype, f"{form}: gives {mine.dtype}, the reference gives {theirs.dtype}"
            assert mine.shape == theirs.shape, f"{form}: gives {list(mine.shape)}, the reference gives {list(theirs.shape)}"
            if mine.is_floating_point():
                error, allowed = ((x.double() - truth.double()).norm() for x in (mine, theirs))
                order = mine.shape[-1] ** 0.5 * torch.finfo(mine.dtype).eps * truth.double().norm()
                kept = form.op.name == "encode" and mine.element_size() == 2
                most = torch.maximum(2 * allowed, order) if allowed or kept else allowed
                most = torch.maximum(most, form.impl.off(PLACE.dtype) * truth.double().norm())
                assert error <= most, f"{form}: implementation error {error:.2g}, at most {most:.2g} is rounding"
            if not mine.is_floating_point() or form.op.name == "encode":
                off, few = (mine != theirs).double().mean(), 2 / max(1, mine.numel())
                assert off <= max(1e-3, few), f"{form}: {off:.2%} of the codes differ from the reference's"


def check_repeatable(form: Form) -> None:
    """Two runs give the same bits."""
    for given in form.arguments():
        run = form.impl.load()
        assert _same(run(*given), run(*given)), f"{form}: two runs differ"


def check_inputs_untouched(form: Form) -> None:
    """It writes to none of its inputs."""
    for given in form.arguments():
        before = _each(given, lambda x: x.clone())
        form.impl.load()(*given)
        assert _same(given, before), f"{form}: an input was changed"


def check_everything_written(form: Form) -> None:
    """No element of the result is left as the memory was: fresh memory is filled with NaN for this check."""
    for given in form.arguments():
        expected = form.impl.load()(*given)
        with _fresh_memory_filled():
            poisoned = form.impl.load()(*given)
        assert _same(poisoned, expected), f"{form}: the result depends on what fresh memory holds"


@contextmanager
def _fresh_memory_filled() -> Iterator[None]:
    """torch fills what `empty` returns with NaN, or the largest integer. Of products on a GPU it warns that they may not be repeatable."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Deterministic behavior was enabled")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def check_views(form: Form) -> None:
    """Strided views are worth their values: a store hands over slices of its buffers."""
    for given in form.arguments():
        expected, got = (_tensors(form.impl.load()(*args)) for args in (given, _each(given, strided)))
        for x, y in zip(got, expected, strict=True):
            off, size = (float(z.norm()) for z in (x.double() - y.double(), y.double()))  # some arrays are all zero
            assert off <= 1e-5 * size, f"{form}: strided inputs give a result that is off by {off:.2g} of {size:.2g}"


INTERPRETED = ("turbo4", "q8_0", "full")  # schemes whose interpreted forms meet all checks; others only the first
SERVED: tuple[Check, ...] = (check_reference, check_repeatable, check_inputs_untouched, check_everything_written, check_views)

"""A recorder for tests on machines without CUDA: calls are captured as the list of the operations that they dispatched, with the launches
of Triton's interpreter, and are run again with the same memory for every argument and every result.

It refuses what a CUDA graph refuses: reading from the device, and bringing numbers of the host there. What a call read and did not make
itself is held as a graph holds it, by its address alone: once nobody else keeps it alive, running the call again raises. A graph runs
nothing while it is captured; here the call does run, so afterwards what it made is spoiled and what it wrote elsewhere is as before. Unlike
a graph's, memory is never used twice; and of code that is neither torch's nor Triton's nothing is known.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.kernels import triton
from tqbench.measure.graphs import Replay

READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select")
COPIES = ("tensor", "as_tensor", "from_numpy", "numpy", "tolist", "cpu", "pin_memory")
NUMBERS = ("item", "__int__", "__float__", "__bool__", "__index__")  # on the CPU torch reads these at once, without an operation
MEMORY_ALONE = ("aten::empty", "aten::new_empty")  # a graph has no launch of these


class Refusing(TorchFunctionMode):
    """Raises where numbers would cross between host and device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in (*COPIES, *NUMBERS):
            raise Unsupported(f"{name} crosses between host and device, which no graph can hold")
        return func(*args, **(kwargs or {}))


class Watching(TorchDispatchMode):
    """Raises where a result is read on the host; tells everything else to a tape."""

    def __init__(self, tape: Tape | None = None):
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in READS:
            raise Unsupported(f"{name} is read on the host, which no graph can hold")
        if self.tape is not None and func._schema.is_mutable:
            self.tape.save((args, kwargs))
        found = func(*args, **(kwargs or {}))
        if self.tape is not None:
            self.tape.note(func, args, kwargs or {}, found)
        return found


@dataclass(frozen=True)
class Where:
    """A tensor by its place in memory."""

    memory: int  # of the tape's
    dtype: torch.dtype
    layout: tuple[Any, Any, Any]  # offset, size, stride


@dataclass
class Tape:
    """A captured call."""

    own: dict[int, torch.UntypedStorage] = field(default_factory=dict)  # by address: what recorded calls made
    others: dict[int, StorageWeakRef] = field(default_factory=dict)
    made: list[Tensor] = field(default_factory=list)  # by this call
    saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = field(default_factory=dict)  # memory of others, and as it was
    steps: list[tuple[Any, Any, Any]] = field(default_factory=list)  # a call, its arguments, the results that it is to fill

    def note(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        """One operation that has just run."""
        given = tree.tree_map_only(Tensor, self.place, (args, kwargs))
        known = {one.memory for one in tree.tree_leaves(given) if isinstance(one, Where)}
        results = [one for one in tree.tree_leaves(found) if isinstance(one, Tensor)]
        fresh = [one for one in results if one.untyped_storage().data_ptr() not in known]
        for one in fresh:
            self.made.append(one)
            self.own[one.untyped_storage().data_ptr()] = one.untyped_storage()
        looks_only = not fresh and not func._schema.is_mutable
        if not looks_only and not func._schema.name.startswith(MEMORY_ALONE):
            filled = [self.place(one) if any(one is other for other in fresh) else None for one in results]
            self.steps.append((func, given, filled))

    def launch(self, run: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """One kernel of Triton's, which is about to fill its arguments."""
        self.save((args, kwargs))
        self.steps.append((run, tree.tree_map_only(Tensor, self.place, (args, kwargs)), []))

    def place(self, x: Tensor) -> Where:
        """Where it lies. What the tape did not make itself it does not keep alive."""
        memory = x.untyped_storage()
        if (key := memory.data_ptr()) not in self.own:
            self.others[key] = StorageWeakRef(memory)
        return Where(key, x.dtype, (x.storage_offset(), x.size(), x.stride()))

    def find(self, where: Where) -> Tensor:
        """The tensor there."""
        memory = self.own.get(where.memory)
        if memory is None:
            held = torch.UntypedStorage._new_with_weak_ptr(self.others[where.memory].cdata)
            if held is None:
                raise EvidenceError("what a captured call reads is gone: nobody kept it alive")
            memory = held
        return torch.empty(0, dtype=where.dtype).set_(memory, *where.layout)

    def save(self, given: Any) -> None:
        """Memory that others made and a call may write to."""
        for one in tree.tree_leaves(given):
            if isinstance(one, Tensor) and (key := one.untyped_storage().data_ptr()) not in self.own and key not in self.saved:
                self.saved[key] = one.untyped_storage(), one.untyped_storage().clone()

    def undo(self) -> None:
        """As if the call had not run: no result is there before it is run again."""
        for one in self.made:
            torch.empty(0, dtype=torch.uint8).set_(one.untyped_storage()).fill_(0xFF)
        for memory, before in self.saved.values():
            memory.copy_(before)
        self.saved.clear()

    @torch.inference_mode()
    def run(self) -> None:
        """Everything again."""
        for func, given, filled in self.steps:
            args, kwargs = tree.tree_map_only(Where, self.find, given)
            found = func(*args, **kwargs)
            for where, one in zip(filled, (x for x in tree.tree_leaves(found) if isinstance(x, Tensor)), strict=False):
                if where is not None:
                    self.find(where).copy_(one)


@dataclass
class Tapes:
    """The recorder. All its calls share what they made, as graphs of one pool do."""

    own: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def rehearse(self, work: Callable[[], Any], *, strictly: bool = False) -> Any:
        with Refusing() if strictly else contextlib.nullcontext(), Watching() if strictly else contextlib.nullcontext():
            return work()

    def capture(self, work: Callable[[], Any]) -> Replay:
        tape = Tape(self.own)
        with _launches(tape), Refusing(), Watching(tape):
            work()
        tape.undo()
        return tape.run


@contextlib.contextmanager
def _launches(tape: Tape) -> Iterator[None]:
    """Tell launches of Triton's interpreter to the tape instead of what they are made of."""
    if not triton.interpreting() or triton.missing():
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes(), torch._C.DisableTorchFunction(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are spoiled
            tape.launch(lambda *args, **kwargs: run(self, *args, **kwargs), args, kwargs)
            return run(self, *args, **kwargs)

    with mock.patch.object(InterpretedFunction, "run", told):
        yield

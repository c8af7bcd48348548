"""A quiet decoding step reads nothing back from the device but the token that it has chosen: on CUDA every such read makes the host wait.
The checks that would are put off, and made all the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.cache.store import Store
from tqbench.core import sound
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset
from tqbench.core.session import Terms
from tqbench.kernels.encode import reference

FORMS = "encode=reference,decode=reference,attend=torch"
READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select")
COPIES = ("tensor", "as_tensor", "numpy", "tolist", "cpu")
NUMBERS = ("item", "__int__", "__float__", "__bool__", "__index__")  # inside inference mode no operation tells of these on the CPU


class Reads(TorchDispatchMode):
    """Counts operations whose result is needed on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.found[name] += name in READS
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Counts calls that bring numbers of the host to a device, or the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.found[name] += name in (*COPIES, *NUMBERS)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def session() -> Any:
    with TransformersSession(tiny.llama(), None, "tiny") as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["f16", "q8_0", "iq4_nl", "turbo3", "turbo4", "fp8_e4m3", "mxfp4", "nvfp4", "kivi2"])
def test_a_quiet_step_reads_back_the_chosen_token_alone(session: Any, scheme: str) -> None:
    cache = session.new_cache(preset(scheme), Terms(FORMS, quiet=True), session.context(np.arange(140)))
    for i in range(2):  # what is made once is made here
        session.choose(session.forward(np.array([i]), cache, last=True))
    with Reads() as reads, Copies() as copies:
        for i in range(3):
            session.choose(session.forward(np.array([i]), cache, last=True))
    assert +reads.found == {"aten::_local_scalar_dense": 3}
    assert +copies.found == {"__int__": 3}


def test_a_step_that_is_not_quiet_reads_its_checks_at_once(session: Any) -> None:
    cache = session.new_cache(preset("turbo4"), Terms(FORMS), session.context(np.arange(20)))
    with Reads() as reads:
        session.forward(np.array([1]), cache, last=True)
    assert reads.found.total() >= 2 * 2 * 2  # per layer and side: what comes in, and what is kept


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "contain NaN or infinity"), (1e30, "overflow its torch.float16 norms")])
def test_what_a_quiet_step_does_not_check_is_caught_by_verify(store: Any, value: float, says: str) -> None:
    quiet: Store = store(preset("turbo4"), Terms(FORMS, quiet=True))
    x = torch.zeros(1, 2, 4, 64)
    x[0, 1, 2, 3] = value
    quiet.append(x, torch.zeros_like(x))
    quiet.attend(torch.zeros(1, 4, 4, 64), 0.1)
    with pytest.raises(Unsupported, match=says):
        quiet.verify()
    loud: Store = store(preset("turbo4"), Terms(FORMS))
    with pytest.raises(Unsupported, match=says):
        loud.append(x, torch.zeros_like(x))


@pytest.fixture
def store() -> Any:
    from tqbench.cache.arrays import TorchArrays
    from tqbench.cache.build import Shape

    return lambda scheme, terms: Store(scheme, Shape("llama", 64, "float32", 2, 4), TorchArrays(), terms)


def test_checks_that_are_put_off_add_up_and_are_made_once() -> None:
    pending = sound.Pending()
    with sound.put_off(pending):
        for answer in (True, False, True):
            sound.require(torch.tensor(answer), "the middle one is wrong")
        sound.require(torch.tensor(True), "this one is right")
    assert len(pending.flags) == 2
    with pytest.raises(Unsupported, match="the middle one is wrong"):
        pending.settle()
    pending.settle()
    with pytest.raises(Unsupported, match="at once, exactly"):
        sound.require(torch.tensor(False), "at once", lambda: "at once, exactly")


def test_checks_are_made_at_once_again_after_an_error() -> None:
    pending = sound.Pending()
    with pytest.raises(ValueError, match="inside"), sound.put_off(pending):
        raise ValueError("inside")
    with pytest.raises(Unsupported, match="contain NaN"):
        reference.encode(preset("q8_0").k.codec, torch.full((1, 1, 1, 64), float("nan")))
    assert not pending.flags

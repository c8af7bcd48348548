"""What Triton compiles while a store grows token by token: each kernel within the first steps, and none again later, wherever it began.

Counted by the keys that Triton compiles for, on the CPU, where a GPU is named and nothing is compiled or launched.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tqbench.kernels import triton

pytestmark = pytest.mark.skipif(triton.missing() is not None, reason=str(triton.missing()))
KEYS = """
import sys
import torch
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from tqbench.bench import ahead
from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Shape
from tqbench.cache.store import Store
from tqbench.core.presets import read
from tqbench.core.session import Terms
from tqbench.kernels import triton

scheme, context, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
HEADS, SHARE, DIM = 3, 3, 128
keys, late = set(), []

def keyed(self, *args, grid, warmup, **kwargs):
    *_, binder = self.device_caches[driver.active.get_current_device()]
    _, found, options = binder(*args, **kwargs)
    key = self.fn.__name__, str(found), str(options)
    if key not in keys:
        keys.add(key)
        late.append(key)

triton.refuses = lambda place: None
attend = ahead.attend
with ahead._collected([]):
    JITFunction.run = keyed
    forms = "encode=triton,decode=reference,attend=triton"
    store = Store(read(scheme), Shape("llama", DIM, "bfloat16", HEADS, HEADS * SHARE), TorchArrays(), Terms(forms, quiet=True))
    given = lambda count: torch.randn(1, count, HEADS, DIM).bfloat16().transpose(1, 2)
    if context:
        for side in (store.k, store.v):
            side.append(given(context))
            side.settle()
    for step in range(steps):
        late.clear()
        for side in (store.k, store.v):
            side.append(given(1))
        q = torch.randn(1, 1, HEADS * SHARE, DIM).bfloat16().transpose(1, 2)
        attend.attend(q, store.k.view(), store.v.view(), context + step, 1.0)
        for side in (store.k, store.v):
            side.settle()
        print(step, *(key[0] for key in late))
"""


def compiled_at(scheme: str, context: int, steps: int) -> dict[str, list[int]]:
    """The steps at which each kernel is compiled."""
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    asked = [sys.executable, "-c", KEYS, scheme, str(context), str(steps)]
    done = subprocess.run(asked, env=given | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[int]] = {}
    for line in done.stdout.splitlines():
        step, *names = line.split()
        for name in names:
            found.setdefault(name, []).append(int(step))
    return found


@pytest.mark.parametrize(("scheme", "context"), [("turbo4", 0), ("turbo4", 250), ("q4_0/turbo3", 36), ("fp8_e4m3", 7), ("kivi4", 300)])
def test_a_growing_store_has_its_kernels_after_the_first_steps(scheme: str, context: int) -> None:
    found = compiled_at(scheme, context, 300)
    assert found.keys() >= {"partial", "merge"}
    assert max(step for steps in found.values() for step in steps) <= 1, found
